"""Baselines without a network, at the size of a latent code: the mean image, PCA and JPEG. Not in the paper.

PSNR means little without them: on small images a linear code of 512 numbers is hard to beat.
"""

import io
from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
import torch
from PIL import Image

from ..images import to_uint8

BYTES_PER_NUMBER = 2  # of a latent code, without entropy coding and without the noise x_T of inversion
# Up to here PCA is exact, in float64 (a covariance of 128 MiB), above it randomised with a fixed seed, in float32.
_EXACT_PIXELS = 4096

Reconstruct = Callable[[torch.Tensor], torch.Tensor]  # images (B, C, H, W), float32, in [0, 1] -> the same


def fit_mean_image(train: Iterable[torch.Tensor]) -> Reconstruct:
    """Returns a method that gives the mean of the training images, without any latent code.

    `train` are batches (B, C, H, W), in [0, 1].
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in train:
        total, count = total + batch.double().sum(dim=0), count + len(batch)
    return lambda images: (total / count).float().expand_as(images).clone()


def fit_pca(train: Iterable[torch.Tensor], num_images: int, num_components: int) -> Reconstruct:
    """Fits a PCA: of all linear codes of `num_components` numbers, the one with the least squared training error.

    `train` are batches (B, C, H, W), in [0, 1], of `num_images` in all. They are held in memory together.
    `num_components` is at most their number, and that of their values.
    """
    from sklearn.decomposition import PCA

    batches = iter(train)
    first = next(batches).flatten(1)
    exact = first.shape[1] <= _EXACT_PIXELS
    pixels, filled = np.empty((num_images, first.shape[1]), np.float64 if exact else np.float32), 0
    for batch in chain([first], batches):
        pixels[filled : filled + len(batch)] = batch.flatten(1)
        filled += len(batch)
    solver = "covariance_eigh" if exact else "randomized"
    pca = PCA(num_components, svd_solver=solver, copy=False, random_state=0).fit(pixels)
    components, mean = (torch.from_numpy(array).float() for array in (pca.components_, pca.mean_))

    def reconstruct(images: torch.Tensor) -> torch.Tensor:
        code = (images.flatten(1) - mean) @ components.T  # (B, num_components)
        return (code @ components + mean).clamp(0, 1).reshape(images.shape)

    return reconstruct


def jpeg_reconstruct(images: torch.Tensor, bytes_per_image: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Saves each image as a JPEG of the highest quality (1 to 100, by Pillow) that fits into `bytes_per_image`.

    Only the entropy-coded data count. The headers (about 620 bytes) are the same for all images of one quality, so a
    decoder can know them, as ours knows its weights. Subsampling is 4:4:4 or 4:2:0, whichever has the smaller squared
    error. An image that was a small JPEG before comes back nearly unchanged, which says nothing about the budget.

    Images are (B, C, H, W), float32, in [0, 1], C of 1 or 3, rounded to 8 bits first. Returns the reconstructions and
    the bytes of each, (B,), int64: more than `bytes_per_image` if not even quality 1 fits.
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
    """Returns a JPEG file and the bytes of its data, at quality 1 if nothing fits."""
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    for quality in range(100, 0, -1):  # one by one, because a higher quality sometimes takes fewer bytes
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        data = buffer.getvalue()
        scan = data.rindex(b"\xff\xda") + 2  # the last marker is the right one: in the data, 00 follows each FF
        header = int.from_bytes(data[scan : scan + 2], "big")
        size = len(data) - scan - header - 2  # 2 for the end marker
        if size <= budget:
            break
    return data, size
