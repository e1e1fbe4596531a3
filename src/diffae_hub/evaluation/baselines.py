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
_SUBSAMPLINGS = ("4:4:4", "4:2:0")

Reconstruct = Callable[[torch.Tensor], torch.Tensor]


def fit_mean_image(train: np.ndarray) -> Reconstruct:
    """Every image is reconstructed as the mean of the training images: a latent code of no numbers.

    Args:
        train: (N, C * H * W), in [0, 1].

    Returns:
        A function of images (B, C, H, W), float32, in [0, 1] -> (B, C, H, W).
    """
    mean = torch.from_numpy(train.mean(axis=0, dtype=np.float64)).float()
    return lambda images: mean.reshape(images.shape[1:]).expand_as(images).clone()


def fit_pca(train: np.ndarray, num_components: int) -> Reconstruct:
    """Principal component analysis: of all linear codes of so many numbers, the one of least squared training error.

    Args:
        train: (N, C * H * W), float64, in [0, 1]; overwritten.
        num_components: At most N and C * H * W.

    Returns:
        A function of images (B, C, H, W), float32, in [0, 1] -> (B, C, H, W), clipped to [0, 1].
    """
    from sklearn.decomposition import PCA

    count, size = train.shape
    if min(count, size) > _EXACT_PIXELS:
        solver = "randomized"
    else:
        solver = "covariance_eigh" if size <= count else "full"
    pca = PCA(num_components, svd_solver=solver, copy=False, random_state=0).fit(train)
    components, mean = (torch.from_numpy(array).float() for array in (pca.components_, pca.mean_))

    def reconstruct(images: torch.Tensor) -> torch.Tensor:
        code = (images.flatten(1) - mean) @ components.T  # (B, K)
        return (code @ components + mean).clamp(0, 1).reshape(images.shape)

    return reconstruct


def latent_code_bytes(latent_dim: int) -> int:
    """Bytes of a latent code at 16 bits a number; neither entropy coding nor the noise x_T of inversion is counted."""
    return 2 * latent_dim


def jpeg_reconstruct(images: torch.Tensor, bytes_per_image: int) -> tuple[torch.Tensor, torch.Tensor]:
    """JPEG of the highest quality (1 to 100, by Pillow) that fits into `bytes_per_image`, for each image by itself.

    Only the entropy-coded data count, from the end of the scan's header to the end-of-image marker. At 32 x 32 pixels
    the headers (about 620 bytes) outweigh them, and they are the same for all images of one quality, as the Huffman
    tables are the standard's: a decoder would have them, as ours has its weights. The quality and the subsampling, a
    byte per image, are not counted. Chroma is halved in both directions (4:2:0) or not (4:4:4), whichever gives an
    image the smaller squared error.

    An image that has been through JPEG before, at a size below the budget, comes back nearly unchanged (some exactly,
    of infinite PSNR): that says nothing about the budget.

    Args:
        images: (B, C, H, W), float32, in [0, 1], rounded to 8 bits first; C is 1 or 3.
        bytes_per_image: For example [`latent_code_bytes`].

    Returns:
        The reconstructions, as `images`, and the bytes each took, counted likewise, (B,), int64: more than
        `bytes_per_image` where not even quality 1 fits.
    """
    candidates = _SUBSAMPLINGS if images.shape[1] == 3 else _SUBSAMPLINGS[:1]  # grey has no chroma
    reconstructions, sizes = [], []
    for image in images:
        pixels = to_uint8(image).permute(1, 2, 0).numpy()  # HWC uint8
        outcomes = []
        for candidate in candidates:
            data, size = _highest_quality(pixels, bytes_per_image, candidate)
            decoded = np.atleast_3d(np.array(Image.open(io.BytesIO(data))))
            error = np.square(decoded.astype(np.int64) - pixels).sum()
            outcomes.append((size > bytes_per_image, error, size, decoded))
        _, _, size, decoded = min(outcomes, key=lambda outcome: outcome[:3])
        reconstructions.append(torch.from_numpy(decoded).permute(2, 0, 1).to(images.dtype) / 255)
        sizes.append(size)
    return torch.stack(reconstructions), torch.tensor(sizes)


def _highest_quality(pixels: np.ndarray, budget: int, subsampling: str) -> tuple[bytes, int]:
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)

    def encode(quality: int) -> tuple[bytes, int]:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        return buffer.getvalue(), _entropy_coded_bytes(buffer.getvalue())

    best = encode(1)
    low, high = 1, 101
    while high - low > 1:
        middle = (low + high) // 2
        trial = encode(middle)
        if trial[1] <= budget:
            low, best = middle, trial
        else:
            high = middle
    # Sizes grow with quality, but for a few bytes here and there: look on until they are well above the budget.
    for quality in range(low + 1, 101):
        trial = encode(quality)
        if trial[1] <= budget:
            best = trial
        elif trial[1] > 1.1 * budget + 16:
            break
    return best


def _entropy_coded_bytes(data: bytes) -> int:
    """Length of a baseline JPEG file's data, from after the scan's header to the end marker."""
    position = 2
    while data[position + 1] != 0xDA:  # segments carry their length; the scan's header is the last of them
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    header = int.from_bytes(data[position + 2 : position + 4], "big")
    return len(data) - 2 - (position + 2 + header)
