"""PSNR against scikit-image, SSIM and high-pass energy against scipy's filters."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from skimage.metrics import peak_signal_noise_ratio

from diffae_hub.metrics.psnr import peak_signal_to_noise_ratio
from diffae_hub.metrics.sharpness import high_pass_energy
from diffae_hub.metrics.ssim import structural_similarity

from .conftest import photograph_pair


def test_psnr_equals_scikit_image() -> None:
    images, references = photograph_pair(64, 64)
    expected = [
        peak_signal_noise_ratio(r.numpy(), i.numpy(), data_range=1) for i, r in zip(images, references, strict=True)
    ]
    np.testing.assert_allclose(peak_signal_to_noise_ratio(images, references).numpy(), expected, rtol=1e-9)
    assert torch.isinf(peak_signal_to_noise_ratio(references, references)).all()


def test_ssim_equals_an_independent_zero_padded_computation() -> None:
    images, references = photograph_pair(64, 64)

    def blur(channel: np.ndarray) -> np.ndarray:
        return gaussian_filter(channel, sigma=1.5, truncate=5 / 1.5, mode="constant", cval=0.0)

    expected = []
    for image, reference in zip(images.numpy(), references.numpy(), strict=True):
        channels = []
        for x, y in zip(image, reference, strict=True):
            mx, my = blur(x), blur(y)
            vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
            c1, c2 = 0.01**2, 0.03**2
            channels.append(np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))
        expected.append(np.mean(channels))
    np.testing.assert_allclose(structural_similarity(images, references).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("metric", [peak_signal_to_noise_ratio, structural_similarity])
def test_bad_input(metric) -> None:
    floats, pixels = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    for pair in ((floats, floats[..., 1:]), (pixels, pixels), (floats[0], floats[0])):
        with pytest.raises(ValueError, match="images"):
            metric(*pair)


def test_high_pass_energy_equals_a_convolution() -> None:
    _, images = photograph_pair(64, 64)
    kernel = np.array([[0, -0.25, 0], [-0.25, 1, -0.25], [0, -0.25, 0]])
    expected = [
        np.mean([np.abs(convolve2d(channel, kernel, mode="valid")).mean() for channel in image])
        for image in images.numpy()
    ]
    np.testing.assert_allclose(high_pass_energy(images).numpy(), expected, rtol=1e-9)
