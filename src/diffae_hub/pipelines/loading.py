"""Where a pipeline comes from: the name of a bundled model, a folder, or a Hub id -> the folder to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..files import check_regular_files, read_json
from ..network import INDEX
from ..pretrained import list_models, model_folder


def pipeline_folder(source: str | Path, options: dict[str, Any]) -> Path:
    """The folder of a pipeline, downloaded if it has to be; the Hub's options are taken out of `options`.

    Raises:
        ValueError: If there is no such pipeline, or its JSON files cannot be those of one.
        OSError: If the Hub does not give it.
    """
    name = str(source)
    folder = Path(model_folder(name, options) if name else "")
    if not name or not (folder / INDEX).is_file():
        raise ValueError(
            f"pretrained_model_name_or_path must be a pipeline folder with a {INDEX}, a Hub id 'owner/name' or one of "
            f"the bundled models {list_models()}, got {name!r}"
        )
    check_regular_files(folder)
    for component in _components(folder / INDEX):
        for path in (folder / component).glob("*config.json"):
            read_json(path)
    return folder


def _components(index: Path) -> list[str]:
    """Names of the components that a model_index.json lists; only classes of ours and of diffusers are loaded."""
    names, content = [], read_json(index)
    if missing := sorted({"_class_name", "encoder", "decoder", "scheduler"} - set(content)):
        raise ValueError(
            f"{index} must name encoder, decoder, scheduler and the pipeline's class, {missing} is missing"
        )
    for name, value in content.items():
        if name.startswith("_") or value == [None, None]:
            continue
        if not (isinstance(value, list) and len(value) == 2 and value[0] in ("diffae_hub", "diffusers")):
            raise ValueError(
                f"{index} must give library and class of {name}, of diffae_hub or diffusers, got {value!r}"
            )
        names.append(name)
    return names


def damaged_weight_files(folder: Path) -> list[Path]:
    """Weight files below a pipeline folder whose header or length does not hold."""
    damaged = []
    for path in sorted(folder.glob("*/*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError):
            damaged.append(path)
    return damaged
