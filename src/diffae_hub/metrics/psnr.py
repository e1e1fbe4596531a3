"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch


def peak_signal_to_noise_ratio(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """`-10 log10(mean squared error)` per image, for images in [0, 1] (tables 1-4 average it over images).

    Args:
        images: (B, C, H, W), floating point, in [0, 1].
        references: As `images`.

    Returns:
        PSNR in dB, (B,), float64; infinite where an image equals its reference.
    """
    check_pair(images, references)
    error = (images.double() - references.double()).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error)


def check_pair(images: torch.Tensor, references: torch.Tensor) -> None:
    """Raises ValueError unless both are floats of one shape: others would give a number, but a wrong one."""
    if images.shape != references.shape or not (images.is_floating_point() and references.is_floating_point()):
        raise ValueError(
            "images and references must be floating-point tensors of one shape, got "
            f"{tuple(images.shape)} of {images.dtype} and {tuple(references.shape)} of {references.dtype}"
        )
