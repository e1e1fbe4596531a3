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

    It is made of the names, sizes and times of all files of the split. Of a Hub data set it is made of the fingerprint
    of `datasets`, of its stream of the shards' names, which hold the revision.

    Args:
        source: As in [`~diffae_hub.data.open_dataset.open_dataset`].
        split: Its split; a slice makes no difference.
        rows: The opened data set, of `load_rows` or `open_dataset`.
    """
    path = local_path(source)
    parts = _local_parts(path, split_name(split)) if path.exists() else _hub_parts(rows)
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


def _local_parts(path: Path, split: str) -> Iterator[Any]:
    if files := parquet_files(path, split):
        folder = Path(files[0]).parent
    else:
        folder = path if is_saved(path) else image_folder(path, split)
        files = sorted(entry.path for _, entry in files_below(folder))
    for file in map(Path, files):
        status = file.stat() if file.exists() else None  # it may be a link to nothing
        yield os.path.relpath(file, folder), status and (status.st_size, status.st_mtime_ns)


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
