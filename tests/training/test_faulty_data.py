"""Images that cannot be read, and crops that are not for them, end a run with one line, or are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from .runner import arguments, run, write_images


def test_unreadable_image_stops_or_is_skipped(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", count=12)
    (folder / "007.png").write_bytes(b"broken")
    code, text = run(arguments(folder, tmp_path / "stops", training_examples=32))
    assert code == 1
    assert "007.png" in text.splitlines()[-1]
    assert "Traceback" not in text
    for name, streaming in (("skips", ()), ("streams", ("--streaming",))):  # 4 epochs
        flags = ("--skip-bad-images", *streaming)
        code, text = run(arguments(folder, tmp_path / name, *flags, training_examples=48))
        assert code == 0, text
        assert text.count("007.png") == 1
        assert "\n1 unreadable images were skipped" in text


@pytest.mark.parametrize("streaming", [(), ("--streaming",)], ids=["random access", "streaming"])
def test_nothing_readable(tmp_path: Path, streaming: tuple[str, ...]) -> None:
    folder = write_images(tmp_path / "images", count=3)
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    code, text = run(arguments(folder, tmp_path / "run", "--skip-bad-images", "--num-workers=1", *streaming))
    assert code == 1, text
    assert "image" in text.splitlines()[-1]
    assert "Traceback" not in text


def test_a_crop_that_is_not_for_these_images(image_folder: Path, tmp_path: Path) -> None:
    flags = ("--crop=d2c", "--skip-bad-images", "--num-workers=1")
    code, text = run(arguments(image_folder, tmp_path / "run", *flags))
    assert code == 2, text
    assert "crop" in text.splitlines()[-1]
    assert "Traceback" not in text
