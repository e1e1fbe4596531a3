"""Perceptual path length (section 10 of the paper, after Karras et al., 2019)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..pipelines.interpolation import slerp


@torch.no_grad()
def perceptual_path_length(
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    latent_codes_a: torch.Tensor,
    latent_codes_b: torch.Tensor,
    noises_a: torch.Tensor,
    noises_b: torch.Tensor,
    num_intervals: int = 100,
    batch_size: int = 50,
) -> torch.Tensor:
    """`PPL = N sum_i d(G(i / N), G((i + 1) / N))`, where G decodes the slerp of codes and of noises (section 10).

    Args:
        decode: (codes (B, D), noises (B, C, H, W)) -> images in [0, 1], (B, C, H, W).
        distance: (images, images) -> (B,); the paper's is LPIPS with a VGG16.
        latent_codes_a: z at one end, (P, D).
        latent_codes_b: z at the other, (P, D).
        noises_a: x_T at one end, (P, C, H, W).
        noises_b: x_T at the other, (P, C, H, W).
        num_intervals: N; the paper uses 100.
        batch_size: Images decoded at a time, of several paths if need be; no more than these and one are kept.

    Returns:
        The length of each path, (P,), float64, on the CPU.

    Raises:
        ValueError: If the ends do not fit together or a number is below 1.
    """
    if latent_codes_a.shape != latent_codes_b.shape or noises_a.shape != noises_b.shape:
        raise ValueError(
            "latent_codes_a and _b, and noises_a and _b, must have one shape each, got "
            f"{[tuple(end.shape) for end in (latent_codes_a, latent_codes_b, noises_a, noises_b)]}"
        )
    if len(latent_codes_a) != len(noises_a):
        raise ValueError(f"noises_a must have one entry per latent code, {len(latent_codes_a)}, got {len(noises_a)}")

    def image_at(pair: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
        return decode(
            slerp(latent_codes_a[pair], latent_codes_b[pair], fraction), slerp(noises_a[pair], noises_b[pair], fraction)
        )

    return _path_lengths(image_at, distance, len(latent_codes_a), num_intervals, batch_size)


@torch.no_grad()
def cross_fade_length(
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    images_a: torch.Tensor,
    images_b: torch.Tensor,
    num_intervals: int = 100,
    batch_size: int = 50,
) -> torch.Tensor:
    """The perceptual length of the path on which one image fades into another: no model, for comparison.

    A model whose path is hardly longer mixes images rather than turning one into the other. Not in the paper.

    Args:
        distance: As that of [`perceptual_path_length`].
        images_a: Images in [0, 1] at one end, (P, C, H, W).
        images_b: Images at the other, (P, C, H, W).
        num_intervals: N of the path length.
        batch_size: Images at a time.

    Returns:
        The length of each path, (P,), float64, on the CPU.

    Raises:
        ValueError: If the ends do not fit together or a number is below 1.
    """
    if images_a.shape != images_b.shape:
        raise ValueError(
            f"images_a and images_b must have one shape, got {tuple(images_a.shape)} and {tuple(images_b.shape)}"
        )

    def image_at(pair: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
        return torch.lerp(images_a[pair], images_b[pair], fraction.to(images_a)[:, None, None, None])

    return _path_lengths(image_at, distance, len(images_a), num_intervals, batch_size)


def _path_lengths(
    image_at: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    count: int,
    num_intervals: int,
    batch_size: int,
) -> torch.Tensor:
    """`N sum_i d(...)` of each path; `image_at` gives the images of paths (B,) at fractions (B,)."""
    for name, value in (("num_intervals", num_intervals), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    lengths = torch.zeros(count, dtype=torch.float64)
    if len(lengths) == 0:
        return lengths
    # The N + 1 images of all paths, one path after the other, in batches of about one size.
    pairs = torch.arange(len(lengths)).repeat_interleave(num_intervals + 1)
    fractions = (torch.arange(num_intervals + 1, dtype=torch.float64) / num_intervals).repeat(len(lengths))
    num_batches = -(-len(pairs) // batch_size)
    last_pair, last_image = torch.empty(0, dtype=torch.int64), None
    for pair, fraction in zip(pairs.tensor_split(num_batches), fractions.tensor_split(num_batches), strict=True):
        images = image_at(pair, fraction)
        path = images if last_image is None else torch.cat([last_image, images])
        pair = torch.cat([last_pair, pair])
        (inner,) = torch.nonzero(pair[:-1] == pair[1:], as_tuple=True)  # where an image and the next are of one path
        if len(inner) > 0:
            steps = distance(path[inner], path[inner + 1]).double().cpu()
            lengths.index_add_(0, pair[inner], steps)
        last_pair, last_image = pair[-1:], images[-1:]
    return num_intervals * lengths
