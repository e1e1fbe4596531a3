"""Files and folders that appear whole or not at all, written aside, then renamed; which places are refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .network import CONFIGURATIONS, INDEX, WEIGHTS

if TYPE_CHECKING:
    from PIL import Image

SETTINGS = "settings.json"


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
    """Writes a text file; see [`new_file`]. What is no text, as in names of files, becomes question marks."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_png(path: Path, picture: Image.Image, compress_level: int = 6) -> None:
    """Writes a PNG file, in a new folder if need be; see [`new_file`]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        picture.save(temporary, "PNG", compress_level=compress_level)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes its place at the end; an exception leaves `path` as it was.

    If `path` is a link to a folder, the folder is replaced and the link stays.
    """
    path = path.resolve()
    temporary, doomed = (path.with_name(f".{path.name}.{end}") for end in ("partial", "deleted"))
    for folder in (temporary, doomed):  # of a process that was killed while it wrote
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
    """Refuses an output that is a file or lies inside a folder of data, whose images its own would join.

    `sources` are data sets, folders or names that are none.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder, got the file {output}")
    for folder in (Path(source).expanduser() for source in sources if source is not None):
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"output must lie outside the folder of the data, {folder}, got {output}")


def check_output_folder(output: Path, overwrite: bool, marker: str, *inputs: Path) -> None:
    """Refuses an output that holds files, or with `overwrite` other than a folder with the file `marker`.

    `inputs` are files and folders that are read, and hence must not lie in it.
    """
    if output.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(f"output must not be the present folder, or hold it, since it is replaced, got {output}")
    empty = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not empty and not (overwrite and (output / marker).is_file()):
        raise ValueError(f"output must be a new or empty folder, or one with a {marker} to overwrite, got {output}")
    for path in inputs:
        if path.resolve().is_relative_to(output.resolve()):
            raise ValueError(f"output must be another folder than that of {path}, got {output}")


def check_pipeline_output(output: Path, *inputs: Path) -> None:
    """Refuses an output that holds more than a pipeline, which is replaced: a card, or notes, would be lost."""
    check_output_folder(output, True, INDEX, *inputs)
    if (output / INDEX).is_file():
        own = {INDEX, "pipeline.py", "diffae_hub.py", *CONFIGURATIONS}
        files = [path for path in output.rglob("*") if not path.is_dir() and not path.name.startswith(WEIGHTS)]
        if others := sorted(path.name for path in files if path.name not in own):
            raise ValueError(f"output must hold nothing but a pipeline to replace, got {output} with {others[0]}")


def check_not_replaced(images: Iterable[Path], written: Iterable[Path]) -> None:
    """Refuses to write a picture in place of one that is read."""
    if replaced := {path.resolve() for path in images} & {path.resolve() for path in written}:
        raise ValueError(f"output must not replace an image that is read, got {min(replaced)}")


def keep_settings(path: Path, wanted: Mapping[str, Any], what: str, write: bool = True) -> None:
    """Writes the settings that the files of a folder (`what`) depend on, or checks them against those it has.

    `path` is their JSON file in that folder, the first one the file `SETTINGS`: a folder of other files is refused.
    `write` says whether to write them where there are none, as the first of several processes, while the others wait.
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
                f"output must be a new folder or hold {what} of the same settings; {folder} has "
                f"{key}={found.get(key)!r}, got {wanted.get(key)!r}"
            )


def append_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds records to a file of one JSON object a line."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")  # after half a line of a killed process the next one stands alone
        file.writelines(json.dumps(record).encode() + b"\n" for record in records)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of such a file, but for half lines; none if there is no such file."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """A regular file that must hold a JSON object with these keys; a ValueError that names it, if it does not."""
    if path.exists() and not path.is_file():  # a pipe or a device would be read for ever
        raise ValueError(f"{path} must be a regular file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold a JSON object: {error}") from error
    if not isinstance(found, dict) or not found.keys() >= set(keys):
        raise ValueError(f"{path} must hold a JSON object{f' with the keys {[*keys]}' if keys else ''}")
    return found
