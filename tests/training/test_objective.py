"""Algorithms 1 and 2 against the paper's formulas in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from diffae_hub import VPDDIMScheduler
from diffae_hub.training.objective import denoising_loss, derived_seed, sample_timesteps


class Constant(nn.Module):
    """Answers with a given tensor and keeps what it was asked: shows the input and, through the loss, the target."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: torch.Tensor, noisy_images: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        self.images, self.noisy_images, self.timesteps = images, noisy_images, timesteps
        return self.answer


def alpha_sigma_64(noise_schedule: str, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha_t and sigma_t in float64 from the definitions (sections 3 and 4.3, section 9)."""
    if noise_schedule == "shifted_cosine":  # alpha / sigma = S cot(pi t / 2), S = 4
        angle = np.arctan2(np.sin(np.pi * t / 2), 4.0 * np.cos(np.pi * t / 2))
        return np.cos(angle), np.sin(angle)
    if noise_schedule == "inverted":
        alpha_bar = 2 / np.pi * np.arccos(np.sqrt(t))
        return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    # linear-beta at t = k / 1000: the product of 1 - beta over the first k of 1000 betas from 1e-4 to 0.02
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.array([np.prod(1 - betas[: round(1000 * time)]) for time in t])
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("noise_schedule", ["shifted_cosine", "linear_beta", "inverted"])
def test_algorithm_2(prediction_type: str, noise_schedule: str, rng: torch.Generator) -> None:
    scheduler = VPDDIMScheduler(noise_schedule=noise_schedule, prediction_type=prediction_type)
    images = torch.rand(6, 3, 8, 8, generator=rng) * 2 - 1
    noise = torch.randn(6, 3, 8, 8, generator=rng)
    t = np.array([0.001, 0.2, 0.45, 0.7, 0.95, 0.999])
    alpha, sigma = (level[:, None, None, None] for level in alpha_sigma_64(noise_schedule, t))
    x0, eps = images.double().numpy(), noise.double().numpy()
    target = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[prediction_type]

    model = Constant(torch.full_like(images, 0.5))
    losses = denoising_loss(model, scheduler, images, noise, torch.tensor(1000 * t, dtype=torch.float32))
    np.testing.assert_allclose(model.noisy_images.numpy(), alpha * x0 + sigma * eps, atol=2e-6)
    np.testing.assert_allclose(losses.numpy(), ((0.5 - target) ** 2).mean(axis=(1, 2, 3)), rtol=1e-5)
    assert torch.equal(model.images, images)

    # The prediction that equals the target has no loss.
    perfect = Constant(torch.from_numpy(target).float())
    losses = denoising_loss(perfect, scheduler, images, noise, torch.tensor(1000 * t, dtype=torch.float32))
    assert float(losses.max()) < 1e-11


def test_algorithm_1(rng: torch.Generator) -> None:
    """In phase 1 the decoder's input carries no information about x_0, and the target is -x_0."""
    scheduler = VPDDIMScheduler()
    noise = torch.randn(4, 3, 8, 8, generator=rng)
    timesteps = sample_timesteps(4, 1, scheduler, rng)
    assert timesteps.tolist() == [1000.0] * 4
    for _ in range(2):
        images = torch.rand(4, 3, 8, 8, generator=rng) * 2 - 1
        model = Constant(-images)
        losses = denoising_loss(model, scheduler, images, noise, timesteps)
        assert torch.equal(model.noisy_images, noise), "exactly the noise, whatever the images are"
        assert torch.equal(losses, torch.zeros(4))


def test_t_is_uniform() -> None:
    """Kolmogorov-Smirnov, over the batches of a training: each draws from a generator of its own."""
    scheduler = VPDDIMScheduler()
    batches = []
    for step in range(200):
        generator = torch.Generator().manual_seed(derived_seed(0, 2, 64 * step))
        batches.append(sample_timesteps(64, 2, scheduler, generator))
    t = torch.stack(batches).double() / 1000
    assert kstest(t.flatten().numpy(), "uniform").pvalue > 0.01
    # Neighbours, in a batch and from batch to batch, are independent: their correlation has deviation 1 / sqrt(N).
    centred = t - 0.5
    for shifted in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        assert abs(float(shifted.mean()) * 12) < 4 / math.sqrt(shifted.numel())


def test_official_timesteps_are_uniform_integers(rng: torch.Generator) -> None:
    scheduler = VPDDIMScheduler(prediction_type="epsilon", noise_schedule="linear_beta", timestep_spacing="leading")
    assert sample_timesteps(3, 1, scheduler, rng).tolist() == [999.0] * 3
    timesteps = sample_timesteps(50_000, 2, scheduler, rng)
    assert torch.equal(timesteps, timesteps.round())
    counts = torch.bincount(timesteps.long(), minlength=1000)
    assert len(counts) == 1000
    chi_square = float(((counts - 50.0) ** 2 / 50.0).sum())
    assert abs(chi_square - 999) < 5 * math.sqrt(2 * 999)
