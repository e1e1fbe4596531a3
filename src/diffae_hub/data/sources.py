"""Finding training data on the disk: the image files or the parquet files that a split names."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..files import user_path

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Not read, but worth a word: whoever has such files will think that they are.
_OTHER_IMAGE_SUFFIXES = (".avif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".tga")

# Beside images they hold columns of theirs: no data of their own, the parquet file neither.
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

# What folders of splits are called, in the order of preference among those that mean the same.
_SYNONYMS = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing", "eval"))
_SPLIT_NAMES = tuple(name for names in _SYNONYMS for name in names)


class ImageFolder(Sequence):
    """The image files below a folder, in the order of their names, as rows `{"path": ..., "bytes": None}`.

    Args:
        folder: Searched with its subfolders, also linked ones; hidden files and folders are left out. Links to files
            that do not exist are kept, as images that cannot be read. A warning gives the number of images in formats
            that are not read.

    Raises:
        ValueError: If there is no image file, or a subfolder cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.paths, other = [], 0
        for path in _files(folder):
            # Pipes and sockets are left out.
            if path.suffix.lower() in IMAGE_SUFFIXES and (path.is_file() or not path.exists()):
                self.paths.append(str(path))
            other += path.suffix.lower() in _OTHER_IMAGE_SUFFIXES
        self.paths.sort()
        if not self.paths:
            raise ValueError(f"dataset must hold at least one image file ({', '.join(IMAGE_SUFFIXES)}), got {folder}")
        if other:
            warnings.warn(
                f"{folder}: {other} files were passed over, read are {', '.join(IMAGE_SUFFIXES)} only", stacklevel=2
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"path": self.paths[index], "bytes": None}


def _files(folder: str | Path) -> Iterator[Path]:
    """All that is below a folder and no folder, without what is hidden."""
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        # A link to a folder that it lies in would be followed for ever.
        place = Path(parent).resolve()
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not place.is_relative_to(Path(parent, name).resolve())
        ]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(
        f"dataset must be a folder that can be read with its subfolders, got {error.filename}: {error.strerror}"
    ) from error


def image_folder(folder: Path, split: str) -> Path:
    """The folder that holds a split's images: a subfolder where the folder is divided into splits, else itself.

    It is divided if it has subfolders named like splits (train, training, validation, valid, val, dev, test, testing or
    eval, in any case) and there are images in no others: a class of images may be called "train". What is found in a
    folder that is divided is the subfolder of the split's own name, or of one that means the same ("val" for
    "validation"). All images of a folder that is not divided are any split with one of these names.

    Args:
        folder: Holds images.
        split: A name without a slice.

    Raises:
        ValueError: If the split does not exist, or a subfolder cannot be read.
    """
    _, names, _ = next(os.walk(folder, onerror=_refuse))
    splits = [name for name in sorted(names) if name.lower() in _SPLIT_NAMES]
    others = [name for name in sorted(names) if name not in splits and not name.startswith(".")]
    mixed = [name for name in others if splits and _holds_image_files(folder / name)]
    same = next((synonyms for synonyms in _SYNONYMS if split.lower() in synonyms), ())
    if splits and not mixed:
        for wanted in (split, *same):
            for name in splits:
                if wanted in (name, name.lower()):
                    return folder / name
        raise ValueError(f"split must be a subfolder of {folder} or mean the same, one of {splits}, got {split!r}")
    if not same:
        raise ValueError(
            f"split must be one of {', '.join(_SPLIT_NAMES)} for {folder}, which is not divided into subfolders of "
            f"these names (all images are taken), got {split!r}"
        )
    if mixed:
        warnings.warn(
            f"{folder}: all images are taken, those below {', '.join(splits)} for no splits, as there are also some "
            f"below {mixed[0]}",
            stacklevel=2,
        )
    return folder


def _holds_image_files(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in _files(folder))


def metadata_files(folder: Path) -> list[str]:
    """The files with further columns of the images below a folder."""
    return sorted(str(path) for path in _files(folder) if path.name in _METADATA)


def parquet_files(path: Path, split: str) -> list[str]:
    """The parquet files that a path stands for; empty if there are none.

    Those of a split are named `<split>`, `<split>-...`, `<split>_<digits>...` or `<split>.<...>`, or lie in a folder of
    its name. A copy of a Hub dataset has them in the folder `data`, which counts if there are none above it.

    Args:
        path: A parquet file, which is any split, or a folder.
        split: A name without a slice.

    Raises:
        ValueError: If there are files, but of other splits.
    """
    if path.is_file():
        return [str(path)] if path.suffix.lower() == ".parquet" else []
    for folder in (path, path / "data"):
        by_name = [(file.stem, file) for file in _parquet_files_in(folder)]
        by_folder = [(name, file) for name in {split, *_SPLIT_NAMES} for file in _parquet_files_in(folder / name)]
        pattern = re.compile(rf"{re.escape(split)}([-.].*|_\d.*)?", re.DOTALL)
        files = [file for name, file in by_name if pattern.fullmatch(name)]
        files += [file for name, file in by_folder if name == split]
        if files:
            return sorted(map(str, files))
        if by_name or by_folder:
            names = sorted(str(file.relative_to(folder)) for _, file in (*by_name, *by_folder))
            raise ValueError(f"split must name parquet files in {folder}, which are {names}, got {split!r}")
    return []


def _parquet_files_in(folder: Path) -> list[Path]:
    files = folder.glob("*.parquet")
    return [file for file in files if file.name not in _METADATA and not file.name.startswith(".")]


def local_path(source: str) -> Path:
    """Where a data set would be if it is on this disk, with `~` for the home folder.

    Raises:
        ValueError: If there is a folder that cannot be read.
    """
    path = user_path(source)
    try:
        if path.is_dir():
            os.scandir(path).close()  # whether it may be listed
            (path / "..").stat()  # whether what is in it may be opened
        return path
    except OSError as error:
        _refuse(error)


def split_name(split: str) -> str:
    """`"train"` of `"train"` and of `"train[:90%]"`."""
    return split.partition("[")[0]


def rows_of_slice(split: str, count: int) -> range:
    """The rows that a split such as `"train[:90%]"` stands for, of the `count` that the split has.

    Raises:
        ValueError: If it is no such text.
    """
    import datasets

    try:
        (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({split_name(split): count})
    except ValueError as error:
        raise ValueError(f"split must be a name, with or without a slice as 'train[:90%]', got {split!r}") from error
    return range(part.from_, part.to)
