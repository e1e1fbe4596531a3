"""From what users hand in (PIL, numpy, torch) to image batches in [-1, 1], and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ..images import RESIZE_MODES, pil_to_array

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

# Rounding in half precision may leave the range by this much; more is a mistake of the caller.
_RANGE_TOLERANCE = 0.01

ImageInput = Image.Image | np.ndarray | torch.Tensor | list[Any] | tuple[Any, ...]


class DiffusionAutoencoderImageProcessor:
    """Prepares images for a model and turns its output back.

    PIL images are cropped and resized to the model's `sample_size`. Arrays and tensors are taken to be prepared: they
    are never resized unless `resize_mode` is given.

    Args:
        sample_size: Height and width the model was trained on.
        channels: Channels of the model's images.
        downsampling_factor: Divides any height and width the model takes.
        fixed_size: Whether the model takes nothing but `sample_size`.
    """

    def __init__(self, sample_size: int, channels: int, downsampling_factor: int, fixed_size: bool) -> None:
        self.sample_size = sample_size
        self.channels = channels
        self.downsampling_factor = downsampling_factor
        self.fixed_size = fixed_size

    def preprocess(self, images: ImageInput, resize_mode: str | None = None) -> torch.Tensor:
        """Images as a batch in [-1, 1].

        Args:
            images: A PIL image; a numpy array (H, W, C) or (B, H, W, C), uint8 in [0, 255] or floating point in [0, 1];
                a tensor (C, H, W) or (B, C, H, W), floating point in [-1, 1]; or a list of these, all of one kind.
            resize_mode: "crop", "stretch" or "none"; None means "crop" for PIL and "none" for arrays and tensors.

        Returns:
            (B, C, H, W), float32 on the device of the input.

        Raises:
            ValueError: Names what is wrong: type, empty list, shape, channels, dtype, range, NaN.
        """
        if resize_mode is not None and resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode must be None or one of {RESIZE_MODES}, got {resize_mode!r}")
        items = list(images) if isinstance(images, (list, tuple)) else [images]
        if not items:
            raise ValueError("images must hold at least one image, got an empty list")
        kinds = {kind for item in items for kind in (Image.Image, np.ndarray, torch.Tensor) if isinstance(item, kind)}
        strange = [
            type(item).__name__ for item in items if not isinstance(item, (Image.Image, np.ndarray, torch.Tensor))
        ]
        if strange or len(kinds) != 1:
            kinds_given = strange or sorted(kind.__name__ for kind in kinds)
            raise ValueError(
                "images must be PIL images, numpy arrays or tensors, all of one kind (open a file with PIL first), "
                f"got {', '.join(sorted(set(kinds_given)))}"
            )
        convert = {Image.Image: self._from_pil, np.ndarray: self._from_numpy, torch.Tensor: self._from_tensor}
        batches = [convert[kinds.copy().pop()](item, resize_mode) for item in items]
        sizes = sorted({tuple(batch.shape[-2:]) for batch in batches})
        if len(sizes) > 1:
            raise ValueError(f"images must all have one height and width, got {sizes}")
        batch = torch.cat(batches)
        self._check_size(*sizes[0])
        return batch

    def _from_pil(self, image: Image.Image, resize_mode: str | None) -> torch.Tensor:
        size = None if resize_mode == "none" else (self.sample_size, self.sample_size)
        array = pil_to_array(image, self.channels, size, resize_mode or "crop")
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))[None] * 2 - 1

    def _from_numpy(self, array: np.ndarray, resize_mode: str | None) -> torch.Tensor:
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4 or array.shape[-1] != self.channels or 0 in array.shape:
            raise ValueError(
                f"images must be arrays of shape (height, width, {self.channels}) or (batch, height, width, "
                f"{self.channels}), got {array.shape}"
            )
        if array.dtype == np.uint8:
            tensor = torch.from_numpy(array.astype(np.float32) / 255.0)
        elif np.issubdtype(array.dtype, np.floating):
            tensor = torch.from_numpy(array.astype(np.float32))
            _check_range(tensor, 0.0, 1.0, "arrays")
        else:
            raise ValueError(f"images must be arrays of dtype uint8 or floating point, got {array.dtype}")
        return self._resized(tensor.permute(0, 3, 1, 2).contiguous() * 2 - 1, resize_mode)

    def _from_tensor(self, tensor: torch.Tensor, resize_mode: str | None) -> torch.Tensor:
        if tensor.ndim == 3:
            tensor = tensor[None]
        if tensor.ndim != 4 or tensor.shape[1] != self.channels or 0 in tensor.shape:
            raise ValueError(
                f"images must be tensors of shape ({self.channels}, height, width) or (batch, {self.channels}, height, "
                f"width), got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"images must be floating-point tensors in [-1, 1], got dtype {tensor.dtype}")
        tensor = tensor.float()
        _check_range(tensor, -1.0, 1.0, "tensors")
        return self._resized(tensor, resize_mode)

    def _resized(self, batch: torch.Tensor, resize_mode: str | None) -> torch.Tensor:
        size, (height, width) = self.sample_size, batch.shape[-2:]
        if resize_mode in (None, "none") or (height, width) == (size, size):
            return batch
        if resize_mode == "crop":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            batch = batch[..., top : top + side, left : left + side]
        resized = torch.nn.functional.interpolate(batch, (size, size), mode="bicubic", antialias=True)
        return resized.clamp(-1, 1)

    def _check_size(self, height: int, width: int) -> None:
        if self.fixed_size and (height, width) != (self.sample_size, self.sample_size):
            raise ValueError(
                f"images must be {self.sample_size} x {self.sample_size} for this model, got {height} x {width}: "
                "resize_mode='crop' or 'stretch' resizes them"
            )
        if height % self.downsampling_factor or width % self.downsampling_factor:
            raise ValueError(
                f"images must have a height and width divisible by {self.downsampling_factor}, got {height} x {width}; "
                "resize_mode='crop' or 'stretch' resizes them"
            )

    def check_output_type(self, output_type: str) -> None:
        """Raises ValueError for an unknown output type, or "pil" where the channel count has no PIL mode."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
        if output_type == "pil" and self.channels not in (1, 3):
            raise ValueError(f"output_type must be 'np', 'pt' or 'latent' for {self.channels} channels, got 'pil'")

    def postprocess(self, batch: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Model output (B, C, H, W) as "pil", "np" (B, H, W, C) in [0, 1], "pt" in [0, 1] or "latent" (as it is)."""
        self.check_output_type(output_type)
        if output_type == "latent":
            return batch
        batch = (batch.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return batch
        array = batch.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return array
        pixels = (array * 255).round().astype(np.uint8)
        return [Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p) for p in pixels]


def _check_range(tensor: torch.Tensor, low: float, high: float, kind: str) -> None:
    lowest, highest = (float(value) for value in tensor.aminmax())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError("images must be finite, got NaN or infinity")
    if lowest < low - _RANGE_TOLERANCE or highest > high + _RANGE_TOLERANCE:
        hint = (
            "; convert [0, 255] to uint8" if kind == "arrays" else "; map [0, 1] by 2 x - 1, [0, 255] by x / 127.5 - 1"
        )
        raise ValueError(
            f"images must be in [{low:g}, {high:g}] as floating-point {kind}, got values in "
            f"[{lowest:g}, {highest:g}]{hint}"
        )
