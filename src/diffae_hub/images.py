"""Pictures: reading files, PIL images of any mode as floats, tiles, joining, showing results beside originals."""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

RESIZE_MODES = ("crop", "stretch", "none")

# Just below Pillow's own limit, between once and twice which it only warns: such a picture is refused here as well.
MAX_PIXELS = 89_000_000

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pictures are shown at least this large, each pixel as a square: a 32x32 thumbnail is otherwise a dot on a screen.
_SHOWN_SIZE = 256
_GAP = 8


def read_image(path: str | Path) -> Image.Image:
    """Reads and fully decodes an image file.

    Args:
        path: The file.

    Returns:
        The decoded picture, in the mode the file has.

    Raises:
        ValueError: If the path is missing or a folder, the file is not an image, is damaged or truncated, or has more
            than `MAX_PIXELS` pixels. The message names the file.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:  # a name that is too long, too
        raise ValueError(f"image must be the path of an image file, but {path} does not exist") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"image must be the path of an image file, but {path} is a folder")
    return _decoded(path, path)


def read_image_bytes(content: bytes, name: str) -> Image.Image:
    """Fully decodes an image file that is in memory, under the same limit as [`read_image`].

    Args:
        content: The file's bytes.
        name: What to call it in an error.

    Returns:
        The decoded picture, in the mode the file has.

    Raises:
        ValueError: As [`read_image`]; the message has the name.
    """
    return _decoded(io.BytesIO(content), name)


def _decoded(source: Path | io.BytesIO, name: str | Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                return image.copy()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"image must have at most {MAX_PIXELS:,} pixels, but {name} has more") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"image must be an image file, but the content of {name} is none that Pillow knows") from error
    except Exception as error:  # Pillow's decoders raise almost anything on bytes that are damaged
        raise ValueError(f"image must be an intact image file, but {name} cannot be decoded: {error}") from error


def exif_orientation(image: Image.Image) -> int:
    """How a picture is to be turned, 1 (not at all) to 8; 1 also where the EXIF block is broken."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # SyntaxError, struct.error and others; the pixels are intact
        return 1
    return orientation if orientation in _UPRIGHT else 1


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF block says, without that block, or unchanged.

    Unlike `ImageOps.exif_transpose`, it needs nothing of the block but the orientation to be intact.
    """
    orientation = exif_orientation(image)
    if orientation == 1:
        return image
    image = image.transpose(_UPRIGHT[orientation])
    for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):  # would turn it again
        image.info.pop(key, None)
    return image


def _convert_mode(image: Image.Image, channels: int) -> Image.Image:
    """To "L" or "RGB", explicitly: EXIF orientation applied, transparency on white, 16-bit scaled to 8-bit."""
    if 0 in image.size:
        raise ValueError(f"images must have at least one pixel, got a PIL image of size {image.size}")
    try:
        image.load()  # a file is decoded only now
    except Exception as error:  # Pillow's decoders raise almost anything on bytes that are damaged
        raise ValueError(f"images must be intact, got a PIL image that cannot be decoded: {error}") from error
    image = upright(image)
    if image.mode == "I":  # 32-bit integers, as which some versions of Pillow read 16-bit files
        lowest, highest = image.getextrema()
        if lowest < 0 or highest > 65535:
            raise ValueError(
                "images must be in 0 .. 65535 as PIL images of mode 'I', whose range is unknown otherwise, got values "
                f"in {lowest} .. {highest}; pass a numpy array in [0, 1]"
            )
    if image.mode.startswith("I;16") or image.mode == "I":
        array = np.asarray(image, dtype=np.float64)  # 16-bit grayscale; Pillow would clip it at 255
        image = Image.fromarray((array / 257.0).round().clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError(
            "images must not be PIL images of mode 'F', whose range is unknown; pass a numpy array in [0, 1]"
        )
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow converts it to
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def pil_to_array(
    image: Image.Image, channels: int = 3, size: tuple[int, int] | None = None, resize_mode: str = "crop"
) -> np.ndarray:
    """A PIL image of any mode as floats.

    EXIF orientation is applied, transparency is composited on white, palette, CMYK, grayscale and 16-bit pictures are
    converted.

    Args:
        image: The picture.
        channels: 1 (grayscale) or 3 (RGB).
        size: (width, height) of the result; None keeps the picture's.
        resize_mode: How to reach `size`: "crop" cuts the centre to the aspect ratio, then resizes; "stretch" resizes
            each axis by itself; "none" demands that the picture has it.

    Returns:
        (height, width, channels), float32, in [0, 1].

    Raises:
        ValueError: If an argument is not allowed, or with `resize_mode="none"` the size differs.
    """
    if channels not in (1, 3):
        raise ValueError(f"images must be tensors or arrays for a model of {channels} channels; PIL serves 1 or 3")
    if resize_mode not in RESIZE_MODES:
        raise ValueError(f"resize_mode must be one of {RESIZE_MODES}, got {resize_mode!r}")
    image = _convert_mode(image, channels)
    if size is not None and image.size != tuple(size):
        if resize_mode == "none":
            raise ValueError(f"images must be {size[0]}x{size[1]} pixels with resize_mode='none', got {image.size}")
        if resize_mode == "crop":
            image = ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
        else:
            image = image.resize(size, Image.Resampling.LANCZOS)
    array = np.asarray(image, dtype=np.float32) / 255.0
    return array[:, :, None] if array.ndim == 2 else array


def tile_grid(picture: Image.Image, tiles_along_shorter_side: int) -> tuple[int, int]:
    """Rows and columns of tiles of a picture, as it is to be shown (EXIF orientation).

    Args:
        picture: Any mode.
        tiles_along_shorter_side: Tiles along the shorter side; along the longer as many as fit. 1 gives a single tile.
    """
    width, height = picture.size
    if exif_orientation(picture) >= 5:  # turned by 90 degrees
        width, height = height, width
    count, shorter = tiles_along_shorter_side, min(width, height)
    rows, columns = (max(1, count * side // shorter) if count > 1 else 1 for side in (height, width))
    return rows, columns


def split_into_tiles(
    picture: Image.Image, encoder_config: Any, tiles_along_shorter_side: int
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Resizes and centre-crops a picture to whole tiles of the model's size, and cuts it.

    Args:
        picture: Any mode.
        encoder_config: Gives `sample_size` and `in_channels`.
        tiles_along_shorter_side: As in [`tile_grid`]; the single tile of 1 is cropped from the centre.

    Returns:
        The tiles, (rows * columns, C, size, size) in [-1, 1], float32, row by row, and (rows, columns).
    """
    size, (rows, columns) = encoder_config.sample_size, tile_grid(picture, tiles_along_shorter_side)
    array = pil_to_array(picture, channels=encoder_config.in_channels, size=(columns * size, rows * size))
    image = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1) * 2 - 1
    tiles = image.unfold(1, size, size).unfold(2, size, size)  # (C, rows, columns, size, size)
    return tiles.permute(1, 2, 0, 3, 4).reshape(rows * columns, -1, size, size).contiguous(), (rows, columns)


def join_tiles(tiles: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Tiles (rows * columns, C, size, size), row by row -> one picture (C, rows * size, columns * size)."""
    rows, columns = grid
    _, channels, size, _ = tiles.shape
    return tiles.reshape(rows, columns, channels, size, size).permute(2, 0, 3, 1, 4).reshape(
        channels, rows * size, columns * size
    )  # fmt: skip


def to_pil(image: torch.Tensor) -> Image.Image:
    """Picture (C, H, W) in [0, 1], C of 1 or 3 -> PIL."""
    array = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)


def _shown(image: torch.Tensor) -> torch.Tensor:
    factor = max(1, -(-_SHOWN_SIZE // max(image.shape[-2:])))
    return image.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def film_strip(images: torch.Tensor | list[torch.Tensor]) -> Image.Image:
    """Pictures of equal size (C, H, W) in [0, 1], left to right with white gaps, small ones enlarged."""
    shown = [_shown(image) for image in images]
    gap = torch.ones(shown[0].shape[0], shown[0].shape[1], _GAP)
    pieces = [piece for image in shown for piece in (image, gap)][:-1]
    return to_pil(torch.cat(pieces, dim=-1))


def side_by_side(original: torch.Tensor, reconstruction: torch.Tensor) -> Image.Image:
    """Original, reconstruction and their absolute difference times 5, left to right, each (C, H, W) in [0, 1]."""
    difference = ((original - reconstruction).abs() * 5).clamp(0, 1)
    return film_strip([original, reconstruction, difference])
