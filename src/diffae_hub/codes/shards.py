"""Latent codes of whole data sets, in shards on the disk: what probes, directions and latent code models are made from.

    settings.json           what the codes depend on: a fingerprint of the encoder's weights, the data set, the columns
    codes.json              the settings, the number of codes, their mean and standard deviation; written at the end
    codes-0000000.parquet   index, source, latent_code and the copied columns of one shard; or .safetensors

`source` says where a code comes from: the path of the image file, or the row of the data set. A shard holds the images
of a fixed range of indices, so that a run that was interrupted, or is shared by several processes, only makes the
shards that are not there yet; the last one grows if more images are asked for. Memory does not grow with their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..data.open_dataset import load_rows, open_dataset
from ..data.transform import ImageTransform
from ..files import SETTINGS, check_new_or_continued, check_output, keep_settings, new_file, read_json, write_text
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .fingerprints import encoder_fingerprint

FORMATS = ("parquet", "safetensors")
SUMMARY = "codes.json"
_OWN_COLUMNS = ("index", "source", "latent_code")


def encode_dataset(
    pipeline: DiffusionAutoencoderPipeline,
    source: str | Path,
    folder: str | Path,
    *,
    split: str = "train",
    image_column: str = "image",
    columns: Sequence[str] = (),
    crop: str = "center",
    streaming: bool = False,
    num_images: int | None = None,
    file_format: str = "parquet",
    shard_size: int = 10_000,
    batch_size: int = 100,
    state: PartialState | None = None,
    show_progress: bool = False,
) -> int:
    """Writes the codes of a data set that the folder does not have yet.

    Args:
        pipeline: The model.
        source: Folder of images, parquet, `datasets` folder or Hub data set.
        folder: For the shards: new, empty, or of codes with the same settings, which are continued.
        split: Split of the data set.
        image_column: Its column of images.
        columns: Columns that are copied beside the codes; numbers or lists of numbers with safetensors. A folder of
            images whose subfolders are classes has the column "label".
        crop: How an image becomes square; see [`ImageTransform`].
        streaming: Whether to read the data set while encoding, never all at once.
        num_images: The first so many; None for all.
        file_format: "parquet" or "safetensors".
        shard_size: Images per shard.
        batch_size: Images at a time.
        state: The processes that share the shards; None for this one alone.
        show_progress: Whether to show a progress bar.

    Returns:
        The number of codes.

    Raises:
        ValueError: For data that cannot be read, a folder of other codes, or codes that are not finite.
    """
    for name, value in (("num_images", num_images), ("shard_size", shard_size), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    source, folder = str(source), Path(folder)
    check_output(folder, source)
    config = pipeline.encoder.config
    transform = ImageTransform(config.sample_size, config.in_channels, crop=crop)
    rows, class_names = _open_rows(source, split, image_column, columns, streaming, num_images)
    first = next(rows)
    transform(first)  # what fails for every image fails before the folder is given its settings
    if file_format == "safetensors":
        _as_tensors({name: [first["columns"][name]] for name in columns})
    settings = {
        "encoder": encoder_fingerprint(pipeline),
        "dtype": str(pipeline.encoder.dtype),
        "dataset": source,
        "split": split,
        "image_column": image_column,
        "crop": crop,
        "columns": list(columns),
        "class_names": class_names,
        "shard_size": shard_size,
        "format": file_format,
    }
    process_index, num_processes = (state.process_index, state.num_processes) if state else (0, 1)
    with state.main_process_first() if state else nullcontext():
        if process_index == 0:
            check_new_or_continued(folder, "codes")
        keep_settings(folder / SETTINGS, settings, "codes", write=process_index == 0)

    count = 0
    numbered = enumerate(chain([first], rows))
    with tqdm(unit="img", disable=not show_progress, mininterval=1) as progress:
        for number, shard in groupby(numbered, lambda item: item[0] // shard_size):
            mine = number % num_processes == process_index
            path = folder / f"codes-{number:07d}.{file_format}"
            stored = _shard_length(path) if mine and path.is_file() else 0
            codes: list[torch.Tensor] = []
            kept: dict[str, list[Any]] = {name: [] for name in ("index", "source", *columns)}
            while batch := list(islice(shard, batch_size)):
                count += len(batch)
                batch = [item for item in batch if mine and item[0] % shard_size >= stored]
                if not batch:
                    continue
                images = torch.stack([transform(row) for _, row in batch])
                codes.append(encode_images(pipeline, images).float().cpu())
                for index, row in batch:
                    kept["index"].append(index)
                    kept["source"].append(row["source"])
                    for name in columns:
                        kept[name].append(row["columns"][name])
                progress.update(len(batch))
            if codes:
                _write_shard(path, torch.cat(codes), kept)
    if state:
        state.wait_for_everyone()
    if process_index == 0:
        _write_summary(folder, count)
    return count


@torch.no_grad()
def encode_images(pipeline: DiffusionAutoencoderPipeline, images: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in [-1, 1], as [`ImageTransform`] gives them -> codes (B, latent_dim), on the model's device.

    Raises:
        ValueError: If a code is not finite.
    """
    encoder = pipeline.encoder
    codes = encoder(images.to(encoder.device, encoder.dtype), return_dict=False)[0]
    if not codes.isfinite().all():
        raise ValueError("model must give finite codes, got NaN or infinity")
    return codes


def load_codes(folder: str | Path, columns: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The codes of a finished folder: `latent_code` (N, D), float32, `index` (N,) and the columns, in order.

    Args:
        folder: Of [`encode_dataset`] or `diffae-hub encode`.
        columns: Of those that were copied, and "source", the images' paths or rows.

    Raises:
        ValueError: If the folder has no finished codes or not that column.
    """
    summary = codes_summary(folder)
    known = ["source", *summary["columns"]]
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise ValueError(f"columns must be among {known}, got {unknown}")
    parts = list(_read_codes(Path(folder), ["latent_code", *columns], summary["count"]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def codes_summary(folder: str | Path) -> dict[str, Any]:
    """What `codes.json` says: settings, `encoder` (a fingerprint), `class_names`, `count`, `latent_mean`, `latent_std`.

    Raises:
        ValueError: If the folder has no finished codes.
    """
    path = Path(folder) / SUMMARY
    if not path.is_file():
        raise ValueError(f"codes must be a folder with a {SUMMARY}, made by `diffae-hub encode`, got {folder}")
    return read_json(path, ("encoder", "columns", "class_names", "count"))


def stored_codes(folder: Path) -> int:
    """The number of codes in the shards that are there."""
    return sum(_shard_length(shard) for shard in _shards(folder))


# ---- reading the data ------------------------------------------------------------------------------------------------


def _open_rows(
    source: str, split: str, image_column: str, columns: Sequence[str], streaming: bool, limit: int | None
) -> tuple[Iterator[dict[str, Any]], dict[str, list[str]]]:
    """Rows `{"path", "bytes", "source", "columns": {name: value}}`, undecoded, and the classes' names by column."""
    taken = (*_OWN_COLUMNS, image_column)
    if len({*columns, *taken}) < len(columns) + len(taken):
        raise ValueError(f"columns must differ from one another and from {', '.join(taken)}, got {list(columns)}")
    if columns or streaming:
        dataset = open_dataset(source, split, image_column, streaming, columns)
        features = dataset.features or {}
        names = {name: getattr(features.get(name), "names", None) for name in columns}
        rows = ((row[image_column] or {}, {name: row[name] for name in columns}) for row in islice(dataset, limit))
    else:
        images, names = load_rows(source, split, image_column), {}
        rows = ((images[index], {}) for index in range(len(images))[:limit])

    def read() -> Iterator[dict[str, Any]]:
        for index, (image, values) in enumerate(rows):
            path, content = image.get("path"), image.get("bytes")
            where = path if content is not None or path is None else str(Path(path).absolute())
            where = where or f"row {index}"
            yield {"path": path or where, "bytes": content, "source": where, "columns": values}

    iterator = read()
    try:
        first = next(iterator)
    except StopIteration:
        raise ValueError(f"dataset must hold at least one image, got none in {source}") from None
    return chain([first], iterator), {name: value for name, value in names.items() if value}


# ---- shards ----------------------------------------------------------------------------------------------------------


def _write_shard(path: Path, codes: torch.Tensor, kept: Mapping[str, list[Any]]) -> None:
    """Writes a shard, after what its file holds already."""
    with new_file(path) as temporary:
        if path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            flat = pa.FixedSizeListArray.from_arrays(pa.array(codes.numpy().ravel()), codes.shape[1])
            table = pa.table({**{name: pa.array(values) for name, values in kept.items()}, "latent_code": flat})
            if path.is_file():
                table = pa.concat_tables([pq.read_table(path), table], promote_options="permissive")
            pq.write_table(table, temporary)
        else:
            sources = kept["source"]
            tensors = {"latent_code": codes, **_as_tensors({k: v for k, v in kept.items() if k != "source"})}
            if path.is_file():
                sources = _sources(path) + sources
                before = load_file(path)
                tensors = {name: torch.cat([before[name], tensor]) for name, tensor in tensors.items()}
            save_file(tensors, temporary, metadata={"source": json.dumps(sources)})


def _as_tensors(columns: Mapping[str, list[Any]]) -> dict[str, torch.Tensor]:
    try:
        return {name: torch.tensor(values) for name, values in columns.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"columns must hold numbers for safetensors (use parquet): {error}") from error


def _write_summary(folder: Path, count: int) -> None:
    """Checks that every code is there and writes `codes.json`. Shards may hold more, of an earlier run."""
    seen, total, squares = 0, 0.0, 0.0
    for part in _read_codes(folder, ["latent_code"], count):
        codes = part["latent_code"].astype(np.float64)
        seen += len(codes)
        total = total + codes.sum(axis=0)
        squares = squares + np.square(codes).sum(axis=0)
    if seen != count:
        raise ValueError(f"{folder} must hold the codes of all {count} images, got {seen}")
    mean = total / seen
    std = np.sqrt(np.maximum(squares / seen - mean**2, 0))
    summary = {"count": seen, "latent_mean": mean.tolist(), "latent_std": std.tolist()}
    write_text(folder / SUMMARY, json.dumps({**read_json(folder / SETTINGS), **summary}) + "\n")


def _shards(folder: Path) -> list[Path]:
    return sorted(path for file_format in FORMATS for path in folder.glob(f"codes-*.{file_format}"))


def _shard_length(path: Path) -> int:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            return file.get_slice("index").get_shape()[0]
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def _sources(path: Path) -> list[str]:
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["source"])


def _read_codes(folder: Path, names: Sequence[str], count: int) -> Iterator[dict[str, np.ndarray]]:
    """`index` and the named columns, shard by shard, of the images below `count`."""
    for shard in _shards(folder):
        part = _read_shard(shard, ["index", *names])
        wanted = part["index"] < count
        if wanted.any():
            yield {name: values[wanted] for name, values in part.items()}


def _read_shard(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            return {name: np.array(_sources(path)) if name == "source" else file.get_tensor(name) for name in names}
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=list(names))
    arrays = {}
    for name in names:
        column = table[name].combine_chunks()
        if name == "latent_code":
            arrays[name] = np.asarray(column.flatten()).reshape(len(column), -1)
        else:
            arrays[name] = np.array(column.to_pylist())
    return arrays
