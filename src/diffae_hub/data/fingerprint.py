"""Whether data is still the same, found out without reading the images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .open_dataset import is_saved
from .sources import files_below, image_folder, local_path, parquet_files, split_name

if TYPE_CHECKING:
    from datasets import IterableDataset


def data_fingerprint(source: str, split: str, rows: Sequence[Mapping[str, Any]] | IterableDataset) -> str:
    """A text that changes if the files of a data set change, but not if they are moved with their times.

    It is made of the names, sizes and times of all files of the split; of a parquet file its schema and row groups too.
    Of a Hub data set it is made of the fingerprint of `datasets`, of its stream of the shards' names, which hold the
    revision.

    Args:
        source: As in [`~diffae_hub.data.open_dataset.open_dataset`].
        split: Its split; a slice makes no difference.
        rows: The opened data set, of `load_rows` or `open_dataset`.
    """
    digest = hashlib.sha256()
    for part in _local_parts(source, split_name(split)) if local_path(source).exists() else _hub_parts(rows):
        digest.update(repr(part).encode() + b"\n")
    return digest.hexdigest()


def _local_parts(source: str, split: str) -> Iterator[Any]:
    path = local_path(source)
    if files := parquet_files(path, split):
        for file in map(Path, files):
            yield file.name, _size_and_time(file), _parquet_metadata(file)
        return
    folder = path if is_saved(path) else image_folder(path, split)
    for file in sorted(entry.path for _, entry in files_below(folder)):
        yield os.path.relpath(file, folder), _size_and_time(Path(file))


def _size_and_time(path: Path) -> tuple[int, int] | None:
    if not path.exists():  # a link to nothing
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _parquet_metadata(path: Path) -> tuple[str, list[tuple[int, int]]]:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return str(metadata.schema.to_arrow_schema()), [(group.num_rows, group.total_byte_size) for group in groups]


def _hub_parts(rows: Any) -> Iterator[Any]:
    if hasattr(rows, "dataset"):
        yield rows.dataset._fingerprint
        return
    stream = rows._ex_iterable
    while hasattr(stream, "ex_iterable"):  # the choice of columns is wrapped around it
        stream = stream.ex_iterable
    for name, value in sorted(getattr(stream, "kwargs", {}).items()):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            yield name, value
    yield rows.num_shards
