"""Latent codes of whole data sets, in shards on the disk: what probes and latent code models are made from.

    codes.json              the model, the data set, the number of codes, their mean and standard deviation
    codes-0000000.parquet   index, latent_code and the copied columns of one shard; or .safetensors

A shard holds the images of a fixed range of indices, so that a run that was interrupted, or is shared by several
processes, only makes the shards that are not there yet; the last one grows if more images are asked for. Memory does
not grow with the number of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..data.transform import ImageTransform
from ..files import SETTINGS, keep_settings, new_file, write_text
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline

FORMATS = ("parquet", "safetensors")
SUMMARY = "codes.json"
_OWN_COLUMNS = ("index", "latent_code")


def encode_dataset(
    pipeline: DiffusionAutoencoderPipeline,
    rows: Iterable[Mapping[str, Any]],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    transform: ImageTransform,
    columns: Sequence[str] = (),
    file_format: str = "parquet",
    shard_size: int = 10_000,
    batch_size: int = 100,
    process_index: int = 0,
    num_processes: int = 1,
    show_progress: bool = False,
) -> int:
    """Writes the codes of this process's shards that the folder does not have yet.

    Args:
        pipeline: The model.
        rows: `{"path", "bytes", "columns"}` in the data set's order, as [`dataset_rows`] gives them.
        folder: For the shards.
        settings: What the codes depend on, as JSON values; another run into the folder must have the same.
        transform: Row -> image tensor.
        columns: Columns that are copied beside the codes; numbers or lists of numbers with safetensors.
        file_format: "parquet" or "safetensors".
        shard_size: Images per shard.
        batch_size: Images at a time.
        process_index: Makes the shards whose number modulo `num_processes` it is.
        num_processes: Number of processes.
        show_progress: Whether to show a progress bar.

    Returns:
        The number of images in the data set.

    Raises:
        ValueError: For settings that differ from the folder's, no image, or one that cannot be read.
    """
    if file_format not in FORMATS:
        raise ValueError(f"file_format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    for name, value in (("shard_size", shard_size), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    settings = {**settings, "columns": list(columns), "shard_size": shard_size}
    path = folder / SETTINGS
    keep_settings(path, settings, "codes", write=False)
    other = next((shard for shard in _shards(folder) if shard.suffix != f".{file_format}"), None)
    if other is not None:
        raise ValueError(f"format must be that of the codes in {folder}, {other.suffix[1:]}, got {file_format!r}")
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise ValueError("dataset must hold at least one image, got none")
    transform(first)  # what fails for every image fails before the folder is given these settings
    if file_format == "safetensors":
        _as_tensors({name: [first["columns"][name]] for name in columns})
    folder.mkdir(parents=True, exist_ok=True)
    keep_settings(path, settings, "codes", write=process_index == 0)

    count, shard = 0, None
    with tqdm(unit="img", disable=not show_progress, mininterval=1) as progress:
        for index, row in enumerate(chain([first], rows)):
            count = index + 1
            number = index // shard_size
            if number % num_processes != process_index:
                continue
            if shard is None or shard.number != number:
                shard = _Shard(number, folder / f"codes-{number:07d}.{file_format}", pipeline, transform, columns)
            if index % shard_size < shard.stored:
                continue
            shard.add(index, row, batch_size)
            progress.update()
            if index % shard_size == shard_size - 1:
                shard.write()
        if shard is not None:
            shard.write()  # the last one of the data set, not full
    return count


class _Shard:
    """A shard in the making: codes and columns are kept, images only until their batch is full.

    `stored` is the number of images that its file already has: those at its beginning.
    """

    def __init__(
        self,
        number: int,
        path: Path,
        pipeline: DiffusionAutoencoderPipeline,
        transform: ImageTransform,
        columns: Sequence[str],
    ) -> None:
        self.number = number
        self.path = path
        self.stored = _shard_length(path) if path.is_file() else 0
        self._pipeline = pipeline
        self._transform = transform
        self._images: list[torch.Tensor] = []
        self._codes: list[torch.Tensor] = []
        self._index: list[int] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in columns}

    def add(self, index: int, row: Mapping[str, Any], batch_size: int) -> None:
        self._images.append(self._transform(row))
        self._index.append(index)
        for name, values in self._columns.items():
            values.append(row["columns"][name])
        if len(self._images) == batch_size:
            self._encode()

    def _encode(self) -> None:
        if self._images:
            self._codes.append(self._pipeline.encode(torch.stack(self._images)).float().cpu())
        self._images = []

    def write(self) -> None:
        self._encode()
        if not self._codes:
            return
        codes = torch.cat(self._codes)
        index = torch.tensor(self._index)
        with new_file(self.path) as temporary:
            self._write(codes, index, temporary)
        self.stored += len(index)
        self._codes = []

    def _write(self, codes: torch.Tensor, index: torch.Tensor, temporary: Path) -> None:
        if self.path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            arrays = {
                "index": pa.array(index.numpy()),
                "latent_code": pa.FixedSizeListArray.from_arrays(pa.array(codes.numpy().ravel()), codes.shape[1]),
                **{name: pa.array(values) for name, values in self._columns.items()},
            }
            table = pa.table(arrays)
            if self.stored:
                table = pa.concat_tables([pq.read_table(self.path), table], promote_options="permissive")
            pq.write_table(table, temporary)
        else:
            tensors = {"index": index, "latent_code": codes, **_as_tensors(self._columns)}
            if self.stored:
                before = load_file(self.path)
                tensors = {name: torch.cat([before[name], tensor]) for name, tensor in tensors.items()}
            save_file(tensors, temporary)


def stored_codes(folder: Path) -> int:
    """The number of codes in the shards that are there."""
    return sum(_shard_length(shard) for shard in _shards(folder))


def finish_codes(folder: Path, count: int) -> dict[str, Any]:
    """Checks that every code is there and writes `codes.json`, with their mean and standard deviation.

    Shards may hold more codes, of an earlier run with more images: these are left out.

    Args:
        folder: Of [`encode_dataset`], once all processes are done.
        count: Number of images in the data set.

    Raises:
        ValueError: If codes are missing.
    """
    settings = json.loads((folder / SETTINGS).read_text())
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
    summary = {**settings, "count": seen, "latent_mean": mean.tolist(), "latent_std": std.tolist()}
    write_text(folder / SUMMARY, json.dumps(summary) + "\n")
    return summary


def load_codes(folder: Path, columns: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The codes of a finished folder: `latent_code` (N, D), float32, `index` (N,) and the columns, in order.

    Raises:
        ValueError: If the folder has no finished codes or not that column.
    """
    if not (folder / SUMMARY).is_file():
        raise ValueError(f"codes must be a folder with a {SUMMARY}, made by `diffae-hub encode`, got {folder}")
    summary = json.loads((folder / SUMMARY).read_text())
    known = summary["columns"]
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise ValueError(f"columns must be among {known}, got {unknown}")
    parts = list(_read_codes(folder, ["latent_code", *columns], summary["count"]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def dataset_rows(
    source: str, split: str, image_column: str, columns: Sequence[str], streaming: bool, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Rows `{"path", "bytes", "columns": {name: value}}` of a data set, images undecoded, at most `limit`.

    The data set is opened at once, the rows are read one by one.

    Raises:
        ValueError: If the source, the split or a column does not exist, or an argument is not allowed.
    """
    from ..data.open_dataset import load_rows, open_dataset

    if limit is not None and limit < 1:
        raise ValueError(f"num_images must be at least 1, got {limit}")
    taken = (*_OWN_COLUMNS, image_column)
    if len({*columns, *taken}) < len(columns) + len(taken):
        raise ValueError(f"columns must differ from one another and from {', '.join(taken)}, got {list(columns)}")
    if not columns and not streaming:
        rows = load_rows(source, split, image_column)
        return ({**rows[index], "columns": {}} for index in range(min(len(rows), limit or len(rows))))

    def read() -> Iterator[dict[str, Any]]:
        for index, row in enumerate(islice(dataset, limit)):
            image = row[image_column] or {}
            yield {
                "path": image.get("path") or f"row {index}",
                "bytes": image.get("bytes"),
                "columns": {name: row[name] for name in columns},
            }

    dataset = open_dataset(source, split, image_column, streaming, columns)
    return read()


def class_names(source: str, split: str, image_column: str, column: str) -> list[str] | None:
    """The names of the classes of a column, where the data set has them."""
    from ..data.open_dataset import open_dataset

    feature = open_dataset(source, split, image_column, False, [column]).features[column]
    return getattr(feature, "names", None)


def _shards(folder: Path) -> list[Path]:
    return sorted(path for file_format in FORMATS for path in folder.glob(f"codes-*.{file_format}"))


def _shard_length(path: Path) -> int:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            return file.get_slice("index").get_shape()[0]
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def _as_tensors(columns: Mapping[str, list[Any]]) -> dict[str, torch.Tensor]:
    try:
        return {name: torch.tensor(values) for name, values in columns.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"columns must hold numbers for safetensors (use parquet): {error}") from error


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
            return {name: file.get_tensor(name) for name in names}
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
