"""Structural similarity index."""

import torch
import torch.nn.functional as F

from .psnr import check_pair

_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # K1 and K2, times the data range 1


def structural_similarity(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Computes SSIM (Wang et al., 2004) for each image (B, C, H, W) in [0, 1]: (B,), float64, in [-1, 1].

    The window is an 11x11 Gaussian of sigma 1.5; K1 = 0.01, K2 = 0.03. It weights local means and covariances per
    channel (no sample correction). Borders are zero-padded, as in the official DiffAE evaluation.
    """
    check_pair(images, references)
    x, y = images.double(), references.double()
    offsets = torch.arange(_WINDOW, dtype=torch.float64, device=x.device) - _WINDOW // 2
    gaussian = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    gaussian = gaussian / gaussian.sum()

    def window_mean(values: torch.Tensor) -> torch.Tensor:
        flat = values.flatten(0, 1)[:, None]  # every channel by itself
        flat = F.conv2d(flat, gaussian[None, None, :, None], padding=(_WINDOW // 2, 0))
        flat = F.conv2d(flat, gaussian[None, None, None, :], padding=(0, _WINDOW // 2))
        return flat.reshape(values.shape)

    mean_x, mean_y = window_mean(x), window_mean(y)
    variance_x = window_mean(x * x) - mean_x**2
    variance_y = window_mean(y * y) - mean_y**2
    covariance = window_mean(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    )
    return similarity.flatten(1).mean(dim=1)
