"""Pictures: reads all image files, converts PIL images of any mode to floats, makes tiles, grids and 8-bit pixels."""

import io
import math
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

RESIZE_MODES = ("crop", "stretch", "none")

# Pillow opens many more, some by running another program (EPS). A GIF gives its first picture.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

# Pictures are shown at least this large, each pixel as a square; 32x32 pixels would be a dot on a screen.
_SHOWN_SIZE = 256
_GAP = 8


def read_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Reads and fully decodes a regular image file of one of the `FORMATS`, whatever its extension.

    `content` is the content of a file in memory; then `path` is only its name. Raises a ValueError that names the file
    if it does not exist, is not an image, is damaged or truncated, or has more pixels than Pillow allows.
    """
    # Reading a pipe or a device might never end. `Path.is_file` fails on a name that is too long.
    if content is None and not os.path.isfile(path):  # noqa: PTH113
        raise ValueError(f"image must be the path of an image file, but {path} is not a file")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # else up to twice the limit is allowed
            source = path if content is None else io.BytesIO(content)
            with Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                image.load()
                return image.copy()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"image must have at most {Image.MAX_IMAGE_PIXELS:,} pixels, but {path} has more") from error
    except Exception as error:  # Pillow's decoders raise almost anything on bytes that are damaged
        raise ValueError(f"image must be an intact file of one of {', '.join(FORMATS)}, but {path} is not") from error


def upright(image: Image.Image) -> Image.Image:
    """Turns a picture as its EXIF block says. A broken block is ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # SyntaxError, struct.error and others; the pixels are intact
        return image


def pil_to_array(
    image: Image.Image, channels: int = 3, size: tuple[int, int] | None = None, resize_mode: str = "crop"
) -> np.ndarray:
    """Converts a PIL image of any mode to floats (height, width, channels) in [0, 1].

    EXIF orientation is applied, transparency composited on white, 16 bits are scaled. `size` is (width, height); None
    keeps the picture's size. `resize_mode` "crop" cuts the centre to the aspect ratio, then resizes; "stretch" resizes
    each axis by itself; "none" requires a picture of that size.
    """
    if channels not in (1, 3):
        raise ValueError(f"image must be a tensor or array for a model of {channels} channels; PIL images give 1 or 3")
    image = _eight_bit(image, channels)
    if size is not None and image.size != tuple(size):
        if resize_mode == "none":
            raise ValueError(f"image must be {size[0]}x{size[1]} pixels with resize_mode='none', got {image.size}")
        if resize_mode == "crop":
            image = ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
        else:
            image = image.resize(size, Image.Resampling.LANCZOS)
    array = np.asarray(image, dtype=np.float32) / np.float32(255)
    return array[:, :, None] if array.ndim == 2 else array


def _eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """Converts to "L" or "RGB": upright, transparency on white, 16-bit scaled to 8-bit."""
    if 0 in image.size:
        raise ValueError(f"image must have at least one pixel, got a PIL image of size {image.size}")
    try:
        image.load()  # a file is decoded only now
    except Exception as error:  # almost any error, see `read_image`
        raise ValueError(f"image must be intact, got a PIL image that cannot be decoded: {error}") from error
    image = upright(image)
    if image.mode == "F":
        raise ValueError("image must not be of PIL's mode 'F', whose range is unknown; pass a numpy array in [0, 1]")
    if image.mode.startswith("I"):
        image = _from_sixteen_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit grayscale, also stored as 32-bit integers, to 8 bits; Pillow itself would clip it at 255."""
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"image must be in 0 .. 65535 as a PIL image of mode 'I', got values in {values.min()} .. {values.max()}; "
            "pass a numpy array in [0, 1]"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Converts images in [0, 1], of any shape, to 8-bit pixels, clamped and rounded."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(image: torch.Tensor) -> Image.Image:
    """Converts a picture (C, H, W) in [0, 1], with C of 1 or 3, to PIL."""
    array = to_uint8(image).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)


class Tiles:
    """Splits larger pictures into square tiles of `size` pixels, and joins the tiles again.

    Neighbours share at least `overlap` pixels, which must be below `size`. The overlap is spread evenly, so that the
    last tiles end where the picture ends.
    """

    def __init__(self, height: int, width: int, size: int, overlap: int) -> None:
        self.height, self.width, self.size = height, width, size
        self.corners = [(top, left) for top in _starts(height, size, overlap) for left in _starts(width, size, overlap)]
        # Pixels near a tile's edge count less, so that neighbours fade into each other.
        ramp = torch.arange(1, size + 1, dtype=torch.float32)
        ramp = torch.minimum(ramp, ramp.flip(0)).clamp(max=overlap + 1) / (overlap + 1)
        self._weight = ramp[:, None] * ramp

    def __len__(self) -> int:
        return len(self.corners)

    @staticmethod
    def count(height: int, width: int, size: int, overlap: int) -> int:
        """Number of tiles, without making them."""
        return _count(height, size, overlap) * _count(width, size, overlap)

    def split(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, C, height, width) -> (B * tiles, C, size, size), picture by picture, row by row."""
        cut = [pictures[..., top : top + self.size, left : left + self.size] for top, left in self.corners]
        return torch.stack(cut, dim=1).flatten(0, 1)

    def join(self, tiles: torch.Tensor) -> torch.Tensor:
        """The inverse of [`~Tiles.split`]; where tiles overlap, their weighted mean."""
        tiles = tiles.unflatten(0, (-1, len(self)))
        weight = self._weight.to(tiles)
        pictures = tiles.new_zeros(tiles.shape[0], tiles.shape[2], self.height, self.width)
        total = tiles.new_zeros(self.height, self.width)
        for index, (top, left) in enumerate(self.corners):
            place = (..., slice(top, top + self.size), slice(left, left + self.size))
            pictures[place] += weight * tiles[:, index]
            total[place] += weight
        return pictures / total


def _count(length: int, size: int, overlap: int) -> int:
    return 1 + math.ceil((length - size) / (size - overlap))


def _starts(length: int, size: int, overlap: int) -> list[int]:
    count = _count(length, size, overlap)
    return [round(index * (length - size) / max(1, count - 1)) for index in range(count)]


def image_grid(images: torch.Tensor | list[torch.Tensor], columns: int) -> Image.Image:
    """Arranges pictures of equal size (C, H, W) in [0, 1] row by row with white gaps. Small ones are enlarged."""
    factor = max(1, -(-_SHOWN_SIZE // max(images[0].shape[-2:])))
    channels, height, width = images[0].shape[0], *(factor * side + _GAP for side in images[0].shape[-2:])
    grid = torch.ones(channels, -(-len(images) // columns) * height - _GAP, columns * width - _GAP)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        shown = image.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
        grid[:, top : top + height - _GAP, left : left + width - _GAP] = shown
    return to_pil(grid)


def film_strip(images: torch.Tensor | list[torch.Tensor]) -> Image.Image:
    """Arranges pictures from left to right; see [`image_grid`]."""
    return image_grid(images, columns=len(images))
