"""The models that ship inside the package: pipeline folders (safetensors) loadable by name with no network."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).parent


def list_models() -> list[str]:
    """Names of the bundled models, sorted: `DiffusionAutoencoderPipeline.from_pretrained(name)` loads one."""
    return sorted(folder.parent.name for folder in _ROOT.glob("*/model_index.json"))


bundled_model_names = list_models


def bundled_model_path(name: str) -> Path:
    """Folder of the bundled model `name`, as `DiffusionAutoencoderPipeline.save_pretrained` wrote it.

    Raises:
        ValueError: If there is no bundled model of that name; the message lists those there are.
    """
    names = list_models()
    if name not in names:
        raise ValueError(f"name must be one of the bundled models {names}, got {name!r}")
    return _ROOT / name


def bundled_or_given(name_or_path: str | Path) -> str | Path:
    """Folder of the bundled model of that name, or the argument itself: a folder or a Hub id.

    A folder of the user's that bears a bundled model's name wins, if it holds a configuration.
    """
    if str(name_or_path) in bundled_model_names() and not any(Path(name_or_path).glob("*.json")):
        return _ROOT / str(name_or_path)
    return name_or_path
