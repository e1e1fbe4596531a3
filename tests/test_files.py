"""Files and folders appear whole or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffae_hub.files import new_file, new_folder, write_text


def test_a_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_text(path, "old")
    with pytest.raises(OSError, match="No space left"), new_file(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"figures.json": "old"}


def fail(folder: Path) -> None:
    (folder / "new.txt").write_text("y")
    raise FileNotFoundError


@pytest.mark.parametrize("body", [fail, Path.rmdir])  # without the new one nothing can take the old one's place
def test_a_failed_folder_leaves_the_old_one(tmp_path: Path, body: Callable[[Path], None]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("x")
    with pytest.raises(FileNotFoundError), new_folder(out) as folder:
        body(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["old.txt"]


def test_leftovers_of_a_killed_process_are_replaced(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half.txt").write_text("x")
    with new_folder(tmp_path / "out") as folder:
        (folder / "whole.txt").write_text("y")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole.txt"]
