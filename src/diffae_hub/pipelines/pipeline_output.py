"""What the pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image


@dataclass
class DiffusionAutoencoderPipelineOutput(BaseOutput):
    """What decoding returns.

    Args:
        images: As `output_type` says: list of PIL images, array (B, H, W, C) or tensor (B, C, H, W) in [0, 1], or the
            model's own (B, C, H, W), about in [-1, 1].
        latent_code: z, (B, latent_dim); of a picture in tiles one per tile.
        noise: x_T that was decoded, (B, C, H, W), float32.
        spread: Of `variations`: each pixel's standard deviation over the images, (C, H, W), images being in [0, 1].
    """

    __module__ = "diffae_hub"

    images: list[Image.Image] | np.ndarray | torch.Tensor
    latent_code: torch.Tensor
    noise: torch.Tensor
    spread: torch.Tensor | None = None
