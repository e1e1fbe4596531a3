"""Crops of photographs."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_sample_image


def photograph_pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops of two photographs, one with noise and one darkened, and the crops, (2, 3, height, width) in [0, 1]."""
    crops = [load_sample_image(name)[100 : 100 + height, 200 : 200 + width] for name in ("china.jpg", "flower.jpg")]
    references = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).double() / 255
    noise = torch.randn(references.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([(references[0] + 0.1 * noise[0]).clamp(0, 1), 0.8 * references[1]]), references
