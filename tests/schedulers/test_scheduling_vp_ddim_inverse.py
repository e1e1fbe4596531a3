"""VPDDIMInverseScheduler: plain inversion, predictor-corrector. The official rule is the test of the conversion."""

import math

import pytest
import torch

from diffae_hub import VPDDIMInverseScheduler, VPDDIMScheduler, VPDPMSolverMultistepScheduler


@pytest.mark.parametrize(
    ("config", "first"),
    [({}, 0.0), ({"prediction_type": "sample"}, 10.0), ({"clip_sample": True}, 10.0)],
    ids=["v", "sample", "clip"],
)
def test_plain_inversion_ascends_from_the_image(config, first):
    """What divides by sigma starts in the middle of the first interval, at 1000 / (2 * 50)."""
    scheduler = VPDDIMInverseScheduler(**config, inversion="plain")
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[0] == first
    torch.testing.assert_close(scheduler.timesteps[1:], torch.linspace(20, 980, 49))
    here, there = (math.atan(math.tan(math.pi * t / 2000) / 4) for t in (first, 20))
    image, noise = torch.tensor([[0.5, -0.9], [2.0, 3.0]], dtype=torch.float64)
    output = image if "prediction_type" in config else math.cos(here) * noise - math.sin(here) * image
    result = scheduler.step(output, first, math.cos(here) * image + math.sin(here) * noise)
    torch.testing.assert_close(result.prev_sample, math.cos(there) * image + math.sin(there) * noise)
    torch.testing.assert_close(result.pred_original_sample, image)


# ---- predictor-corrector --------------------------------------------------------------------------------------------


def denoiser(scheduler, x, t):
    """A smooth network: some velocity, put out in the form that the scheduler predicts."""
    alpha, sigma = scheduler.alpha_sigma(t)
    velocity = torch.tanh(0.5 * x + 0.8 * x.flip(-1) - sigma)
    if scheduler.config.prediction_type == "epsilon":
        return sigma * x + alpha * velocity
    return alpha * x - sigma * velocity if scheduler.config.prediction_type == "sample" else velocity


def walk(scheduler, x):
    scheduler.set_timesteps(20)
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser(scheduler, x, t), t, x).prev_sample
    return x


def invert_exactly(inverse, x):
    """x_T, and the largest error before the last correction."""
    inverse.set_timesteps(20)
    largest = 0.0
    for t in inverse.timesteps:
        output = denoiser(inverse, x, t)
        for _ in range(25):
            x, error = inverse.correct(output, t, x)
            output = denoiser(inverse, x, t)
        x = inverse.step(output, t, x).prev_sample
        largest = max(largest, float(error.abs().max()))
    return x, largest


@pytest.mark.parametrize(
    "config",
    [
        {"prediction_type": "v_prediction"},
        {"prediction_type": "epsilon", "noise_schedule": "linear_beta"},
        {"prediction_type": "sample"},
        {"prediction_type": "v_prediction", "clip_sample": True},
        {"prediction_type": "epsilon", "noise_schedule": "linear_beta", "timestep_spacing": "leading"},
    ],
    ids=["v", "epsilon", "sample", "clip", "leading"],
)
def test_iterated_correction_is_the_exact_inverse_of_sampling(config):
    sampler = VPDDIMScheduler(**config)
    inverse = VPDDIMInverseScheduler.from_config(sampler.config, inversion="predictor_corrector")
    noise = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = walk(sampler, noise)
    exact, error = invert_exactly(inverse, image)
    assert error < 1e-9
    assert float((walk(sampler, exact) - image).abs().max()) < 1e-7
    plain = VPDDIMInverseScheduler.from_config(sampler.config, inversion="plain")
    plain_error, once_error = ((walk(sampler, walk(way, image)) - image).abs().max() for way in (plain, inverse))
    assert once_error < 0.5 * plain_error


@pytest.mark.parametrize("scheduler_class", [VPDDIMInverseScheduler, VPDPMSolverMultistepScheduler])
def test_the_state_of_a_loop_does_not_reach_the_next(scheduler_class):
    image = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    used = scheduler_class()
    used.set_timesteps(20)
    for t in used.timesteps[:3]:
        used.step(denoiser(used, image, t), t, image)
    assert torch.equal(walk(used, image), walk(scheduler_class(), image))


def test_the_default_inversion_follows_the_spacing():
    for spacing, count in (("uniform", 21), ("leading", 20)):
        inverse = VPDDIMInverseScheduler(timestep_spacing=spacing)
        inverse.set_timesteps(20)
        assert len(inverse.timesteps) == count
    with pytest.raises(ValueError, match="inversion"):
        VPDDIMInverseScheduler(inversion="exact")
    # One step from pure noise does not depend on it, so that there is nothing to solve for.
    with pytest.raises(ValueError, match="num_inference_steps"):
        VPDDIMInverseScheduler().set_timesteps(1)
