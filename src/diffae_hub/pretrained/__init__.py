"""The models that ship inside the package, pipeline folders loadable by name; and where any model comes from."""

from __future__ import annotations

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
    """Folder of the bundled model `name`; a ValueError that lists those there are, if it is none."""
    if name not in list_models():
        raise ValueError(f"name must be one of the bundled models {list_models()}, got {name!r}")
    return _ROOT / name


def of_training(folder: Path) -> Path:
    """The pipeline in the folder of a training; any other folder itself."""
    in_run = folder / "pipeline"
    return in_run if not (folder / INDEX).is_file() and (in_run / INDEX).is_file() else folder


def bundled_or_own(source: str | Path) -> str | Path:
    """The folder of a bundled model, if it is a name of one and not a folder of the user's with a configuration."""
    own = any((Path(source) / name).is_file() for name in (INDEX, *CONFIGURATIONS))
    return _ROOT / str(source) if str(source) in list_models() and not own else source


def model_folder(source: str | Path, options: dict[str, Any], subfolder: str | None = None) -> str | Path:
    """The folder of a bundled model or, once downloaded, of a Hub id "owner/name" or "owner/name@revision".

    Anything else is returned as it came. A folder of the user's that bears a bundled model's name wins, if it holds a
    configuration. The Hub's options are taken out of `options`, where `variant` stays; `subfolder` is as in
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
