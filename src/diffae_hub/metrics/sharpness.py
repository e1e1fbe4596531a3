"""High-pass energy, which shows blur; PSNR rewards blur."""

import torch


def high_pass_energy(images: torch.Tensor) -> torch.Tensor:
    """Computes the mean over inner pixels of |pixel - mean of its four neighbours|. Not in the paper.

    Images (B, C, H, W) -> (B,), float64. "Sharpness" in reports is its mean over the reconstructions, divided by that
    over the originals: below 1 the reconstructions are smoother, above 1 noisier.
    """
    x = images.double()
    neighbours = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return (x[..., 1:-1, 1:-1] - neighbours / 4).abs().flatten(1).mean(dim=1)
