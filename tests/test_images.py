"""Reading image files: every bad file is one clear ValueError that names it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffae_hub.images import read_image, read_image_bytes


def png_bytes(size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def bomb_bytes() -> bytes:
    """A valid PNG of a few hundred bytes that announces 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_reads_an_intact_file(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png_bytes())
    expected = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(read_image(path)), expected)
    np.testing.assert_array_equal(np.asarray(read_image_bytes(png_bytes(), "row 7")), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("folder", "is a folder"),
        (b"", "none that Pillow knows"),
        (b"This is a text file, whatever its name says.", "none that Pillow knows"),
        (png_bytes()[:-700], "cannot be decoded"),
        (png_bytes()[:200] + b"\xff" * 50 + png_bytes()[250:], "cannot be decoded"),
        (bomb_bytes(), "at most 89,000,000 pixels"),
    ],
    ids=["missing", "folder", "empty", "text", "truncated", "corrupt", "bomb"],
)
def test_bad_files(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "picture.png"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_image(path)
    assert "picture.png" in str(caught.value)
    if isinstance(content, bytes):
        with pytest.raises(ValueError, match=message) as caught:
            read_image_bytes(content, "row 7")
        assert "row 7" in str(caught.value)


@pytest.mark.parametrize(("height", "allowed"), [(8_900, True), (8_901, False), (9_600, False)])
def test_the_limit_is_the_one_that_is_stated(height: int, allowed: bool) -> None:
    buffer = io.BytesIO()
    Image.new("1", (10_000, height)).save(buffer, "PNG")
    if allowed:
        assert read_image_bytes(buffer.getvalue(), "picture").size == (10_000, height)
    else:
        with pytest.raises(ValueError, match="picture has more"):
            read_image_bytes(buffer.getvalue(), "picture")


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_image("a" * 5000)


def test_truncated_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(ValueError, match=r"photo\.jpg cannot be decoded"):
        read_image(path)
