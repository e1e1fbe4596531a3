"""Peak signal-to-noise ratio."""

import torch


def peak_signal_to_noise_ratio(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Computes `-10 log10(mean squared error)` in dB for each image (B, C, H, W) in [0, 1]: (B,), float64.

    It is infinite if an image equals its reference. Tables 1-4 average it over images.
    """
    check_pair(images, references)
    error = (images.double() - references.double()).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error)


def check_pair(images: torch.Tensor, references: torch.Tensor) -> None:
    """Raises ValueError unless both are floats of one shape (B, C, H, W): others would give wrong numbers."""
    if (
        images.ndim != 4
        or images.shape != references.shape
        or not (images.is_floating_point() and references.is_floating_point())
    ):
        raise ValueError(
            "images and references must be floating-point tensors of one shape (B, C, H, W), got "
            f"{tuple(images.shape)} of {images.dtype} and {tuple(references.shape)} of {references.dtype}"
        )
