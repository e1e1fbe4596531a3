"""One encoded image -> one tensor in [-1, 1] of the model's size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..images import pil_to_array, read_image, upright

CROPS = ("center", "random", "d2c")

# Columns and rows that the official networks' crop of CelebA keeps: left, upper, right, lower.
_D2C_BOX = (25, 57, 153, 185)
_CELEBA_SIZE = (178, 218)


@dataclass
class ImageTransform:
    """An encoded image -> a float tensor in [-1, 1], shape (channels, resolution, resolution).

    The crops "center" and "random" resize a square of the shorter side; "d2c" is the official networks' crop of CelebA,
    only for images of 178 x 218 pixels. `seed` is for the flips (with probability 1/2) and the random crops.
    """

    resolution: int
    channels: int = 3
    horizontal_flip: bool = False
    crop: str = "center"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {CROPS}, got {self.crop!r}")

    def __call__(self, row: Mapping[str, Any], position: tuple[int, ...] | None = None) -> torch.Tensor:
        """Transforms the image of a row: its `bytes`, or if these are None the file at `path`, its name in errors.

        `position`, the place in the training, decides the flip and the random crop, with the seed. None is for neither.
        Raises ValueError, which names the image, if it cannot be read or has the wrong size for the crop.
        """
        path = row["path"]
        image = read_image(path, row["bytes"])
        try:
            image = self._cropped(image, position)
            array = pil_to_array(image, channels=self.channels, size=(self.resolution, self.resolution))
        except Exception as error:  # Pillow raises almost anything on odd files
            raise ValueError(f"image {path} cannot be used: {error}") from error
        if self.horizontal_flip and position is not None and self._random(0, position).random() < 0.5:
            array = array[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))) * 2.0 - 1.0

    def _random(self, purpose: int, position: tuple[int, ...]) -> np.random.Generator:
        return np.random.default_rng((self.seed, purpose, *position))

    def _cropped(self, image: Image.Image, position: tuple[int, ...] | None) -> Image.Image:
        if self.crop == "center":
            return image  # `pil_to_array` crops it
        image = upright(image)
        if self.crop == "d2c":
            if image.size != _CELEBA_SIZE:
                raise ValueError(f"crop 'd2c' is for images of 178x218 pixels, got {image.width}x{image.height}")
            return image.crop(_D2C_BOX)
        side = min(image.size)
        room = [length - side for length in image.size]
        left, upper = (length // 2 for length in room)
        if position is not None:
            left, upper = (int(v) for v in self._random(1, position).integers(0, np.asarray(room) + 1))
        return image.crop((left, upper, left + side, upper + side))
