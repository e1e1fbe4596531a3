"""Perceptual path length (section 10 of the paper, after Karras et al., 2019)."""

from collections.abc import Callable

import torch


@torch.no_grad()
def perceptual_path_length(
    image_at: Callable[[torch.Tensor], torch.Tensor],
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    num_intervals: int = 100,
    batch_size: int = 50,
) -> float:
    """Computes `PPL = N sum_i d(G(i / N), G((i + 1) / N))` of a path G.

    In the paper, G(f) decodes the slerp of two codes and of two noises at fraction f, d is LPIPS-VGG16, and N = 100.

    Args:
        image_at: G: fractions (B,), float64, in [0, 1] -> images (B, C, H, W) in [0, 1].
        distance: d: (images, images) -> (B,).
        batch_size: Images at a time; one more is kept in memory.
    """
    length, last = 0.0, None
    fractions = torch.arange(num_intervals + 1, dtype=torch.float64) / num_intervals
    for part in fractions.split(batch_size):
        images = image_at(part)
        along = images if last is None else torch.cat([last, images])
        if len(along) > 1:
            length += float(distance(along[:-1], along[1:]).cpu().double().sum())
        last = images[-1:]
    return num_intervals * length
