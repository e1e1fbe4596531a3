"""Latent codes of whole data sets, in shards on the disk: what probes and latent code models are made from.

    codes.json              the model, the data set, the number of codes, their mean and standard deviation
    codes-0000000.parquet   index, latent_code and the copied columns of one shard; or .safetensors

A shard holds the images of a fixed range of indices, so that a run that was interrupted, or is shared by several
processes, only makes the shards that are not there yet. Memory does not grow with the number of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from ..training.data import ImageTransform
from .evaluation_folder import write_text

FORMATS = ("parquet", "safetensors")
SUMMARY = "codes.json"


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
        rows: `{"path", "bytes", **columns}` in the data set's order, as [`dataset_rows`] gives them.
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
        ValueError: For settings that differ from the folder's, or an image that cannot be read.
    """
    if file_format not in FORMATS:
        raise ValueError(f"file_format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    for name, value in (("shard_size", shard_size), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps({**settings, "columns": list(columns), "shard_size": shard_size}))
    path = folder / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != wanted:
        raise ValueError(f"output must be a new folder or hold codes of the same settings, {wanted}; {path} differs")
    write_text(path, json.dumps(wanted, indent=2) + "\n")

    count, shard = 0, None
    with tqdm(unit="img", disable=not show_progress, mininterval=1) as progress:
        for index, row in enumerate(rows):
            count = index + 1
            number = index // shard_size
            if number % num_processes != process_index:
                continue
            if shard is None or shard.number != number:
                shard = _Shard(number, folder / f"codes-{number:07d}.{file_format}", pipeline, transform, columns)
            if shard.exists:
                continue
            shard.add(index, row, batch_size)
            progress.update()
            if index % shard_size == shard_size - 1:
                shard.write()
        if shard is not None and not shard.exists:
            shard.write()  # the last one of the data set, not full
    return count


class _Shard:
    """A shard in the making: codes and columns are kept, images only until their batch is full."""

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
        self.exists = path.is_file()
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
            values.append(row[name])
        if len(self._images) == batch_size:
            self._encode()

    def _encode(self) -> None:
        if self._images:
            self._codes.append(self._pipeline.encode(torch.stack(self._images)).float().cpu())
        self._images = []

    def write(self) -> None:
        self._encode()
        codes = torch.cat(self._codes)
        index = torch.tensor(self._index)
        temporary = self.path.with_name(f".{self.path.name}.partial")
        if self.path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            arrays = {
                "index": pa.array(index.numpy()),
                "latent_code": pa.FixedSizeListArray.from_arrays(pa.array(codes.numpy().ravel()), codes.shape[1]),
                **{name: pa.array(values) for name, values in self._columns.items()},
            }
            pq.write_table(pa.table(arrays), temporary)
        else:
            try:
                extra = {name: torch.tensor(values) for name, values in self._columns.items()}
            except (TypeError, ValueError) as error:
                raise ValueError(f"columns must hold numbers for safetensors (use parquet): {error}") from error
            save_file({"index": index, "latent_code": codes, **extra}, temporary)
        temporary.replace(self.path)
        self.exists = True
        self._codes = []


def finish_codes(folder: Path, count: int) -> dict[str, Any]:
    """Checks that every code is there and writes `codes.json`, with their mean and standard deviation.

    Args:
        folder: Of [`encode_dataset`], once all processes are done.
        count: Number of images in the data set.

    Raises:
        ValueError: If codes are missing.
    """
    settings = json.loads((folder / "settings.json").read_text())
    seen, total, squares = 0, 0.0, 0.0
    for shard in _shards(folder):
        codes = _read_shard(shard, ["latent_code"])["latent_code"].astype(np.float64)
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
    known = json.loads((folder / SUMMARY).read_text())["columns"]
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise ValueError(f"columns must be among {known}, got {unknown}")
    parts = [_read_shard(shard, ["index", "latent_code", *columns]) for shard in _shards(folder)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def dataset_rows(
    source: str, split: str, image_column: str, columns: Sequence[str], streaming: bool, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Rows `{"path", "bytes", **columns}` of a data set, images undecoded, at most `limit`.

    Raises:
        ValueError: If the source, the split or a column does not exist.
    """
    from ..training.data import load_rows, open_dataset

    if not columns and not streaming:
        rows: Iterable[Mapping[str, Any]] = load_rows(source, split, image_column)
        for index, row in enumerate(rows):
            if limit is not None and index >= limit:
                return
            yield dict(row)
        return
    dataset = open_dataset(source, split, image_column, streaming, columns)
    for index, row in enumerate(dataset):
        if limit is not None and index >= limit:
            return
        image = row[image_column] or {}
        yield {
            "path": image.get("path") or f"row {index}",
            "bytes": image.get("bytes"),
            **{name: row[name] for name in columns},
        }


def _shards(folder: Path) -> list[Path]:
    return sorted(path for file_format in FORMATS for path in folder.glob(f"codes-*.{file_format}"))


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
