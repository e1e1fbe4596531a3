"""VPDPMSolverMultistepScheduler: its grid, its order on Gaussian data, and swapping."""

import math

import pytest
import torch

from diffae_hub import VPDDIMInverseScheduler, VPDDIMScheduler, VPDPMSolverMultistepScheduler

from .test_probability_flow import STARTS, exact_flow, optimal_output

PREDICTION_TYPES = pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])


def level_at(log_ratio: float) -> tuple[float, float]:
    """(alpha, sigma) from lambda = ln(alpha / sigma)."""
    return 1 / math.sqrt(1 + math.exp(-2 * log_ratio)), 1 / math.sqrt(1 + math.exp(2 * log_ratio))


def walk(scheduler: VPDPMSolverMultistepScheduler, x: torch.Tensor, num_steps: int) -> torch.Tensor:
    scheduler.set_timesteps(num_steps)
    lambdas = torch.linspace(-2.5, 4, num_steps - 1, dtype=torch.float64).tolist()
    first = tuple(float(value) for value in scheduler.alpha_sigma(scheduler.timesteps[0]))
    for timestep, here in zip(scheduler.timesteps, [first, *(level_at(value) for value in lambdas)], strict=True):
        output = optimal_output(scheduler.config.prediction_type, x, *here)
        x = scheduler.step(output, timestep, x).prev_sample
    return x


@PREDICTION_TYPES
@pytest.mark.parametrize("noise_schedule", ["shifted_cosine", "linear_beta"])
@pytest.mark.parametrize("spacing", ["uniform", "leading"])
def test_order_two_between_the_ends(prediction_type, noise_schedule, spacing):
    """The limit for fixed ends: one DDIM step to lambda_min, the exact flow to lambda_max, and x0_hat there."""
    scheduler = VPDPMSolverMultistepScheduler(
        noise_schedule=noise_schedule, prediction_type=prediction_type, timestep_spacing=spacing
    )
    scheduler.set_timesteps(2)
    alpha, sigma = (float(value) for value in scheduler.alpha_sigma(scheduler.timesteps[0]))
    low, high = level_at(-2.5), level_at(4.0)
    original = optimal_output("sample", STARTS, alpha, sigma)
    noise = (STARTS - alpha * original) / sigma
    x = exact_flow(low[0] * original + low[1] * noise, low, high)
    limit = optimal_output("sample", x, *high)
    coarse, fine = (float((walk(scheduler, STARTS, k) - limit).abs().max()) for k in (41, 81))
    assert 1.8 < math.log2(coarse / fine) < 2.3
    # The two ends cost little: the limit is close to the flow from pure noise to the image.
    assert float((limit - exact_flow(STARTS, (alpha, sigma), (1.0, 0.0))).abs().max()) < 3e-3


def test_grid():
    scheduler = VPDPMSolverMultistepScheduler(lambda_min=-2.0, lambda_max=3.0)
    for steps in (1, 2, 12):
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps) == steps
        assert float(scheduler.timesteps[0]) == 1000.0
    alpha, sigma = scheduler.alpha_sigma(scheduler.timesteps[1:])
    expected = torch.linspace(-2, 3, 11, dtype=torch.float64)
    torch.testing.assert_close(torch.log(alpha / sigma), expected, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="lambda_min"):
        VPDPMSolverMultistepScheduler(lambda_min=4.0)


def test_a_schedule_that_ends_before_lambda_max():
    """The official latent code models: index 0 has lambda = ln(alpha / sigma) at t = 1 / 1000, 2.4."""
    scheduler = VPDPMSolverMultistepScheduler(noise_schedule="constant_beta", timestep_spacing="leading")
    scheduler.set_timesteps(10)
    assert float(scheduler.timesteps[0]) == 999.0
    assert float(scheduler.timesteps[-1]) == pytest.approx(0.0, abs=1e-4)
    # And one whose noisy end is nearer than lambda_min: from there on in equal steps.
    scheduler = VPDPMSolverMultistepScheduler(noise_schedule="linear_beta", lambda_min=-6.0)
    scheduler.set_timesteps(10)
    alpha, sigma = scheduler.alpha_sigma(scheduler.timesteps)
    steps = torch.log(alpha / sigma).diff()
    torch.testing.assert_close(steps, steps.mean().expand(9), rtol=1e-3, atol=0)


def test_swapping_both_ways_and_saving(tmp_path):
    ddim = VPDDIMScheduler(noise_schedule="linear_beta", prediction_type="epsilon", clip_sample=True)
    solver = VPDPMSolverMultistepScheduler.from_config(ddim.config, lambda_max=3.5)
    back = VPDDIMScheduler.from_config(solver.config)
    inverse = VPDDIMInverseScheduler.from_config(solver.config)
    for other in (solver, back, inverse):
        for name in ("noise_schedule", "prediction_type", "timestep_spacing", "clip_sample", "trained_betas"):
            assert other.config[name] == ddim.config[name]
    assert VPDPMSolverMultistepScheduler.from_config(back.config).config.lambda_max == 3.5
    solver.save_pretrained(tmp_path)
    assert "trained_betas" not in (tmp_path / "scheduler_config.json").read_text()
    loaded = VPDPMSolverMultistepScheduler.from_pretrained(tmp_path)
    assert (loaded.config.lambda_min, loaded.config.lambda_max) == (-2.5, 3.5)
