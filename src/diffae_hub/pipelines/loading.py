"""Where a pipeline comes from: the name of a bundled model, a folder, or a Hub id -> the folder to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from safetensors import SafetensorError, safe_open

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
        try:
            folder = _download(repository, variant, hub_options)
        except Exception as error:  # the client's own, and those of the HTTP library below it
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise OSError(f"{name} cannot be loaded from the Hub: {reason or type(error).__name__}") from error
    if not name or not (folder / INDEX).is_file():
        raise ValueError(
            f"pretrained_model_name_or_path must be a pipeline folder with a {INDEX}, a Hub id 'owner/name' or one of "
            f"the bundled models {bundled_model_names()}, got {name!r}"
        )
    for component in _components(folder / INDEX):
        for path in (folder / component).glob("*config.json"):
            _read_object(path)
    return folder


def _download(repository: str, variant: str | None, options: dict[str, Any]) -> Path:
    index = Path(hf_hub_download(repository, INDEX, **options))
    options["revision"] = index.parent.name  # the commit, so that all files are of one
    components = _components(index)
    patterns = [INDEX, *(f"{name}/{file}" for name in components for file in ("config.json", "scheduler_config.json"))]
    patterns += [pattern for name in components for pattern in _weights(name, variant)]
    folder = Path(snapshot_download(repository, allow_patterns=patterns, **options))
    models = [name for name in components if (folder / name / "config.json").is_file()]
    plain = [name for name in models if not any(any(folder.glob(pattern)) for pattern in _weights(name, variant))]
    if variant is not None and plain == models:
        raise ValueError(f"variant must be one that the repository has, got {variant!r}")
    if variant is not None and plain:
        patterns = [pattern for name in plain for pattern in _weights(name, None)]
        snapshot_download(repository, allow_patterns=patterns, **options)
    return folder


def _weights(component: str, variant: str | None) -> list[str]:
    stem, infix = f"{component}/diffusion_pytorch_model", f".{variant}" if variant else ""
    return [f"{stem}{infix}.safetensors", f"{stem}{infix}-[0-9]*.safetensors", f"{stem}.safetensors.index{infix}.json"]


def _components(index: Path) -> list[str]:
    """Names of the components that a model_index.json lists; only classes of ours and of diffusers are loaded."""
    names = []
    for name, value in _read_object(index).items():
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
