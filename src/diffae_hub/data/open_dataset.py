"""Opening a data set: a folder of images, parquet files, a folder saved by `datasets`, or one on the Hub.

Images stay encoded: only `images.py` decodes them, and only the formats on its list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..network import check_hub_answers, hub_requests
from . import sources
from .sources import split_name

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# Shards of a folder's stream, which are shuffled: see `streaming.py`.
_FOLDER_SHARDS = 256


@dataclass
class ImageRows(Sequence):
    """The rows `{"path": ..., "bytes": ...}` of a data set's image column; `bytes` is None for files."""

    dataset: Dataset
    column: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return image_of(self.dataset[index], self.column, index)


def image_of(row: Mapping[str, Any], column: str, index: int | str) -> dict[str, Any]:
    """Returns `{"path": ..., "bytes": ...}` of a row. Without a path, the row number is its name in messages."""
    image = row[column] or {}
    return {"path": image.get("path") or f"row {index}", "bytes": image.get("bytes")}


def load_rows(
    source: str, split: str = "train", image_column: str = "image", columns: Sequence[str] = ()
) -> Sequence[Mapping[str, Any]]:
    """Opens a data set, see [`open_dataset`], for random access. Raises ValueError if it has no rows.

    `columns` matter only for their rows: with them, a folder has the rows of its metadata files.
    """
    rows = ImageRows(open_dataset(source, split, image_column, False, columns), image_column)
    if not len(rows):
        raise ValueError(f"dataset must hold at least one image, got none in split {split!r} of {source!r}")
    return rows


def open_dataset(
    source: str, split: str, image_column: str, streaming: bool, columns: Sequence[str] = ()
) -> Dataset | IterableDataset:
    """Opens a data set with its images left undecoded.

    Args:
        source: A folder of images, a parquet file, a folder of them, a folder of `save_to_disk` or a Hub dataset.
        split: Name of the split, without a slice when streaming: see [`~diffae_hub.data.sources.image_folder`] and
            [`~diffae_hub.data.sources.parquet_files`].
        image_column: Column of the images. For a folder of images any name will do; with metadata files, "image".
        streaming: Whether to read the data while training, without a copy on the disk.
        columns: Columns to keep with the images. For a folder of images they come from metadata files (metadata.csv,
            .jsonl or .parquet, by `file_name`); without such files, "label" is the subfolder of an image.
    """
    path, name = Path(source).expanduser(), split_name(split)
    if streaming and split != name:
        raise ValueError(f"split must be a name without a slice when streaming, got {split!r}")
    if path.exists():
        dataset = _open_local(path, name, image_column, streaming, columns)
        if split != name:
            dataset = dataset.select(_rows_of_slice(split, len(dataset)))
    else:
        dataset = _open_on_hub(source, split, streaming)
    return _undecoded(dataset, image_column, columns)


def is_saved(path: Path) -> bool:
    """Whether a folder was made by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _open_local(
    path: Path, split: str, image_column: str, streaming: bool, columns: Sequence[str]
) -> Dataset | IterableDataset:
    import datasets

    if files := sources.parquet_files(path, split):
        return _load("parquet", files, streaming)
    if is_saved(path):
        for _, entry in sources.files_below(path):
            sources.check_regular_file(entry.path)
        with _naming(path):
            dataset = datasets.load_from_disk(str(path))
        if isinstance(dataset, datasets.DatasetDict):
            if split not in dataset:
                raise ValueError(f"split must be one of {sorted(dataset)}, got {split!r}")
            dataset = dataset[split]
        return dataset.to_iterable_dataset() if streaming else dataset
    if not path.is_dir():
        raise ValueError(f"dataset must be a folder, a .parquet file or the name of a Hub dataset, got the file {path}")
    folder = sources.image_folder(path, split)
    paths = sources.image_files(folder)
    metadata = sorted(entry.path for _, entry in sources.files_below(folder) if entry.name in sources.METADATA)
    if columns and metadata:  # only the images that they list count
        for file in metadata:
            sources.check_regular_file(file)
        return _load("imagefolder", [*paths, *metadata], streaming)
    features: dict[str, Any] = {image_column: datasets.Image(decode=False)}
    rows: dict[str, list] = {image_column: [{"path": path, "bytes": None} for path in paths]}
    if "label" in columns:
        parts = [Path(path).relative_to(folder).parts for path in paths]
        if bare := [path for path, names in zip(paths, parts, strict=True) if len(names) == 1]:
            raise ValueError(f"columns must not have 'label' if an image, {bare[0]}, is in no subfolder")
        rows["label"] = [names[0] for names in parts]
        features["label"] = datasets.ClassLabel(names=sorted(set(rows["label"])))
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    return dataset.to_iterable_dataset(min(len(paths), _FOLDER_SHARDS)) if streaming else dataset


def _load(kind: str, files: list[str], streaming: bool) -> Dataset | IterableDataset:
    import datasets
    from datasets.data_files import DataFilesList

    with _naming(files[0]):
        # Not as patterns: each with a bracket would search its folder. The times tell `datasets` of a changed file.
        found = DataFilesList(files, [(file, str(Path(file).stat().st_mtime_ns)) for file in files])
        return datasets.load_dataset(kind, data_files={"train": found}, split="train", streaming=streaming)


def _open_on_hub(source: str, split: str, streaming: bool) -> Dataset | IterableDataset:
    import datasets
    from huggingface_hub.utils import validate_repo_id

    with hub_requests(f"dataset must be a folder, a parquet file or a Hub dataset, got {source!r}"):
        validate_repo_id(source)
        if not datasets.config.HF_HUB_OFFLINE:
            check_hub_answers()
        return datasets.load_dataset(source, split=split, streaming=streaming)


def _rows_of_slice(split: str, count: int) -> range:
    """Returns the rows that a split such as `"train[:90%]"` selects from the `count` rows of the split."""
    import datasets

    try:
        (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({split_name(split): count})
    except ValueError as error:
        raise ValueError(f"split must be a name, with or without a slice ('train[:90%]'), got {split!r}") from error
    return range(part.from_, part.to)


def _undecoded(
    dataset: Dataset | IterableDataset, image_column: str, columns: Sequence[str]
) -> Dataset | IterableDataset:
    """Selects the image column, which `datasets` must not decode, and `columns`, which must not need decoding."""
    import datasets
    from datasets.features.features import require_decoding

    names, features = dataset.column_names, dataset.features or {}
    if names is not None and image_column not in names:
        raise ValueError(f"image_column must be one of {names}, got {image_column!r}")
    # Marked as images, or plain bytes with or without a path.
    with_images = [
        name
        for name, kind in features.items()
        if isinstance(kind, datasets.Image)
        or (isinstance(kind, dict) and "bytes" in kind)
        or getattr(kind, "dtype", None) in ("binary", "large_binary")
    ]
    if features and image_column not in with_images:
        raise ValueError(f"image_column must hold images, as {with_images} do, got {image_column!r}")
    if missing := [name for name in columns if names is not None and name not in names]:
        raise ValueError(f"columns must be among {names}, got {missing}")
    if encoded := [name for name in columns if name in features and require_decoding(features[name])]:
        raise ValueError(f"columns must hold numbers, texts or lists of these, got {encoded}")
    return dataset.select_columns([image_column, *columns]).cast_column(image_column, datasets.Image(decode=False))


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Turns any error of a library into a ValueError that names the file or folder: each format has its own errors."""
    try:
        yield
    except Exception as error:
        told = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"dataset must hold files that can be read, got {str(path)!r}: {told}") from error
