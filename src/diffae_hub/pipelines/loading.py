"""Where a pipeline comes from: the name of a bundled model, a folder, or a Hub id -> the folder to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import read_json
from ..network import INDEX
from ..pretrained import list_models, model_folder


def pipeline_folder(source: str | Path, options: dict[str, Any]) -> Path:
    """The folder of a pipeline, downloaded if it has to be; the Hub's options are taken out of `options`.

    A ValueError, if there is no such pipeline, or its JSON files cannot be those of one.
    """
    name = str(source)
    folder = Path(model_folder(name, options) if name else "")
    if not name or not (folder / INDEX).is_file():
        raise ValueError(
            f"pretrained_model_name_or_path must be a pipeline folder with a {INDEX}, a Hub id 'owner/name' or one of "
            f"the bundled models {list_models()}, got {name!r}"
        )
    for pattern in ("*.json", "*/*.json", "*/*.safetensors"):
        for path in folder.glob(pattern):
            if not path.is_file():  # a pipe or a device: reading it may never end
                raise ValueError(f"{folder} must hold ordinary files, got {path}")
    index = read_json(folder / INDEX, ("_class_name", "encoder", "decoder", "scheduler"))
    for component, value in index.items():
        if component.startswith("_") or value == [None, None]:
            continue
        # Only classes of ours and of diffusers are loaded.
        if not (isinstance(value, list) and len(value) == 2 and value[0] in ("diffae_hub", "diffusers")):
            raise ValueError(f"{INDEX} in {folder} must give {component} a class of diffae_hub's or diffusers'")
        for path in (folder / component).glob("*config.json"):
            read_json(path)
    return folder
