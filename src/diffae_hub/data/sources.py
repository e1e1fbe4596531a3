"""Finding data on the disk: the image files or the parquet files that a split names.

The rules of `datasets` do not work for images: it takes `photo test 1.png` for a test split and silently leaves out
the other images of the folder, and linked folders, too.
"""

import os
import re
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Not read, but worth a warning, because users may expect it.
_OTHER_IMAGE_SUFFIXES = (".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".tga")
# Files with further columns of the images beside them; they hold no images.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# Names of split folders -> the split that they mean.
_SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
_SPLITS |= {"val": "validation", "dev": "validation", "test": "test", "testing": "test", "eval": "test"}


def files_below(folder: str | Path) -> Iterator[tuple[str, os.DirEntry]]:
    """Yields the visible files below a folder, each with the real path of its parent folder.

    Linked folders are followed, but each real folder is visited once, under its own name if it is below `folder`. Links
    to a folder that contains `folder` are not followed.
    """
    start = Path(folder).resolve()
    waiting, visited = deque([os.fspath(folder)]), set()
    while waiting:
        parent = waiting.popleft()
        real_parent = os.path.realpath(parent)
        if real_parent in visited:
            continue
        visited.add(real_parent)
        with os.scandir(parent) as entries:
            visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        for entry in visible:
            if not (Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()):
                yield real_parent, entry
            elif not entry.is_symlink():
                waiting.appendleft(entry.path)
            elif not start.is_relative_to(os.path.realpath(entry.path)):
                waiting.append(entry.path)  # after all real folders


def check_regular_file(path: str | Path) -> None:
    """Refuses pipes, devices and sockets: reading them could take for ever. Broken links are not refused."""
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"dataset must consist of regular files, got {path}: a pipe, a device or a socket")


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def image_files(folder: Path) -> list[str]:
    """Returns the image files below a folder, sorted, each real file once. Broken links stay, as unreadable images."""
    files, links, other = {}, {}, 0  # by their real paths
    for real_parent, entry in files_below(folder):
        other += entry.name.lower().endswith(_OTHER_IMAGE_SUFFIXES)
        if not _is_image_name(entry.name):
            continue
        if entry.is_file(follow_symlinks=False):
            files[f"{real_parent}/{entry.name}"] = entry.path
        else:
            check_regular_file(entry.path)
            links.setdefault(os.path.realpath(entry.path), entry.path)
    paths = sorted((links | files).values())
    for path in paths:
        if path.encode("utf-8", "replace").decode() != path:
            raise ValueError(f"dataset must have file names in UTF-8, got {path!r}")
    if not paths:
        raise ValueError(f"dataset must hold at least one image file ({', '.join(IMAGE_SUFFIXES)}), got {folder}")
    if other:
        warnings.warn(f"{folder}: skipped {other} files that are not {', '.join(IMAGE_SUFFIXES)}", stacklevel=2)
    return paths


def image_folder(folder: Path, split: str) -> Path:
    """Returns the folder of a split's images: a subfolder if the folder is divided into splits, else itself.

    It is divided if it has subfolders named like splits and no other subfolder has images, because a class may be
    called "train". If it is not divided, all its images belong to each split with one of these names.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    splits = [name for name in names if name.lower() in _SPLITS]
    others = [name for name in names if splits and name not in splits]
    mixed = [name for name in others if any(_is_image_name(entry.name) for _, entry in files_below(folder / name))]
    meaning = _SPLITS.get(split.lower(), split)
    if splits and not mixed:
        same = [name for name in splits if split == name or _SPLITS[name.lower()] == meaning]
        if not same:
            raise ValueError(f"split must be a subfolder of {folder} or mean the same, one of {splits}, got {split!r}")
        return folder / (split if split in same else same[0])
    if meaning not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)} as {folder} is not divided, got {split!r}")
    if mixed:
        warnings.warn(f"{folder}: all images are taken, as {splits} and also {mixed[0]} have some", stacklevel=2)
    return folder


def parquet_files(path: Path, split: str) -> list[str]:
    """Returns the parquet files of a split; empty if there are none of any split.

    They are named `<split>`, `<split>-...`, `<split>_<digits>...` or `<split>.<...>`, or are in a folder named
    `<split>`, in `path` itself or, as in a copy of a Hub dataset, in its folder `data`. A single file is any split.
    """
    files = [path] if path.suffix.lower() == ".parquet" and not path.is_dir() else []
    pattern = re.compile(rf"{re.escape(split)}([-.].*|_\d.*)?", re.DOTALL)
    for folder in (path, path / "data"):
        found = {*folder.glob("*.parquet"), *(folder / (split or ".")).glob("*.parquet")}
        found = sorted(file for file in found if file.name not in METADATA and not file.name.startswith("."))
        files += [file for file in found if file.parent != folder or pattern.fullmatch(file.stem)]
        if files:
            break
        if found:
            names = [str(file.relative_to(folder)) for file in found]
            raise ValueError(f"split must name parquet files in {folder}, which are {names}, got {split!r}")
    for file in files:
        check_regular_file(file)
    return [str(file) for file in files]


def split_name(split: str) -> str:
    """Returns the name of a split without its slice: `"train"` for `"train[:90%]"`."""
    return split.partition("[")[0]
