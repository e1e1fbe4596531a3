"""Perceptual path length (section 10 of the paper, after Karras et al., 2019)."""

from __future__ import annotations

from collections.abc import Callable

import torch


@torch.no_grad()
def perceptual_path_length(
    image_at: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    num_paths: int,
    num_intervals: int = 100,
    batch_size: int = 50,
) -> torch.Tensor:
    """`PPL = N sum_i d(G(i / N), G((i + 1) / N))` of each path G.

    In the paper, G(f) decodes the slerp of two codes and of two noises at fraction f, and d is LPIPS with a VGG16.

    Args:
        image_at: (numbers of paths (B,), fractions (B,), float64, in [0, 1]) -> images (B, C, H, W) in [0, 1].
        distance: (images, images) -> (B,).
        num_paths: P.
        num_intervals: N; the paper uses 100.
        batch_size: Images at a time, of several paths if need be; no more than these and one are kept.

    Returns:
        The length of each path, (P,), float64, on the CPU.
    """
    lengths = torch.zeros(num_paths, dtype=torch.float64)
    # The N + 1 images of all paths, one path after the other, in batches of about one size.
    paths = torch.arange(num_paths).repeat_interleave(num_intervals + 1)
    fractions = (torch.arange(num_intervals + 1, dtype=torch.float64) / num_intervals).repeat(num_paths)
    num_batches = -(-len(paths) // batch_size)
    last_path, last_image = torch.empty(0, dtype=torch.int64), None
    for path, fraction in zip(paths.tensor_split(num_batches), fractions.tensor_split(num_batches), strict=True):
        images = image_at(path, fraction)
        along = images if last_image is None else torch.cat([last_image, images])
        path = torch.cat([last_path, path])
        (inner,) = torch.nonzero(path[:-1] == path[1:], as_tuple=True)  # where an image and the next are of one path
        if len(inner) > 0:
            lengths.index_add_(0, path[inner], distance(along[inner], along[inner + 1]).double().cpu())
        last_path, last_image = path[-1:], images[-1:]
    return num_intervals * lengths
