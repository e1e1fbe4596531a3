"""Bundled models, which ship with the package and load by name, and the folders of all other models."""

import re
from pathlib import Path
from typing import Any

from ..network import CONFIGURATIONS, INDEX, download

_ROOT = Path(__file__).parent
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def list_models() -> list[str]:
    """Names of the bundled models, sorted. `DiffusionAutoencoderPipeline.from_pretrained(name)` loads one."""
    return sorted(folder.parent.name for folder in _ROOT.glob(f"*/{INDEX}"))


def bundled_model_path(name: str) -> Path:
    """Folder of the bundled model `name`. Raises a ValueError that lists the bundled models if there is none."""
    if name not in list_models():
        raise ValueError(f"name must be one of the bundled models {list_models()}, got {name!r}")
    return _ROOT / name


def of_training(folder: Path) -> Path:
    """Returns the pipeline inside the folder of a training run, or any other folder itself."""
    in_run = folder / "pipeline"
    return in_run if not (folder / INDEX).is_file() and (in_run / INDEX).is_file() else folder


def bundled_or_own(source: str | Path) -> str | Path:
    """Returns the folder of a bundled model for its name, or `source` itself; a user's folder with a model wins."""
    own = any((Path(source) / name).is_file() for name in (INDEX, *CONFIGURATIONS))
    return _ROOT / str(source) if str(source) in list_models() and not own else source


def model_folder(source: str | Path, options: dict[str, Any], subfolder: str | None = None) -> str | Path:
    """Returns the folder of a bundled model or of a Hub id, "owner/name" or "owner/name@revision", which it downloads.

    Anything else is returned as it is. A user's folder with the name of a bundled model wins if it holds a
    configuration. The Hub's options are removed from `options`, except `variant`; `subfolder` is as in
    [`~diffae_hub.network.download`].
    """
    hub_options = {name: options.pop(name) for name in _HUB_OPTIONS if name in options}
    repository, _, revision = str(source).partition("@")
    if (found := bundled_or_own(source)) != source:
        return found
    if Path(source).exists() or not re.fullmatch(r"[^/.~][^/]*/[^/]+", repository):
        return source
    if revision:
        hub_options["revision"] = revision
    return download(repository, subfolder, variant=options.get("variant"), **hub_options)
