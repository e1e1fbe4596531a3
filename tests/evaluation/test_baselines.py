"""Baselines against closed forms, numpy's singular value decomposition and an exhaustive search over JPEG qualities."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffae_hub.evaluation import baselines
from diffae_hub.evaluation.baselines import fit_pca, jpeg_reconstruct
from diffae_hub.images import to_pil

from ..metrics.conftest import photographs


def truncated_svd(train: torch.Tensor, images: torch.Tensor, rank: int) -> np.ndarray:
    """Projection onto the leading right singular vectors of the centred training images, clipped, in float64."""
    pixels = train.flatten(1).double().numpy()
    _, _, vectors = np.linalg.svd(pixels - pixels.mean(axis=0), full_matrices=False)
    centred = images.flatten(1).double().numpy() - pixels.mean(axis=0)
    projected = centred @ vectors[:rank].T @ vectors[:rank] + pixels.mean(axis=0)
    return projected.clip(0, 1).reshape(images.shape)


@pytest.mark.parametrize("count", [400, 60])
def test_pca_equals_the_truncated_svd(count: int) -> None:
    train, test = (
        photographs(count, 8, 8),
        photographs(20, 8, 8, seed=1),
    )  # 192 numbers each: more and fewer images than that
    reconstruct = fit_pca(train.split(50), count, 24)
    np.testing.assert_allclose(reconstruct(test).numpy(), truncated_svd(train, test, 24), atol=2e-5)


def test_randomised_pca_of_large_images(monkeypatch) -> None:
    monkeypatch.setattr(baselines, "_EXACT_PIXELS", 50)
    train, test = photographs(150, 8, 8), photographs(20, 8, 8, seed=1)
    result = fit_pca(train.split(50), 150, 8)(test)
    exact = truncated_svd(train, test, 8)
    error, least = (float(np.square(array - test.numpy()).mean()) for array in (result.numpy(), exact))
    assert error == pytest.approx(least, rel=0.01)
    torch.testing.assert_close(fit_pca(train.split(50), 150, 8)(test), result, atol=0, rtol=0)


def exhaustive(image: torch.Tensor, budget: int) -> tuple[torch.Tensor, int, int]:
    """Among all qualities and subsamplings: picture, size, and which subsampling (0: none, 2: both directions)."""
    outcomes = []
    for subsampling in (0, 2) if len(image) == 3 else (0,):
        files = [io.BytesIO() for _ in range(100)]
        for quality, file in enumerate(files, start=1):
            to_pil(image).save(file, "JPEG", quality=quality, subsampling=subsampling)
        # FF is always followed by 00 in the data: the last FF DA is the scan's marker; its header is 6 + 2 C bytes.
        ends = [len(f.getvalue()) - f.getvalue().rindex(b"\xff\xda") for f in files]
        sizes = [end - 2 - (6 + 2 * len(image)) - len(b"\xff\xd9") for end in ends]
        best = max((index for index, size in enumerate(sizes) if size <= budget), default=0)
        decoded = np.atleast_3d(np.array(Image.open(files[best])))
        decoded = torch.from_numpy(decoded).permute(2, 0, 1).float() / 255
        error = float((decoded - image).double().square().sum())
        outcomes.append((sizes[best] > budget, error, sizes[best], subsampling, decoded))
    _, _, size, subsampling, decoded = min(outcomes, key=lambda outcome: outcome[:2])
    return decoded, size, subsampling


@pytest.mark.parametrize(("channels", "budget"), [(1, 100), (3, 250), (3, 1500), (3, 20)])
def test_jpeg_finds_the_highest_quality_that_fits_and_the_better_subsampling(channels: int, budget: int) -> None:
    """Also where nothing fits, and where the size falls here and there as quality rises."""
    images = photographs(8, 32, 32, seed=3)[:, :channels]
    result, sizes = jpeg_reconstruct(images, budget)
    assert sizes.dtype == torch.int64
    chosen = set()
    for image, reconstruction, size in zip(images, result, sizes, strict=True):
        expected, expected_size, subsampling = exhaustive(image, budget)
        chosen.add(subsampling)
        assert int(size) == expected_size
        torch.testing.assert_close(reconstruction, expected, atol=0, rtol=0)
    if budget == 250:
        assert chosen == {0, 2}
    assert (max(sizes) > budget) == (budget == 20)
