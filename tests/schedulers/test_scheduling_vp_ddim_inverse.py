"""VPDDIMInverseScheduler: its grids, and the official rule against an independent loop in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffae_hub.schedulers.scheduling_vp_ddim import VPDDIMScheduler
from diffae_hub.schedulers.scheduling_vp_ddim_inverse import VPDDIMInverseScheduler

ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def network(x: np.ndarray, index: float) -> np.ndarray:
    """Some noise prediction that depends on both arguments and makes x0_hat leave [-1, 1]."""
    return np.tanh(1.5 * x + index / 700 - 0.4)


def official_inversion(x: np.ndarray, stride: int) -> list[np.ndarray]:
    """The official DDIM inversion on the indices 0, stride, 2 stride, ...; all samples after x_0."""
    indices = np.arange(0, 1000, stride)
    kept = ALPHA_BAR[indices]
    following = np.append(kept[1:], 0.0)
    trajectory = []
    for index, here, there in zip(indices, kept, following, strict=True):
        image = x / np.sqrt(here) - np.sqrt(1 / here - 1) * network(x, index)
        image = np.clip(image, -1, 1)
        noise = (x / np.sqrt(here) - image) / np.sqrt(1 / here - 1)
        x = np.sqrt(there) * image + np.sqrt(1 - there) * noise
        trajectory.append(x)
    return trajectory


@pytest.mark.parametrize("steps", [20, 50, 100, 250])
def test_official_inversion(steps):
    scheduler = VPDDIMInverseScheduler(
        noise_schedule="linear_beta", timestep_spacing="leading", prediction_type="epsilon", clip_sample=True
    )
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == [float(i) for i in range(0, 1000, 1000 // steps)]
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 4))
    expected = official_inversion(images, 1000 // steps)
    x, clamped = torch.from_numpy(images), 0
    for t, after in zip(scheduler.timesteps, expected, strict=True):
        result = scheduler.step(torch.from_numpy(network(x.numpy(), float(t))), t, x)
        x = result.prev_sample
        clamped += int((result.pred_original_sample.abs() == 1).sum())
        np.testing.assert_allclose(x.numpy(), after, rtol=1e-8, atol=1e-8)
    assert clamped > 0


def test_official_inversion_ends_at_the_predicted_noise():
    scheduler = VPDDIMInverseScheduler(
        noise_schedule="linear_beta", timestep_spacing="leading", prediction_type="epsilon"
    )
    scheduler.set_timesteps(20)
    noise = torch.tensor([[0.3, -2.0]])
    result = scheduler.step(noise, scheduler.timesteps[-1], torch.ones(1, 2))
    assert torch.equal(result.prev_sample, noise)


@pytest.mark.parametrize("steps", [37, 41, 60])
def test_leading_grid_without_a_stride(steps):
    with pytest.raises(ValueError, match=f"num_inference_steps must be .* got {steps}"):
        VPDDIMInverseScheduler(timestep_spacing="leading").set_timesteps(steps)


def test_uniform_grid_ascends_from_zero():
    scheduler = VPDDIMInverseScheduler()
    scheduler.set_timesteps(50)
    torch.testing.assert_close(scheduler.timesteps, torch.linspace(0, 980, 50))
    image, velocity = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 3.0]])
    # At t = 0 the sample is the image and the velocity is the noise.
    angle = math.atan(math.tan(math.pi * 0.02 / 2) / 4)
    result = scheduler.step(velocity, scheduler.timesteps[0], image)
    torch.testing.assert_close(result.prev_sample, math.cos(angle) * image + math.sin(angle) * velocity)
    assert torch.equal(result.pred_original_sample, image)
    # The last update, 0.98 -> 1, ends at the predicted noise.
    angle = math.atan(math.tan(math.pi * 0.98 / 2) / 4)
    result = scheduler.step(velocity, scheduler.timesteps[-1], image)
    torch.testing.assert_close(result.prev_sample, math.sin(angle) * image + math.cos(angle) * velocity)


def test_noise_prediction_ends_where_sampling_starts():
    scheduler = VPDDIMScheduler(prediction_type="epsilon")
    inverse = VPDDIMInverseScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(50)
    inverse.set_timesteps(50)
    image, noise = torch.tensor([[0.5, -1.0]]).double(), torch.tensor([[2.0, 3.0]]).double()
    t = inverse.timesteps[-1]
    end = inverse.step(noise, t, scheduler.add_noise(image, noise, t)).prev_sample
    torch.testing.assert_close(end, scheduler.add_noise(image, noise, 999.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(end, scheduler.add_noise(image, noise, scheduler.timesteps[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [{"prediction_type": "sample"}, {"prediction_type": "v_prediction", "clip_sample": True}],
    ids=["sample", "clip_sample"],
)
def test_what_divides_by_sigma_starts_in_the_middle_of_the_first_interval(config):
    scheduler = VPDDIMInverseScheduler(**config)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[0] == 10.0  # 1000 / (2 * 50)
    torch.testing.assert_close(scheduler.timesteps[1:], torch.linspace(20, 980, 49))
    here, there = (math.atan(math.tan(math.pi * t / 2) / 4) for t in (0.01, 0.02))
    image, sample = torch.tensor([[0.5, -0.9]]).double(), torch.tensor([[0.5001, -0.9]]).double()
    noise = (sample - math.cos(here) * image) / math.sin(here)
    output = image if config["prediction_type"] == "sample" else math.cos(here) * noise - math.sin(here) * image
    result = scheduler.step(output, scheduler.timesteps[0], sample)
    torch.testing.assert_close(result.prev_sample, math.cos(there) * image + math.sin(there) * noise)
