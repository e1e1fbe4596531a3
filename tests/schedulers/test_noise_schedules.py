"""The noise schedules against closed forms, numpy, high-precision arithmetic and diffusers."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffae_hub.schedulers.noise_schedules import alpha_sigma, constant_beta, inverted, linear_beta, shifted_cosine

EVERYWHERE = torch.linspace(0, 1, 4001, dtype=torch.float64)
SCHEDULES = [
    *(pytest.param("shifted_cosine", s, True, id=f"SC-{s:g}") for s in (1.0, 4.0, 16.0, 0.125)),
    pytest.param("inverted", 1.0, True, id="inverted"),
    pytest.param("linear_beta", 1.0, False, id="linear_beta"),
    pytest.param("constant_beta", 1.0, False, id="constant_beta"),
]


@pytest.mark.parametrize(("name", "scaling_factor", "ends_in_noise"), SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_variance_preserving_monotonic_and_exact_at_the_ends(name, scaling_factor, ends_in_noise, dtype):
    alpha, sigma = alpha_sigma(name, EVERYWHERE.to(dtype), scaling_factor)
    assert alpha.dtype == sigma.dtype == torch.float64
    assert (alpha**2 + sigma**2 - 1).abs().max() < 1e-14
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    assert (float(alpha[0]), float(sigma[0])) == (1.0, 0.0)
    assert ((float(alpha[-1]), float(sigma[-1])) == (0.0, 1.0)) == ends_in_noise


@pytest.mark.parametrize(
    ("schedule", "betas"),
    [(linear_beta, np.linspace(1e-4, 0.02, 1000)), (constant_beta, np.full(1000, 0.008))],
    ids=["linear", "constant"],
)
def test_betas_against_numpy_and_diffusers(schedule, betas):
    alpha, sigma = schedule(torch.arange(1001, dtype=torch.float64) / 1000)
    table = np.concatenate([[1.0], np.cumprod(1 - betas)])
    np.testing.assert_allclose(alpha.numpy() ** 2, table, rtol=1e-10)
    np.testing.assert_allclose(sigma.numpy() ** 2, 1 - table, rtol=1e-10, atol=1e-12)
    theirs = DDIMScheduler(trained_betas=betas.astype(np.float32)).alphas_cumprod
    torch.testing.assert_close(alpha[1:].float() ** 2, theirs, rtol=1e-4, atol=1e-7)


def test_digits_are_kept_near_the_ends():
    """1 - alpha^2 rounds to 0 near t = 0; the leading terms of the series are known."""
    t = torch.tensor([1e-12, 1e-10, 1e-9], dtype=torch.float64)
    torch.testing.assert_close(shifted_cosine(t, 4.0)[1], math.pi * t / 2 / 4, rtol=1e-12, atol=0)
    torch.testing.assert_close(inverted(t)[1], torch.sqrt(2 / math.pi * torch.sqrt(t)), rtol=1e-9, atol=0)
    # linear-beta: log alpha_bar is linear on the first interval, with alpha_bar(1/1000) = 1 - 1e-4.
    with localcontext() as context:
        context.prec = 50
        expected = [float((1 - Decimal("0.9999") ** (Decimal(float(x)) * 1000)).sqrt()) for x in t]
    torch.testing.assert_close(linear_beta(t)[1], torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)
    distance = 2.0**-40  # 1 - t is then exact
    t = torch.tensor(1 - distance, dtype=torch.float64)
    assert float(shifted_cosine(t, 4.0)[0]) == pytest.approx(4 * math.pi * distance / 2, rel=1e-12)
    assert float(inverted(t)[0]) == pytest.approx(math.sqrt(2 / math.pi * math.sqrt(distance)), rel=1e-9)
