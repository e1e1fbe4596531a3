"""Reconstruction without a network, at the size of a latent code: the mean image, PCA and JPEG; not in the paper.

PSNR means little by itself: on small images a linear code of 512 numbers is hard to beat. These stand beside it.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from ..images import to_uint8

_EXACT_PIXELS = 4096  # up to here PCA is exact (a covariance of 128 MiB), beyond randomised with a fixed seed

Reconstruct = Callable[[torch.Tensor], torch.Tensor]  # images (B, C, H, W), float32, in [0, 1] -> the same


def fit_mean_image(train: np.ndarray) -> Reconstruct:
    """Every image becomes the mean of the training images (N, C * H * W) in [0, 1]: a latent code of no numbers."""
    mean = torch.from_numpy(train.mean(axis=0, dtype=np.float64)).float()
    return lambda images: mean.reshape(images.shape[1:]).expand_as(images).clone()


def fit_pca(train: np.ndarray, num_components: int) -> Reconstruct:
    """Principal component analysis: of all linear codes of so many numbers, the one of least squared training error.

    `train` is (N, C * H * W), float64, in [0, 1], and overwritten; `num_components` at most its shorter side.
    """
    from sklearn.decomposition import PCA

    solver = "covariance_eigh" if train.shape[1] <= _EXACT_PIXELS else "randomized"
    pca = PCA(num_components, svd_solver=solver, copy=False, random_state=0).fit(train)
    components, mean = (torch.from_numpy(array).float() for array in (pca.components_, pca.mean_))

    def reconstruct(images: torch.Tensor) -> torch.Tensor:
        code = (images.flatten(1) - mean) @ components.T  # (B, num_components)
        return (code @ components + mean).clamp(0, 1).reshape(images.shape)

    return reconstruct


def latent_code_bytes(latent_dim: int) -> int:
    """Bytes of a latent code at 16 bits a number; neither entropy coding nor the noise x_T of inversion is counted."""
    return 2 * latent_dim


def jpeg_reconstruct(images: torch.Tensor, bytes_per_image: int) -> tuple[torch.Tensor, torch.Tensor]:
    """JPEG of the highest quality (1 to 100, by Pillow) that fits into `bytes_per_image`, for each image by itself.

    Only the entropy-coded data count: headers (about 620 bytes) are the same for all images of one quality, and a
    decoder would have them, as ours has its weights. Of subsampling 4:4:4 and 4:2:0 the one with the smaller squared
    error is taken. An image that was a small JPEG before comes back nearly unchanged, which says nothing of the budget.

    Images are (B, C, H, W), float32, in [0, 1], C of 1 or 3, rounded to 8 bits first. Returned are the reconstructions
    and the bytes each took, (B,), int64: more than `bytes_per_image` where not even quality 1 fits.
    """
    reconstructions, sizes = [], []
    for image in images:
        pixels = to_uint8(image).permute(1, 2, 0).numpy()  # HWC uint8
        outcomes = []
        for subsampling in ("4:4:4", "4:2:0") if len(image) == 3 else ("4:4:4",):  # grey has no chroma
            data, size = _highest_quality(pixels, bytes_per_image, subsampling)
            decoded = np.atleast_3d(np.array(Image.open(io.BytesIO(data))))
            error = np.square(decoded.astype(np.int64) - pixels).sum()
            outcomes.append((size > bytes_per_image, error, size, decoded))
        _, _, size, decoded = min(outcomes, key=lambda outcome: outcome[:3])
        reconstructions.append(torch.from_numpy(decoded).permute(2, 0, 1).to(images.dtype) / 255)
        sizes.append(size)
    return torch.stack(reconstructions), torch.tensor(sizes)


def _highest_quality(pixels: np.ndarray, budget: int, subsampling: str) -> tuple[bytes, int]:
    """A JPEG file and the bytes of its data: those of quality 1 where nothing fits."""
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    for quality in range(100, 0, -1):  # one by one: here and there a higher quality takes fewer bytes
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        data = buffer.getvalue()
        scan = data.rindex(b"\xff\xda") + 2  # the marker is not in the data, where 00 follows each FF
        header = int.from_bytes(data[scan : scan + 2], "big")
        size = len(data) - scan - header - 2  # and the end marker
        if size <= budget:
            break
    return data, size
