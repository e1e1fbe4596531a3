"""Baselines against closed forms, numpy's singular value decomposition and an exhaustive search over JPEG qualities."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from diffae_hub.evaluation import baselines
from diffae_hub.evaluation.baselines import MeanImageBaseline, PCABaseline, jpeg_reconstruct, latent_code_bytes


def photographs(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Random crops of two photographs, (count, 3, size, size) in [0, 1], whole multiples of 1/255."""
    random = np.random.default_rng(seed)
    sources = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    crops = []
    for index in range(count):
        source = sources[index % 2]
        top, left = (random.integers(side - size) for side in source.shape[:2])
        crops.append(source[top : top + size, left : left + size])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def truncated_svd(train: torch.Tensor, images: torch.Tensor, rank: int) -> np.ndarray:
    """Projection onto the leading right singular vectors of the centred training images, clipped, in float64."""
    pixels = train.flatten(1).double().numpy()
    _, _, vectors = np.linalg.svd(pixels - pixels.mean(axis=0), full_matrices=False)
    centred = images.flatten(1).double().numpy() - pixels.mean(axis=0)
    projected = centred @ vectors[:rank].T @ vectors[:rank] + pixels.mean(axis=0)
    return projected.clip(0, 1).reshape(images.shape)


# ---- mean image ------------------------------------------------------------------------------------------------------


def test_mean_image() -> None:
    train, test = photographs(5000, 6), photographs(7, 6, seed=1)  # more than one chunk
    baseline = MeanImageBaseline.fit(train)
    expected = np.broadcast_to(train.double().numpy().mean(axis=0), test.shape)
    np.testing.assert_allclose(baseline.reconstruct(test).numpy(), expected, atol=1e-7)
    # The squared error over the training images is their variance.
    error = (baseline.reconstruct(train) - train).square().mean()
    assert float(error) == pytest.approx(float(train.double().var(dim=0, correction=0).mean()), rel=1e-5)


def test_reconstructions_keep_the_type_and_do_not_share_memory() -> None:
    train = photographs(40, 4)
    for baseline in (MeanImageBaseline.fit(train), PCABaseline.fit(train, 3)):
        assert baseline.reconstruct(train.double()).dtype == torch.float64
        first = baseline.reconstruct(train)
        first.zero_()
        assert float(baseline.reconstruct(train).max()) > 0


# ---- PCA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [400, 60])
def test_pca_equals_the_truncated_svd(count: int) -> None:
    train, test = photographs(count, 8), photographs(20, 8, seed=1)  # 192 numbers each: more and fewer images than that
    baseline = PCABaseline.fit(train, 24)
    np.testing.assert_allclose(baseline.reconstruct(test).numpy(), truncated_svd(train, test, 24), atol=2e-5)
    np.testing.assert_allclose((baseline.components @ baseline.components.T).numpy(), np.eye(24), atol=1e-5)


def test_pca_discards_the_least_variance() -> None:
    # Eckart and Young (1936): the squared error of rank K is the sum of the remaining squared singular values.
    train = 0.3 + 0.4 * photographs(300, 6)  # so that nothing is clipped
    pixels = train.flatten(1).double().numpy()
    singular = np.linalg.svd(pixels - pixels.mean(axis=0), compute_uv=False)
    for rank in (1, 10, 107):
        baseline = PCABaseline.fit(train, rank)
        codes = (train - baseline.mean).flatten(1) @ baseline.components.T
        np.testing.assert_allclose(codes.square().sum(dim=0).sqrt().numpy(), singular[:rank], rtol=1e-3)  # by variance
        error = float((baseline.reconstruct(train) - train).double().square().sum())
        assert error == pytest.approx(float(np.square(singular[rank:]).sum()), rel=1e-3)


def test_pca_with_all_components_is_the_identity_and_clips() -> None:
    train, test = photographs(200, 4), photographs(5, 4, seed=1)
    np.testing.assert_allclose(PCABaseline.fit(train, 48).reconstruct(test), test, atol=1e-5)
    # On a line from black to a left half of 0.8, an image with a white left half lies beyond: 1.25, clipped to 1.
    train = torch.zeros(4, 1, 2, 2)
    train[:, 0, :, 0] = torch.tensor([0.0, 0.8, 0.0, 0.8])[:, None]
    train[:, 0, :, 1] = torch.tensor([0.2, 0.8, 0.2, 0.8])[:, None]
    image = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]]])
    # mean (0.4, 0.5), direction (0.8, 0.6): code 0.6 * 0.8 + 0.5 * 0.6 = 0.78; 0.4 + 0.624 -> 1, 0.5 + 0.468
    expected = torch.tensor([[[[1.0, 0.968], [1.0, 0.968]]]])
    torch.testing.assert_close(PCABaseline.fit(train, 1).reconstruct(image), expected, atol=1e-5, rtol=0)


def test_randomised_pca_of_large_images(monkeypatch) -> None:
    monkeypatch.setattr(baselines, "_EXACT_PIXELS", 50)
    train, test = photographs(150, 8), photographs(20, 8, seed=1)
    result = PCABaseline.fit(train, 8).reconstruct(test)
    exact = truncated_svd(train, test, 8)
    error, least = (float(np.square(array - test.numpy()).mean()) for array in (result.numpy(), exact))
    assert error == pytest.approx(least, rel=0.01)
    torch.testing.assert_close(PCABaseline.fit(train, 8).reconstruct(test), result, atol=0, rtol=0)


# ---- JPEG ------------------------------------------------------------------------------------------------------------


def encode(image: torch.Tensor, quality: int, subsampling: int, optimize: bool) -> bytes:
    pixels = (image * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling, optimize=optimize)
    return buffer.getvalue()


def entropy_coded_bytes(data: bytes, channels: int) -> int:
    """FF is always followed by 00 in the data: the last FF DA is the scan's marker; its header is 6 + 2 C bytes."""
    return len(data) - (data.rindex(b"\xff\xda") + 2 + 6 + 2 * channels) - len(b"\xff\xd9")


def exhaustive(image: torch.Tensor, budget: int, subsampling: int, whole_file: bool) -> tuple[torch.Tensor, int]:
    """The highest quality that fits, among all of them; otherwise quality 1."""
    files = [encode(image, quality, subsampling, optimize=whole_file) for quality in range(1, 101)]
    sizes = [len(data) if whole_file else entropy_coded_bytes(data, len(image)) for data in files]
    best = max((index for index, size in enumerate(sizes) if size <= budget), default=0)
    decoded = np.atleast_3d(np.array(Image.open(io.BytesIO(files[best]))))
    return torch.from_numpy(decoded).permute(2, 0, 1).float() / 255, sizes[best]


@pytest.mark.parametrize("whole_file", [False, True])
@pytest.mark.parametrize(("name", "number"), [("4:4:4", 0), ("4:2:0", 2)])
def test_jpeg_finds_the_highest_quality_that_fits(name: str, number: int, whole_file: bool) -> None:
    images = photographs(8, 32, seed=2)
    for budget in (100, 350, 700, 1500):
        result, sizes = jpeg_reconstruct(images, budget, subsampling=name, count_headers=whole_file)
        for image, reconstruction, size in zip(images, result, sizes, strict=True):
            expected, expected_size = exhaustive(image, budget, number, whole_file)
            assert int(size) == expected_size
            torch.testing.assert_close(reconstruction, expected, atol=0, rtol=0)


def test_jpeg_where_a_higher_quality_takes_fewer_bytes() -> None:
    # The size falls here and there as quality rises: bisection alone would stop at a lower quality.
    cases = 0
    for image in photographs(30, 32, seed=4):
        files = [encode(image, quality, 2, optimize=False) for quality in range(1, 101)]
        sizes = np.array([entropy_coded_bytes(data, 3) for data in files])
        for index in np.flatnonzero(np.diff(sizes) < 0)[:6]:
            budget = int(sizes[index + 1])
            highest = np.flatnonzero(sizes <= budget).max()
            result, size = jpeg_reconstruct(image[None], budget, subsampling="4:2:0")
            assert int(size[0]) == sizes[highest]
            decoded = np.array(Image.open(io.BytesIO(files[highest])))
            np.testing.assert_array_equal((result[0] * 255).round().byte().permute(1, 2, 0).numpy(), decoded)
            cases += 1
    assert cases >= 20


def test_jpeg_takes_the_better_subsampling_of_each_image() -> None:
    images = photographs(12, 32, seed=3)
    result, sizes = jpeg_reconstruct(images, 250)
    chosen = set()
    for image, reconstruction, size in zip(images, result, sizes, strict=True):
        outcomes = [exhaustive(image, 250, number, False) for number in (0, 2)]
        errors = [float((decoded - image).double().square().sum()) for decoded, _ in outcomes]
        best = int(np.argmin(errors))
        chosen.add(best)
        assert int(size) == outcomes[best][1] <= 250
        torch.testing.assert_close(reconstruction, outcomes[best][0], atol=0, rtol=0)
    assert chosen == {0, 1}


def test_jpeg_where_nothing_fits_reports_the_real_bytes() -> None:
    images = photographs(2, 64)
    _, sizes = jpeg_reconstruct(images, 20, subsampling="4:2:0")
    expected = [entropy_coded_bytes(encode(image, 1, 2, optimize=False), 3) for image in images]
    assert sizes.dtype == torch.int64
    assert sizes.tolist() == expected
    assert min(expected) > 20


def test_jpeg_of_greyscale_and_of_other_types() -> None:
    images = photographs(3, 24)[:, :1]
    result, sizes = jpeg_reconstruct(images.double(), 200)
    assert result.dtype == torch.float64
    for image, reconstruction, size in zip(images, result, sizes, strict=True):
        expected, expected_size = exhaustive(image, 200, 0, False)
        assert int(size) == expected_size
        torch.testing.assert_close(reconstruction.float(), expected, atol=0, rtol=0)


def test_latent_code_bytes() -> None:
    assert latent_code_bytes(512) == 1024
    assert latent_code_bytes(512, bits=32) == 2048
    assert latent_code_bytes(3, bits=4) == 2


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 4, 4), r"must be a floating-point batch .* got \(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), r"got \(0, 3, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "of torch.uint8"),
        (torch.full((2, 3, 4, 4), -0.5), r"must be in \[0, 1\], got values from -0.5 to -0.5"),
        (torch.full((2, 3, 4, 4), 255.0), "got values from 255 to 255"),
        (torch.full((2, 3, 4, 4), torch.nan), "got values from nan to nan"),
    ],
)
def test_bad_images(images: torch.Tensor, message: str) -> None:
    baseline = MeanImageBaseline.fit(torch.zeros(2, 3, 4, 4))
    for call in (
        MeanImageBaseline.fit,
        lambda images: PCABaseline.fit(images, 1),
        baseline.reconstruct,
        lambda images: jpeg_reconstruct(images, 100),
    ):
        with pytest.raises(ValueError, match=message):
            call(images)


def test_bad_arguments() -> None:
    images = photographs(5, 4)
    for number in (0, 6):
        with pytest.raises(ValueError, match=f"num_components must be between 1 and 5, .* got {number}"):
            PCABaseline.fit(images, number)
    for baseline in (MeanImageBaseline.fit(images), PCABaseline.fit(images, 2)):
        with pytest.raises(ValueError, match=r"must have the training images' size \(3, 4, 4\), got \(1, 4, 4\)"):
            baseline.reconstruct(images[:, :1])
    with pytest.raises(ValueError, match="must have 1 or 3 channels for JPEG, got 2"):
        jpeg_reconstruct(images[:, :2], 100)
    with pytest.raises(ValueError, match="bytes_per_image must be at least 1, got 0"):
        jpeg_reconstruct(images, 0)
    with pytest.raises(ValueError, match="subsampling must be one of best, 4:4:4, 4:2:0, got '4:1:1'"):
        jpeg_reconstruct(images, 100, subsampling="4:1:1")
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        latent_code_bytes(0)
    with pytest.raises(ValueError, match="bits must be at least 1, got 0"):
        latent_code_bytes(512, bits=0)
