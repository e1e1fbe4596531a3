"""Fingerprints, which tell whether a data set has changed."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from .open_dataset import is_saved
from .sources import files_below, image_folder, parquet_files, split_name


def data_fingerprint(source: str, split: str, rows: Any) -> str:
    """Returns a hash that changes if the files of a data set change, but not if they are moved with their times.

    It is made without reading images: from the names, sizes and times of a split's files on this disk, else from the
    `datasets` fingerprint or a stream's shard names, which include the revision. `rows` is the opened data set.
    """
    path, parts = Path(source).expanduser(), []
    if path.exists():
        split = split_name(split)
        files = list(map(Path, parquet_files(path, split)))
        folder = files[0].parent if files else path if is_saved(path) else image_folder(path, split)
        for file in files or sorted(Path(entry.path) for _, entry in files_below(folder)):
            status = file.stat() if file.exists() else None  # it may be a broken link
            parts.append((os.path.relpath(file, folder), status and (status.st_size, status.st_mtime_ns)))
    elif hasattr(getattr(rows, "dataset", rows), "_fingerprint"):
        parts.append(getattr(rows, "dataset", rows)._fingerprint)
    else:
        stream = rows._ex_iterable
        while hasattr(stream, "ex_iterable"):  # unwraps the selection of columns
            stream = stream.ex_iterable
        for name, value in sorted(getattr(stream, "kwargs", {}).items()):
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                parts.append((name, value))
        parts.append(rows.num_shards)
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


def warn_if_same_data(name: str, held_out: tuple[str, str], training: tuple[str, str]) -> None:
    """Prints a warning if two data sets on this disk, each (source, split), are the same.

    Slices count as different, and so do splits of one `datasets` folder.
    """
    for source, split in (held_out, training):
        path = Path(source).expanduser()
        if split != split_name(split) or not path.exists() or (path / "dataset_dict.json").is_file():
            return
    if data_fingerprint(*held_out, None) == data_fingerprint(*training, None):
        print(f"WARNING: {name} holds the training images, so its figures are not of held-out images", file=sys.stderr)
