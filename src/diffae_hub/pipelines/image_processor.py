"""Converts users' images (PIL, numpy, torch) to batches in [-1, 1], and back."""

from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging
from PIL import Image

from ..images import RESIZE_MODES, pil_to_array
from ..schedulers.noise_schedules import check_choice

logger = logging.get_logger("diffusers.diffae_hub")  # follows diffusers' verbosity

# Rounding in half precision may exceed the range by this much; more is a mistake of the caller.
_RANGE_TOLERANCE = 0.01

ImageInput = Image.Image | np.ndarray | torch.Tensor | list[Any] | tuple[Any, ...]


def check_values(name: str, tensor: torch.Tensor) -> None:
    """Raises ValueError for a tensor of complex numbers or integers, and for one that is sparse or has no values."""
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        kind = f"{tensor.dtype}, {tensor.layout} on {tensor.device}"
        raise ValueError(f"{name} must be a dense tensor of floating-point values, got {kind}")


class DiffusionAutoencoderImageProcessor(VaeImageProcessor):
    """diffusers' `VaeImageProcessor` for PIL images of any mode and size and 8-bit arrays, with errors for bad ranges.

    The model takes heights and widths that `downsampling_factor` divides; with `fixed_size`, only `sample_size`.
    """

    def __init__(self, sample_size: int, channels: int, downsampling_factor: int, fixed_size: bool) -> None:
        super().__init__(do_resize=False, vae_scale_factor=downsampling_factor)
        self.sample_size = sample_size
        self.channels = channels
        self.downsampling_factor = downsampling_factor
        self.fixed_size = fixed_size
        self._resizing_said = False

    def preprocess(self, image: ImageInput, resize_mode: str | None = None, keep_larger: bool = False) -> torch.Tensor:
        """Images as a batch (B, C, H, W) in [-1, 1], float32 on the device of the input.

        Args:
            image: As in [`DiffusionAutoencoderPipeline`].
            resize_mode: How an image is brought to the model's size: "crop" (to the central square, then resize),
                "stretch" or "none". None means "crop" for PIL images and "none" for arrays and tensors.
            keep_larger: With `resize_mode=None`, whether images that cover the model's size keep their own.
        """
        check_choice("resize_mode", resize_mode, (None, *RESIZE_MODES))
        items = list(image) if isinstance(image, (list, tuple)) else [image]
        if not items:
            raise ValueError("image must hold at least one image, got an empty list")
        keep_larger = keep_larger and resize_mode is None
        batches = [self._to_batch(item, resize_mode, keep_larger) for item in items]
        sizes = sorted({tuple(batch.shape[-2:]) for batch in batches})
        if len(sizes) > 1:
            raise ValueError(f"image must be a list of images of one height and width, got {sizes}")
        height, width = sizes[0]
        size, factor = self.sample_size, self.downsampling_factor
        allowed = (height, width) == (size, size) if self.fixed_size else not (height % factor or width % factor)
        if not allowed and not (keep_larger and min(height, width) >= size):
            needed = f"be {size} x {size}" if self.fixed_size else f"have a height and width divisible by {factor}"
            raise ValueError(f"image must {needed}, got {height} x {width}; resize_mode='crop' or 'stretch' resizes it")
        return self.normalize(torch.cat(batches))

    def _to_batch(self, image: ImageInput, resize_mode: str | None, keep_larger: bool) -> torch.Tensor:
        """Converts one item to (B, C, H, W) in [0, 1], float32."""
        size = self.sample_size
        if isinstance(image, Image.Image):
            mode = "none" if keep_larger and min(image.size) >= size else resize_mode or "crop"
            self._say_resizing(mode, *image.size)
            array = pil_to_array(image, self.channels, None if mode == "none" else (size, size), mode)
            return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))[None]
        tensor = self._checked(image)
        height, width = tensor.shape[-2:]
        self._say_resizing(resize_mode or "none", width, height)
        if resize_mode in (None, "none") or (height, width) == (size, size):
            return tensor
        if resize_mode == "crop":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            tensor = tensor[..., top : top + side, left : left + side]
        return torch.nn.functional.interpolate(tensor, (size, size), mode="bicubic", antialias=True).clamp(0, 1)

    def _checked(self, image: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Converts an array or tensor of any size to (B, C, H, W) in [0, 1], float32."""
        if isinstance(image, np.ndarray) and image.dtype.kind in "uif":
            channels_first = np.moveaxis(image, -1, 1 if image.ndim == 4 else 0)
            tensor = torch.from_numpy(np.ascontiguousarray(channels_first))
        elif isinstance(image, torch.Tensor):
            tensor = image
        else:
            kind = getattr(image, "dtype", type(image).__name__)
            raise ValueError(f"image must be PIL images, tensors or arrays of numbers, got {kind}")
        tensor = tensor[None] if tensor.ndim == 3 else tensor
        if tensor.ndim != 4 or tensor.shape[1] != self.channels or 0 in tensor.shape:
            axes = f"(height, width, {self.channels}) as an array, ({self.channels}, height, width) as a tensor"
            raise ValueError(f"image must have shape {axes}, or this after a batch axis, got {tuple(image.shape)}")
        if tensor.dtype == torch.uint8:
            return tensor.float() / 255
        check_values("image, if it is not uint8,", tensor)
        tensor = tensor.float()
        low, high = (float(value) for value in tensor.aminmax())
        if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):  # written so that NaN fails
            hint = "map [-1, 1] by x / 2 + 0.5" if low < 0 else "divide 8-bit values by 255"
            raise ValueError(f"image must be in [0, 1] if floating point, got values in [{low:g}, {high:g}]; {hint}")
        return tensor

    def _say_resizing(self, mode: str, width: int, height: int) -> None:
        size = self.sample_size
        if mode != "none" and (width, height) != (size, size) and not self._resizing_said:
            self._resizing_said = True
            logger.warning(f"An image of {width}x{height} pixels is resized ({mode}) to this model's {size}x{size}.")

    def check_output_type(self, output_type: str) -> None:
        """Raises ValueError for an unknown output type, or "pil" where the channel count has no PIL mode."""
        check_choice("output_type", output_type, ("pil", "np", "pt", "latent"))
        if output_type == "pil" and self.channels not in (1, 3):
            raise ValueError(f"output_type must be 'np', 'pt' or 'latent' for {self.channels} channels, got 'pil'")
