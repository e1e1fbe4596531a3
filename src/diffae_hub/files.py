"""Writes files and folders that appear whole or not at all (written aside, then renamed), and checks outputs."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from .network import CONFIGURATIONS, INDEX, WEIGHTS

SETTINGS = "settings.json"


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives the body a temporary path to write a file to, which replaces `path` at the end.

    After an exception the temporary file is removed, and `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file; see [`new_file`]. Bytes that are no text, as in some file names, become "?"."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_png(path: Path, picture: Image.Image, compress_level: int = 6) -> None:
    """Writes a PNG file, and makes its folder if needed; see [`new_file`]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        picture.save(temporary, "PNG", compress_level=compress_level)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives the body a temporary folder, which replaces `path` at the end. An exception leaves `path` as it was.

    If `path` is a link to a folder, the folder is replaced and the link stays.
    """
    path = path.resolve()
    temporary, doomed = (path.with_name(f".{path.name}.{end}") for end in ("partial", "deleted"))
    for folder in (temporary, doomed):  # from a process that was killed while writing
        shutil.rmtree(folder, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rename(doomed)
        try:
            temporary.rename(path)
        except BaseException:
            if doomed.exists():
                doomed.rename(path)
            raise
    finally:
        for folder in (temporary, doomed):
            shutil.rmtree(folder, ignore_errors=True)


def check_output(output: Path, *sources: str | None) -> None:
    """Refuses an output that is a file or is inside a data folder, because its images would join the data.

    `sources` are data sets: folders, or other names, which are ignored.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder, got the file {output}")
    for folder in (Path(source).expanduser() for source in sources if source is not None):
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"output must be outside the data folder {folder}, got {output}")


def check_output_folder(output: Path, overwrite: bool, marker: str, *inputs: Path) -> None:
    """Refuses an output that holds files, unless `overwrite` is set and one of them is `marker`.

    `inputs` are files and folders that are read, so they must not be inside the output.
    """
    if output.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(f"output must not be or contain the current folder, since it is replaced, got {output}")
    empty = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not empty and not (overwrite and (output / marker).is_file()):
        raise ValueError(f"output must be a new or empty folder, or one with a {marker} to overwrite, got {output}")
    for path in inputs:
        if path.resolve().is_relative_to(output.resolve()):
            raise ValueError(f"output must not contain {path}, which is read, got {output}")


def check_pipeline_output(output: Path, *inputs: Path) -> None:
    """Refuses to replace an output that holds more than a pipeline: a card or notes would be lost."""
    check_output_folder(output, True, INDEX, *inputs)
    if (output / INDEX).is_file():
        own = {INDEX, "pipeline.py", "diffae_hub.py", *CONFIGURATIONS}
        files = [path for path in output.rglob("*") if not path.is_dir() and not path.name.startswith(WEIGHTS)]
        if others := sorted(path.name for path in files if path.name not in own):
            raise ValueError(f"output must hold only a pipeline to replace, got {output} with {others[0]}")


def check_not_replaced(images: Iterable[Path], written: Iterable[Path]) -> None:
    """Refuses to write a picture over an image that is read."""
    if replaced := {path.resolve() for path in images} & {path.resolve() for path in written}:
        raise ValueError(f"output must not replace an image that is read, got {min(replaced)}")


def keep_settings(path: Path, wanted: Mapping[str, Any], what: str, write: bool = True) -> None:
    """Writes the settings that a folder's files (`what`) depend on, or checks them against the settings there.

    `path` is their JSON file. The first one in a folder is `SETTINGS`; a folder of other files is refused.
    `write` says whether to write missing settings, as the first of several processes does while the others wait.
    """
    wanted, folder = json.loads(json.dumps(dict(wanted))), path.parent
    if not path.is_file():
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()) and not (folder / SETTINGS).is_file():
                raise ValueError(f"output must be a new or empty folder, or {what} to continue, got {folder}")
            write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    found = read_json(path)
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            raise ValueError(
                f"output must be a new folder or hold {what} with the same settings; {folder} has "
                f"{key}={found.get(key)!r}, got {wanted.get(key)!r}"
            )


def append_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends records to a file with one JSON object per line."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")  # a killed process may have left half a line
        file.writelines(json.dumps(record).encode() + b"\n" for record in records)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the records of such a file, without half lines; none if there is no file."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Reads a JSON object with these keys from a regular file. Otherwise raises ValueError, which names the file."""
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise ValueError(f"{path} must be a regular file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold a JSON object: {error}") from error
    if not isinstance(found, dict) or not found.keys() >= set(keys):
        raise ValueError(f"{path} must hold a JSON object{f' with the keys {[*keys]}' if keys else ''}")
    return found
