"""Paths as users write them; files and folders that appear whole or not at all: written aside, then renamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image


SETTINGS = "settings.json"


def user_path(text: str) -> Path:
    """A path with `~` for the home folder; as it stands where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, under which the body writes a file; it replaces `path` at the end.

    If the body ends with an exception, nothing of it is left, and what `path` held before stays.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file; see [`new_file`]."""
    with new_file(path) as temporary:
        temporary.write_text(text)


def write_png(path: Path, picture: Image.Image, compress_level: int = 6) -> None:
    """Writes a PNG file; see [`new_file`]."""
    with new_file(path) as temporary:
        picture.save(temporary, "PNG", compress_level=compress_level)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes its place at the end; an exception leaves `path` as it was.

    If `path` is a link to a folder, the folder is replaced and the link stays.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed while it wrote
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            doomed = path.with_name(f".{path.name}.deleted")
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            try:
                temporary.rename(path)
            except BaseException:
                doomed.rename(path)
                raise
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_output(output: Path, *sources: str | None, argument: str = "output") -> None:
    """Refuses an output that is a file or lies inside a folder of data, whose images its own would join.

    Args:
        output: The folder to write.
        sources: Data sets: folders, or names that are none.
        argument: What the user calls the output.

    Raises:
        ValueError: Names the argument.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{argument} must be a folder, got the file {output}")
    for folder in (user_path(source) for source in sources if source is not None):
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{argument} must lie outside the folder of the data, {folder}, got {output}")


def keep_settings(path: Path, wanted: Mapping[str, Any], what: str, write: bool = True) -> None:
    """Writes the settings that the files of a folder depend on, or checks them against those it was made with.

    Args:
        path: The JSON file of the settings, in that folder.
        wanted: The settings, as JSON values.
        what: What the folder holds, for the message.
        write: Whether to write them where the folder has none.

    Raises:
        ValueError: If the folder was made with others.
    """
    wanted = json.loads(json.dumps(dict(wanted)))
    if not path.is_file():
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        found = json.loads(path.read_text())
        different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"output must be a new folder or hold {what}; {path} is of something else: {error}") from error
    if different:
        key = different[0]
        raise ValueError(
            f"output must be a new folder or hold {what} of the same settings; {path.parent} has "
            f"{key}={found.get(key)!r}, got {wanted.get(key)!r}"
        )


def check_new_or_continued(folder: Path, what: str) -> None:
    """Refuses a folder of other files. For the first of several processes, while the others wait.

    Args:
        folder: The output.
        what: What it may hold already, for the message.

    Raises:
        ValueError: If the folder has files but no settings.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SETTINGS).is_file():
        raise ValueError(f"output must be a new or empty folder, or {what} to continue, got {folder}")


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """A file of ours that holds a JSON object with these keys.

    Raises:
        ValueError: If it does not, as after editing by hand; the message names the file.
    """
    try:
        found = json.loads(path.read_text())
        missing = [key for key in keys if key not in found]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} must hold a JSON object: {error}") from error
    if missing or not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object with {', '.join(keys)}, got none of {missing}")
    return found
