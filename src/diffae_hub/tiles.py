"""Pictures larger than the model: cutting into tiles of its size, joining, showing results beside originals."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from .pipelines.image_processor import exif_orientation, pil_to_array

# Pictures are shown at least this large, each pixel as a square: a 32x32 thumbnail is otherwise a dot on a screen.
_SHOWN_SIZE = 256
_GAP = 8


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
