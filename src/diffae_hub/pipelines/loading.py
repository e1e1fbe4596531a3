"""Where a pipeline comes from: the name of a bundled model, a folder, or a Hub id -> the folder to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..files import check_regular_files
from ..network import download_pipeline
from ..pretrained import bundled_model_names, bundled_model_path

INDEX = "model_index.json"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def pipeline_folder(source: str | Path, variant: str | None = None, **hub_options: Any) -> Path:
    """The folder of a pipeline, downloaded if it has to be.

    Args:
        source: A pipeline folder, the name of a bundled model, or a Hub id "owner/name" or "owner/name@revision".
        variant: Of the weights, such as "fp16"; from the Hub only its files are fetched (for a component that does not
            have it, the plain ones).
        hub_options: `HUB_OPTIONS`, as in huggingface_hub.

    Raises:
        ValueError: If there is no such pipeline, or its JSON files cannot be those of one.
        OSError: If the Hub does not give it.
    """
    name = str(source)
    folder = Path(name)
    repository, _, revision = name.partition("@")
    is_hub_id = repository.count("/") == 1 and all(repository.split("/")) and name[0] not in "./~"
    # Any folder, one of results say, may happen to bear a bundled model's name.
    if not (folder / INDEX).is_file() and name in bundled_model_names():
        folder = bundled_model_path(name)
    elif is_hub_id and not folder.exists():
        if revision:
            hub_options["revision"] = revision
        folder = download_pipeline(repository, variant=variant, **hub_options)
    if not name or not (folder / INDEX).is_file():
        raise ValueError(
            f"pretrained_model_name_or_path must be a pipeline folder with a {INDEX}, a Hub id 'owner/name' or one of "
            f"the bundled models {bundled_model_names()}, got {name!r}"
        )
    check_regular_files(folder)
    for component in _components(folder / INDEX):
        for path in (folder / component).glob("*config.json"):
            _read_object(path)
    return folder


def _components(index: Path) -> list[str]:
    """Names of the components that a model_index.json lists; only classes of ours and of diffusers are loaded."""
    names, content = [], _read_object(index)
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


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of UTF-8, of JSON
        raise ValueError(f"{path} must hold JSON, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


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
