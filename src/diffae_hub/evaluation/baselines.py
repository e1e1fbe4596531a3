"""Reconstruction without a network, at the size of a latent code: the mean image, PCA and JPEG; not in the paper.

PSNR means little by itself: on small images a linear code of 512 numbers is hard to beat. These stand beside it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

_EXACT_PIXELS = 4096  # up to here the covariance of all pixels is decomposed (128 MiB)
_CHUNK = 2048  # images at a time in float64
_TOLERANCE = 1e-4  # of the range [0, 1], for rounding
_SUBSAMPLINGS = ("4:4:4", "4:2:0")


@dataclass(frozen=True)
class MeanImageBaseline:
    """Every image is reconstructed as the mean of the training images: a latent code of no numbers.

    Args:
        mean: (C, H, W), float32, in [0, 1].
    """

    mean: torch.Tensor

    @classmethod
    def fit(cls, train_images: torch.Tensor) -> MeanImageBaseline:
        """From training images.

        Args:
            train_images: (N, C, H, W), floating point, in [0, 1].

        Raises:
            ValueError: If they are not.
        """
        _check_images("train_images", train_images)
        mean = _sum_over_images(train_images) / len(train_images)
        return cls(mean.reshape(train_images.shape[1:]).float().cpu())

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, H, W) in [0, 1], of the same type, on the same device.

        Raises:
            ValueError: If the images are not of the training images' size.
        """
        _check_images("images", images, self.mean.shape)
        return self.mean.to(images).expand_as(images).clone()


@dataclass(frozen=True)
class PCABaseline:
    """Principal component analysis: of all linear codes of so many numbers, the one of least squared training error.

    Args:
        components: (K, C * H * W), float32, orthonormal rows, by falling variance.
        mean: (C, H, W), float32.
    """

    components: torch.Tensor
    mean: torch.Tensor

    @classmethod
    def fit(cls, train_images: torch.Tensor, num_components: int) -> PCABaseline:
        """From training images.

        Up to 4,096 pixels times channels (or training images) it is exact: with at least as many images as that, by the
        covariance in float64, in memory that does not grow with their number. Otherwise scikit-learn's randomised
        PCA of a fixed seed is taken, which comes close to it.

        Args:
            train_images: (N, C, H, W), floating point, in [0, 1].
            num_components: K, at most N and at most C * H * W.

        Raises:
            ValueError: If the images are not allowed or K is out of range.
        """
        _check_images("train_images", train_images)
        count, size = len(train_images), train_images[0].numel()
        if not 1 <= num_components <= min(count, size):
            raise ValueError(
                f"num_components must be between 1 and {min(count, size)}, the smaller of {count} images and {size} "
                f"pixels times channels, got {num_components}"
            )
        if size <= min(count, _EXACT_PIXELS):
            mean, components = _principal_components(train_images, num_components)
        else:
            from sklearn.decomposition import PCA

            solver = "full" if min(count, size) <= _EXACT_PIXELS else "randomized"
            pca = PCA(num_components, svd_solver=solver, random_state=0)
            pca.fit(train_images.flatten(1).float().cpu().numpy())
            mean, components = pca.mean_, pca.components_
        mean, components = (torch.from_numpy(array).float() for array in (mean, components))
        return cls(components, mean.reshape(train_images.shape[1:]))

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [0, 1] -> projected onto the components and back, clipped to [0, 1]; type and device stay.

        Raises:
            ValueError: If the images are not of the training images' size.
        """
        _check_images("images", images, self.mean.shape)
        components, mean = self.components.to(images.device), self.mean.to(images.device)
        code = (images.float() - mean).flatten(1) @ components.T  # (B, K)
        return ((code @ components).reshape(images.shape) + mean).clamp(0, 1).to(images.dtype)


def latent_code_bytes(latent_dim: int, bits: int = 16) -> int:
    """Bytes of a latent code of `latent_dim` numbers, rounded up.

    16 bits a number (float16) unless said otherwise; neither entropy coding nor the noise x_T of inversion is counted.

    Raises:
        ValueError: If either is below 1.
    """
    for name, value in (("latent_dim", latent_dim), ("bits", bits)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return -(-latent_dim * bits // 8)


def jpeg_reconstruct(
    images: torch.Tensor, bytes_per_image: int, *, subsampling: str = "best", count_headers: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """JPEG of the highest quality (1 to 100, by Pillow) that fits into `bytes_per_image`, for each image by itself.

    What is counted: unless `count_headers`, the entropy-coded data only, from the end of the scan's header to the
    end-of-image marker. At 32 x 32 pixels the headers (about 620 bytes) outweigh the data, and they are the same for
    all images of one quality, as the Huffman tables are the standard's: a decoder would have them, as ours has its
    weights. The quality and the subsampling, a byte per image, are not counted. With `count_headers` the whole file
    counts; its Huffman tables are then optimised for each image, which makes it smaller.

    Images are rounded to 8 bits first. An image that has been through JPEG before, at a size below the budget, comes
    back nearly unchanged (some exactly, of infinite PSNR): that says nothing about the budget.

    Args:
        images: (B, C, H, W), floating point, in [0, 1]; C is 1 or 3.
        bytes_per_image: For example [`latent_code_bytes`]; at least 1.
        subsampling: Of chroma: "4:4:4" (none), "4:2:0" (halved in both directions), or "best": for each image the one
            of the smaller squared error. 4:2:0 wins at small budgets, and cannot use large ones.
        count_headers: Whether the whole file must fit.

    Returns:
        The reconstructions, as `images`, and the bytes each took, counted likewise, (B,), int64: more than
        `bytes_per_image` where not even quality 1 fits.

    Raises:
        ValueError: If an argument is not allowed.
    """
    _check_images("images", images)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels for JPEG, got {images.shape[1]}")
    if bytes_per_image < 1:
        raise ValueError(f"bytes_per_image must be at least 1, got {bytes_per_image}")
    if subsampling not in ("best", *_SUBSAMPLINGS):
        raise ValueError(f"subsampling must be one of best, {', '.join(_SUBSAMPLINGS)}, got {subsampling!r}")
    if images.shape[1] == 1:
        subsampling = "4:4:4"  # there is no chroma
    candidates = _SUBSAMPLINGS if subsampling == "best" else (subsampling,)
    reconstructions, sizes = [], []
    for image in images.detach().cpu():
        pixels = (image.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()  # HWC uint8
        outcomes = []
        for candidate in candidates:
            data = _highest_quality(pixels, bytes_per_image, candidate, count_headers)
            decoded = np.atleast_3d(np.array(Image.open(io.BytesIO(data))))
            size = _counted_bytes(data, count_headers)
            error = np.square(decoded.astype(np.int64) - pixels).sum()
            outcomes.append((size > bytes_per_image, error, size, decoded))
        _, _, size, decoded = min(outcomes, key=lambda outcome: outcome[:3])
        reconstructions.append(torch.from_numpy(decoded).permute(2, 0, 1).to(images.dtype) / 255)
        sizes.append(size)
    return torch.stack(reconstructions).to(images.device), torch.tensor(sizes)


def _highest_quality(pixels: np.ndarray, budget: int, subsampling: str, count_headers: bool) -> bytes:
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)

    def encode(quality: int) -> tuple[bytes, int]:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling, optimize=count_headers)
        data = buffer.getvalue()
        return data, _counted_bytes(data, count_headers)

    fitting, _ = encode(1)
    low, high = 1, 101
    while high - low > 1:
        middle = (low + high) // 2
        data, size = encode(middle)
        if size <= budget:
            low, fitting = middle, data
        else:
            high = middle
    # Sizes grow with quality, but for a few bytes here and there: look on until they are well above the budget.
    for quality in range(low + 1, 101):
        data, size = encode(quality)
        if size <= budget:
            fitting = data
        elif size > 1.1 * budget + 16:
            break
    return fitting


def _counted_bytes(data: bytes, count_headers: bool) -> int:
    """Length of a baseline JPEG file, or of its entropy-coded data: from after the scan's header to the end marker."""
    if count_headers:
        return len(data)
    position = 2
    while data[position + 1] != 0xDA:  # segments carry their length; the scan's header is the last of them
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    header = int.from_bytes(data[position + 2 : position + 4], "big")
    return len(data) - 2 - (position + 2 + header)


def _principal_components(images: torch.Tensor, num_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and the leading eigenvectors (K, D) of the pixels' covariance, float64, D = C * H * W."""
    from scipy.linalg import eigh

    mean = _sum_over_images(images) / len(images)
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=images.device)
    for chunk in images.split(_CHUNK):
        centred = chunk.flatten(1).double() - mean
        scatter.addmm_(centred.T, centred)
    size = len(mean)
    _, vectors = eigh(scatter.cpu().numpy(), subset_by_index=(size - num_components, size - 1), overwrite_a=True)
    return mean.cpu().numpy(), vectors.T[::-1].copy()  # eigenvalues rise


def _sum_over_images(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (C * H * W,), float64, without a copy of all images."""
    return torch.stack([chunk.flatten(1).double().sum(dim=0) for chunk in images.split(_CHUNK)]).sum(dim=0)


def _check_images(name: str, images: torch.Tensor, size: torch.Size | None = None) -> None:
    if images.ndim != 4 or not images.is_floating_point() or images.numel() == 0:
        raise ValueError(
            f"{name} must be a floating-point batch (batch, channels, height, width), got {tuple(images.shape)} "
            f"of {images.dtype}"
        )
    if size is not None and images.shape[1:] != size:
        raise ValueError(f"{name} must have the training images' size {tuple(size)}, got {tuple(images.shape[1:])}")
    low, high = (float(value) for value in images.aminmax())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # NaN fails too
        raise ValueError(f"{name} must be in [0, 1], got values from {low:g} to {high:g}")
