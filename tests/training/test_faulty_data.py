"""Images that cannot be read end a run with one line, or are skipped."""

from __future__ import annotations

from pathlib import Path

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
