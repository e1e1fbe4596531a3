"""Crops of photographs."""

import numpy as np
import torch
from sklearn.datasets import load_sample_image


def photographs(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Random crops of two photographs in turn, (count, 3, height, width) in [0, 1], whole multiples of 1/255."""
    random = np.random.default_rng(seed)
    sources = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    crops = []
    for index in range(count):
        source = sources[index % 2]
        top, left = random.integers(source.shape[0] - height), random.integers(source.shape[1] - width)
        crops.append(source[top : top + height, left : left + width])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def photograph_pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two crops, one with noise and one darkened, and the crops as they are, in float64."""
    references = photographs(2, height, width).double()
    noise = torch.randn(references.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([(references[0] + 0.1 * noise[0]).clamp(0, 1), 0.8 * references[1]]), references
