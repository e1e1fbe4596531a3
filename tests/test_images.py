"""Reading image files: every bad file is one clear ValueError that names it."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffae_hub.images import FORMATS, Tiles, film_strip, image_grid, read_image, to_pil, to_uint8

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def encoded(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind)
    return buffer.getvalue()


def bomb_bytes() -> bytes:
    """A valid PNG of a few hundred bytes that announces 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"This is a text file, whatever its name says.",
        encoded()[:-700],
        encoded()[:200] + b"\xff" * 50 + encoded()[250:],
        bomb_bytes(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",  # Pillow starts Ghostscript
        encoded("TGA"),
        encoded("ICO"),
    ],
    ids=["empty", "text", "truncated", "corrupt", "bomb", "eps", "tga", "ico"],
)
def test_bad_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"picture\.png"):
        read_image(path)
    with pytest.raises(ValueError, match="row 7"):
        read_image("row 7", content)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path, tmp_path / "missing.png", "a" * 5000):
        with pytest.raises(ValueError, match=str(path)):
            read_image(path)


def test_pillow_s_limit_on_pixels_is_an_error() -> None:
    """Alone Pillow only warns, up to twice the limit."""
    for height in (8_948, 18_000):
        buffer = io.BytesIO()
        Image.new("1", (10_000, height)).save(buffer, "PNG")
        with pytest.raises(ValueError, match="89,478,485"):
            read_image("picture", buffer.getvalue())


@pytest.mark.parametrize("kind", FORMATS)
def test_every_allowed_format_is_read_whatever_the_name(tmp_path: Path, kind: str) -> None:
    picture = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    try:
        picture.save(tmp_path / "picture.txt", kind)
    except (KeyError, OSError):
        pytest.skip(f"Pillow here does not write {kind}")
    assert abs(np.asarray(read_image(tmp_path / "picture.txt").convert("RGB")).astype(int) - 200).max() <= 2


def test_first_picture_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_eight_bit_pixels_are_clamped_and_rounded() -> None:
    values = torch.tensor([-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 254.6 / 255, 1.0, 2.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255, 255]
    assert to_pil(torch.zeros(1, 2, 3)).mode == "L"


@pytest.mark.parametrize(("height", "width", "overlap"), [(16, 16, 4), (40, 23, 4), (33, 64, 0), (17, 16, 8)])
def test_tiles_cover_a_picture_and_join_to_it(height: int, width: int, overlap: int) -> None:
    tiles, pictures = Tiles(height, width, 16, overlap), torch.rand(2, 3, height, width)
    cut = tiles.split(pictures)
    assert cut.shape == (2 * len(tiles), 3, 16, 16)
    torch.testing.assert_close(tiles.join(cut), pictures)
    starts = sorted({top for top, _ in tiles.corners})
    assert (starts[0], starts[-1]) == (0, height - 16)
    assert all(16 - (b - a) >= overlap for a, b in zip(starts, starts[1:], strict=False))


def test_tiles_fade_into_each_other() -> None:
    """Two flat tiles of different brightness: from one to the other in small steps."""
    tiles = Tiles(16, 24, 16, 8)
    joined = tiles.join(torch.cat([torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)]))
    steps = joined[0, 0, 8].diff()
    assert (steps >= -1e-6).all()
    assert steps.max() < 0.2
    assert (joined[0, 0, 8, 0], joined[0, 0, 8, -1]) == (0, 1)


def test_grid_and_strip() -> None:
    pictures = torch.rand(5, 3, 300, 260)
    grid = image_grid(pictures, columns=3)
    assert grid.size == (3 * 260 + 2 * 8, 2 * 300 + 8)
    np.testing.assert_array_equal(np.asarray(grid)[308:, 268:528], np.asarray(to_pil(pictures[4])))
    assert film_strip(pictures).size == (5 * 260 + 4 * 8, 300)
