"""The noise schedules against closed forms, numpy, high-precision arithmetic and diffusers."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffae_hub.schedulers.noise_schedules import alpha_sigma, constant_beta, inverted, linear_beta, shifted_cosine

EVERYWHERE = torch.linspace(0, 1, 4001, dtype=torch.float64)
INSIDE = EVERYWHERE[1:-1]
ALL_SCHEDULES = [
    pytest.param(lambda t: shifted_cosine(t, 1.0), id="SC-1"),
    pytest.param(lambda t: shifted_cosine(t, 4.0), id="SC-4"),
    pytest.param(lambda t: shifted_cosine(t, 16.0), id="SC-16"),
    pytest.param(lambda t: shifted_cosine(t, 0.125), id="SC-0.125"),
    pytest.param(linear_beta, id="linear_beta"),
    pytest.param(inverted, id="inverted"),
    pytest.param(constant_beta, id="constant_beta"),
]


@pytest.mark.parametrize("schedule", ALL_SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_variance_preserving_monotonic_and_in_float64(schedule, dtype):
    alpha, sigma = schedule(EVERYWHERE.to(dtype))
    assert alpha.dtype == sigma.dtype == torch.float64
    assert (alpha**2 + sigma**2 - 1).abs().max() < 1e-14
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()


@pytest.mark.parametrize("schedule", ALL_SCHEDULES)
def test_clean_image_at_time_zero_is_exact(schedule):
    alpha, sigma = schedule(torch.zeros(3))
    assert alpha.tolist() == [1.0] * 3
    assert sigma.tolist() == [0.0] * 3


@pytest.mark.parametrize("schedule", [s for s in ALL_SCHEDULES if s.id not in ("linear_beta", "constant_beta")])
def test_pure_noise_at_time_one_is_exact(schedule):
    alpha, sigma = schedule(torch.ones(2, 2))
    assert alpha.tolist() == [[0.0, 0.0]] * 2
    assert sigma.tolist() == [[1.0, 1.0]] * 2


def test_linear_beta_at_time_one_keeps_a_little_signal():
    alpha, _ = linear_beta(torch.tensor(1.0))
    betas = np.linspace(1e-4, 0.02, 1000)
    assert float(alpha) == pytest.approx(math.sqrt(np.prod(1 - betas)), rel=1e-12)
    assert float(alpha) == pytest.approx(0.00635, abs=5e-6)


def test_constant_beta_is_the_running_product_of_its_betas():
    alpha, sigma = constant_beta(torch.arange(1001) / 1000)
    expected = np.concatenate([[1.0], np.cumprod(np.full(1000, 1 - 0.008))])
    np.testing.assert_allclose(alpha.numpy() ** 2, expected, rtol=1e-5)  # the times are float32
    np.testing.assert_allclose(sigma.numpy() ** 2, 1 - expected, rtol=1e-4, atol=1e-12)
    assert float(alpha[-1]) == pytest.approx(0.0180, abs=5e-5)


def test_sc_1_is_the_cosine_schedule():
    alpha, sigma = shifted_cosine(EVERYWHERE, 1.0)
    torch.testing.assert_close(alpha, torch.cos(math.pi * EVERYWHERE / 2), rtol=0, atol=1e-15)
    torch.testing.assert_close(sigma, torch.sin(math.pi * EVERYWHERE / 2), rtol=0, atol=1e-15)


@pytest.mark.parametrize("scaling_factor", [0.125, 1.0, 2.0, 4.0, 16.0])
def test_shifted_cosine_is_the_formula_of_the_paper(scaling_factor):
    argument = -2 * np.log(np.tan(np.pi * INSIDE.numpy() / 2)) + 2 * np.log(scaling_factor)
    expected = np.sqrt(1 / (1 + np.exp(-argument)))
    alpha, _ = shifted_cosine(INSIDE, scaling_factor)
    np.testing.assert_allclose(alpha.numpy(), expected, rtol=1e-11)


def test_scaling_factor_four_raises_the_log_snr_by_two_log_four():
    def log_snr(scaling_factor: float) -> torch.Tensor:
        alpha, sigma = shifted_cosine(INSIDE, scaling_factor)
        return 2 * torch.log(alpha / sigma)

    torch.testing.assert_close(
        log_snr(4.0) - log_snr(1.0), torch.full_like(INSIDE, 2 * math.log(4)), rtol=0, atol=1e-12
    )
    # Less noise at every t; Hoogeboom et al.'s 32 / 256 goes the other way.
    assert (shifted_cosine(INSIDE, 4.0)[1] < shifted_cosine(INSIDE, 1.0)[1]).all()
    assert (shifted_cosine(INSIDE, 32 / 256)[1] > shifted_cosine(INSIDE, 1.0)[1]).all()


def test_order_of_the_curves_in_figure_1():
    # Linear-beta lies lowest but for the very end, where it does not reach 0; then SC-1, SC-2, SC-4, SC-8.
    t = torch.linspace(0.01, 0.99, 197, dtype=torch.float64)
    curves = [linear_beta(t)[0], *(shifted_cosine(t, s)[0] for s in (1.0, 2.0, 4.0, 8.0))]
    for lower, upper in zip(curves, curves[1:], strict=False):
        assert (lower < upper).all()


def test_the_last_official_timestep_is_far_from_noise_on_sc_4():
    assert float(shifted_cosine(torch.tensor(0.98), 4.0)[0]) == pytest.approx(0.125, abs=5e-4)
    assert float(linear_beta(torch.tensor(0.98))[0]) == pytest.approx(0.0077, abs=5e-4)


def test_linear_beta_table_against_numpy_and_diffusers():
    _, sigma = linear_beta(torch.arange(1001, dtype=torch.float64) / 1000)
    alpha, _ = linear_beta(torch.arange(1001, dtype=torch.float64) / 1000)
    table = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    np.testing.assert_allclose(alpha.numpy() ** 2, table, rtol=1e-12)
    np.testing.assert_allclose(sigma.numpy() ** 2, 1 - table, rtol=1e-10, atol=1e-15)
    theirs = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").alphas_cumprod
    torch.testing.assert_close(alpha[1:].float() ** 2, theirs, rtol=2e-5, atol=1e-7)


def test_linear_beta_interpolates_the_logarithm_between_entries():
    k = torch.tensor([0.0, 1.0, 499.0, 999.0], dtype=torch.float64)
    left, right = linear_beta(k / 1000)[0], linear_beta((k + 1) / 1000)[0]
    for weight in (0.25, 0.5, 0.9):
        between = linear_beta((k + weight) / 1000)[0]
        torch.testing.assert_close(between, left ** (1 - weight) * right**weight, rtol=1e-12, atol=0)


def test_inverted_is_the_formula_of_the_supplement():
    alpha, _ = inverted(EVERYWHERE)
    expected = np.sqrt(2 / np.pi * np.arccos(np.sqrt(EVERYWHERE.numpy())))
    np.testing.assert_allclose(alpha.numpy(), expected, rtol=1e-7, atol=1e-12)


def test_sigma_keeps_its_digits_near_time_zero():
    """1 - alpha^2 rounds to 0 there; the leading terms of the series are known."""
    t = torch.tensor([1e-12, 1e-10, 1e-9], dtype=torch.float64)
    torch.testing.assert_close(shifted_cosine(t, 4.0)[1], math.pi * t / 2 / 4, rtol=1e-12, atol=0)
    torch.testing.assert_close(inverted(t)[1], torch.sqrt(2 / math.pi * torch.sqrt(t)), rtol=1e-9, atol=0)
    # linear-beta: log alpha_bar is linear on the first interval, with alpha_bar(1/1000) = 1 - 1e-4.
    with localcontext() as context:
        context.prec = 50
        expected = [float((1 - Decimal("0.9999") ** (Decimal(float(x)) * 1000)).sqrt()) for x in t]
    torch.testing.assert_close(linear_beta(t)[1], torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)


def test_alpha_keeps_its_digits_near_time_one():
    distance = 2.0**-40  # 1 - t is then exact
    t = torch.tensor(1 - distance, dtype=torch.float64)
    assert float(shifted_cosine(t, 4.0)[0]) == pytest.approx(4 * math.pi * distance / 2, rel=1e-12)
    assert float(inverted(t)[0]) == pytest.approx(math.sqrt(2 / math.pi * math.sqrt(distance)), rel=1e-9)


@pytest.mark.parametrize("name, direct", [("linear_beta", linear_beta), ("inverted", inverted)])
def test_dispatch_by_name(name, direct):
    for ours, theirs in zip(alpha_sigma(name, EVERYWHERE), direct(EVERYWHERE), strict=True):
        assert torch.equal(ours, theirs)
    alpha, _ = alpha_sigma("shifted_cosine", 0.5, scaling_factor=1.0)
    assert float(alpha) == pytest.approx(math.sqrt(0.5), rel=1e-12)


@pytest.mark.parametrize("name", ["cosine", "", None, 3])
def test_unknown_schedule(name):
    with pytest.raises(ValueError, match="noise_schedule must be one of shifted_cosine, .*, constant_beta, got"):
        alpha_sigma(name, torch.tensor(0.5))
