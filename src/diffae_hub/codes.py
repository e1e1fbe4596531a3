"""Latent codes of whole data sets, in shards on the disk, for probes, directions and latent code models.

    settings.json           what the codes depend on: a fingerprint of the encoder's weights, the data set, the columns
    codes.json              the settings and the number of codes; written at the end
    codes-0000000.parquet   index, source, latent_code and the copied columns of one shard; or .safetensors

`source` says where a code comes from: the path of the image file, or the row of the data set. A shard holds the images
of a fixed range of indices. So a run that was interrupted, or is shared by several processes, makes only the missing
shards. The last shard grows if more images are asked for. Memory does not grow with the number of images.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from .data.fingerprint import data_fingerprint
from .data.open_dataset import image_of, load_rows, open_dataset
from .data.transform import ImageTransform
from .files import SETTINGS, check_output, keep_settings, new_file, read_json, write_text
from .pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline

SUMMARY = "codes.json"
_SETTINGS = ("encoder", "columns", "class_names", "dataset", "data", "split", "image_column", "crop")
_OWN_COLUMNS = ("index", "source", "latent_code")


def encode_dataset(
    pipeline: DiffusionAutoencoderPipeline,
    dataset: str | Path,
    output: str | Path,
    *,
    split: str = "train",
    image_column: str = "image",
    columns: Sequence[str] = (),
    crop: str = "center",
    streaming: bool = False,
    num_images: int | None = None,
    format: str = "parquet",
    shard_size: int = 10_000,
    batch_size: int = 100,
    show_progress: bool = False,
) -> int:
    """Writes the codes of a data set, without those that the folder has already. Returns their number in all.

    The processes of `accelerate launch` share the work.

    Args:
        dataset: Folder of images, parquet, `datasets` folder or Hub data set.
        output: Folder for the shards: new, empty, or with codes of the same settings to continue.
        split, image_column, streaming: See [`~diffae_hub.data.open_dataset.open_dataset`].
        columns: Columns to store with the codes; with safetensors, numbers or lists of numbers. A folder of images
            whose subfolders are classes has the column "label".
        crop: How an image becomes square; see [`ImageTransform`].
        num_images: Encode only so many images, the first ones; None for all.
        format: "parquet" or "safetensors".
        shard_size, batch_size: Images per shard, and images at a time.
    """
    for name, value in (("num_images", num_images), ("shard_size", shard_size), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    source, folder, state = str(dataset), Path(output), PartialState()
    check_output(folder, source)
    config = pipeline.encoder.config
    transform = ImageTransform(config.sample_size, config.in_channels, crop=crop)
    taken = (*_OWN_COLUMNS, image_column)
    if len({*columns, *taken}) < len(columns) + len(taken):
        raise ValueError(f"columns must differ from one another and from {', '.join(taken)}, got {list(columns)}")
    opened = open_dataset(source, split, image_column, streaming, columns)
    features = opened.features or {}
    rows = islice(opened, num_images)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"dataset must hold at least one image, got none in {source}")
    transform(_image(0, first, image_column))  # an error of every image is raised before the folder gets its settings
    if format == "safetensors":
        _as_tensors({name: [first[name]] for name in columns})
    settings = {
        "encoder": encoder_fingerprint(pipeline),
        "dtype": str(pipeline.encoder.dtype),
        "data": data_fingerprint(source, split, opened),
        "split": split,
        "image_column": image_column,
        "crop": crop,
        "columns": list(columns),
        "class_names": {name: features[name].names for name in columns if hasattr(features.get(name), "names")},
        "shard_size": shard_size,
        "format": format,
    }
    with state.main_process_first():
        keep_settings(folder / SETTINGS, settings, "codes", write=state.is_main_process)

    count = 0
    with tqdm(unit="img", disable=not show_progress, mininterval=1) as progress:
        for number, shard in groupby(enumerate(chain([first], rows)), lambda item: item[0] // shard_size):
            path = folder / f"codes-{number:07d}.{format}"
            mine = number % state.num_processes == state.process_index
            names = ("index", "source", *columns)
            kept = _read_shard(path, names) if mine and path.is_file() else {name: [] for name in names}
            stored = len(kept["index"])
            codes = [kept.pop("latent_code")] if stored else []
            while batch := list(islice(shard, batch_size)):
                count += len(batch)
                batch = [item for item in batch if mine and item[0] % shard_size >= stored]
                if not batch:
                    continue
                images = [_image(index, row, image_column) for index, row in batch]
                tensors = torch.stack([transform(image) for image in images])
                codes.append(encode_images(pipeline, tensors).float().cpu().numpy())
                kept["index"] += [index for index, _ in batch]
                kept["source"] += [image["source"] for image in images]
                for name in columns:
                    kept[name] += [row[name] for _, row in batch]
                progress.update(len(batch))
            if len(kept["index"]) > stored:
                _write_shard(path, np.concatenate(codes), kept)
    state.wait_for_everyone()
    if state.is_main_process:
        path = Path(source).expanduser()
        where = str(path.absolute()) if path.exists() else source  # found from other working directories, too
        write_text(folder / SUMMARY, json.dumps({**settings, "dataset": where, "count": count}) + "\n")
    return count


@torch.no_grad()
def encode_images(pipeline: DiffusionAutoencoderPipeline, images: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in [-1, 1], as [`ImageTransform`] gives them -> codes (B, latent_dim), on the model's device.

    Raises ValueError for a code that is not finite.
    """
    encoder = pipeline.encoder
    codes = encoder(images.to(encoder.device, encoder.dtype), return_dict=False)[0]
    if not codes.isfinite().all():
        raise ValueError("model must give finite codes, got NaN or infinity")
    return codes


def load_codes(folder: str | Path, columns: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Loads the codes that `diffae-hub encode` wrote: `latent_code` (N, D), float32, `index` (N,), and the `columns`.

    The rows are in the order of the images. `columns` may name columns that were stored with the codes, and "source":
    the paths of the images, or their rows. Raises ValueError if the codes are not complete or lack a column.
    """
    summary = codes_summary(folder)
    known = ["source", *summary["columns"]]
    if len({*columns} & {*known}) < len(columns):
        raise ValueError(f"columns must be some of {known}, each once, got {list(columns)}")
    parts: list[dict[str, np.ndarray]] = []
    for path in sorted(path for path in Path(folder).glob("codes-*") if path.suffix in (".parquet", ".safetensors")):
        shard = _read_shard(path, ["index", *columns])
        wanted = np.array(shard["index"]) < summary["count"]  # an earlier run may have made more
        parts.append({name: np.array(shard[name])[wanted] for name in ("latent_code", "index", *columns)})
    codes = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {"index": []}
    if len(codes["index"]) != summary["count"] or (np.diff(codes["index"], prepend=-1) != 1).any():
        raise ValueError(f"codes must be complete and in order, {summary['count']} in all, but are not in {folder}")
    return codes


def codes_summary(folder: str | Path) -> dict[str, Any]:
    """Reads `codes.json`: settings, `encoder` (a fingerprint), `class_names` and `count`.

    Raises ValueError for a folder without finished codes.
    """
    path = Path(folder) / SUMMARY
    if not path.is_file():
        raise ValueError(f"codes must be a folder with a {SUMMARY}, made by `diffae-hub encode`, got {folder}")
    return read_json(path, (*_SETTINGS, "count"))


def named_classes(labels: np.ndarray, folder: str | Path, column: str) -> np.ndarray:
    """Replaces class numbers (N,) of stored codes by names, if their data set has some: each numbers its own classes.

    Raises ValueError for a label that is none of them, such as -1 for an image without a label.
    """
    if labels.dtype == object:
        raise ValueError(f"labels must be single values in {column!r}, one for every image, got some without")
    classes = codes_summary(folder)["class_names"].get(column)
    if not classes:
        return labels
    if not np.isin(labels, range(len(classes))).all():
        raise ValueError(f"labels must be 0 to {len(classes) - 1} in {column!r}, got others")
    return np.array(classes)[labels]


def encoded_rows(summary: Mapping[str, Any]) -> Any:
    """Opens the data set of a [`codes_summary`], as [`load_rows`] does. Raises ValueError if it has changed."""
    data = load_rows(*(summary[name] for name in ("dataset", "split", "image_column", "columns")))
    if data_fingerprint(summary["dataset"], summary["split"], data) != summary["data"]:
        changed = f"but {summary['dataset']} has changed, or was a stream from the Hub"
        raise ValueError(f"pictures of codes (as for --sheet) need the data set as it was encoded, {changed}")
    return data


def transform_of_codes(pipeline: DiffusionAutoencoderPipeline, summary: Mapping[str, Any]) -> ImageTransform:
    """Returns the transform of the images of a [`codes_summary`], also for an image to compare with them."""
    config = pipeline.encoder.config
    return ImageTransform(config.sample_size, config.in_channels, crop=summary["crop"])


def nearest_codes(
    codes: Any, queries: Any, num_neighbours: int = 8, metric: str = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the codes (N, latent_dim) nearest to each query (Q, latent_dim), by an exact search of scikit-learn.

    Both are normalised with the mean and standard deviation of `codes`. The usual metrics are "cosine" (1 - cosine of
    the angle) and "euclidean". Returns distances and row numbers in `codes`, each (Q, num_neighbours), nearest first.
    """
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    if not 1 <= num_neighbours <= len(codes):
        raise ValueError(f"num_neighbours must be between 1 and {len(codes)}, got {num_neighbours}")
    scaler = StandardScaler().fit(codes)
    index = NearestNeighbors(n_neighbors=num_neighbours, metric=metric, algorithm="brute").fit(scaler.transform(codes))
    return index.kneighbors(scaler.transform(queries))


# ---- fingerprints: codes or reconstructions of two states of a model must not be mixed -------------------------------


def encoder_fingerprint(pipeline: DiffusionAutoencoderPipeline) -> str:
    """Fingerprint of the encoder's weights: codes with another fingerprint are from another model."""
    return _fingerprint("", pipeline.encoder)


def check_encoder(pipeline: DiffusionAutoencoderPipeline, summary: Mapping[str, Any]) -> None:
    """Raises ValueError if the codes of a [`codes_summary`] are not from this pipeline's encoder."""
    if summary["encoder"] != encoder_fingerprint(pipeline):
        raise ValueError("codes must be from the encoder of --model, but they are from another model")


def weights_fingerprint(pipeline: DiffusionAutoencoderPipeline) -> str:
    """Fingerprint of the weights of both networks and of the scheduler."""
    saved = json.loads(pipeline.scheduler.to_json_string())
    scheduler = {name: value for name, value in saved.items() if not name.startswith("_")}
    return _fingerprint(json.dumps(scheduler, sort_keys=True), pipeline.encoder, pipeline.decoder)


def _fingerprint(text: str, *networks: torch.nn.Module) -> str:
    digest = hashlib.sha256(text.encode())
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


# ---- shards ----------------------------------------------------------------------------------------------------------


def _image(index: int, row: dict[str, Any], image_column: str) -> dict[str, Any]:
    """Returns `{"path", "bytes", "source"}`: the image of a row, undecoded, and where it is from."""
    image = image_of(row, image_column, index)
    return {**image, "source": image["path"] if image["bytes"] is not None else str(Path(image["path"]).absolute())}


def _write_shard(path: Path, codes: np.ndarray, columns: dict[str, list[Any]]) -> None:
    with new_file(path) as temporary:
        if path.suffix == ".safetensors":
            tensors = _as_tensors({name: values for name, values in columns.items() if name != "source"})
            tensors["latent_code"] = torch.from_numpy(codes)
            save_file(tensors, temporary, metadata={"source": json.dumps(columns["source"])})
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = pa.FixedSizeListArray.from_arrays(codes.ravel(), codes.shape[1])
        pq.write_table(pa.table({**columns, "latent_code": flat}), temporary)


def _as_tensors(columns: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
    try:
        return {name: torch.tensor(values) for name, values in columns.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"columns must hold numbers for safetensors (use parquet): {error}") from error


def _read_shard(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Reads `latent_code`, an array, and the named columns, lists."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            found = {name: file.get_tensor(name).tolist() for name in names if name != "source"}
            source = json.loads(file.metadata()["source"])
            return {**found, "source": source, "latent_code": file.get_tensor("latent_code")}
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=[*names, "latent_code"])
    codes = table["latent_code"].combine_chunks()
    columns = {name: table[name].to_pylist() for name in names}
    return {**columns, "latent_code": np.asarray(codes.flatten()).reshape(len(codes), -1)}
