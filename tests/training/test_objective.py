"""The loss against the paper's formula in float64, and the distribution of its timesteps."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from diffae_hub import VPDDIMScheduler
from diffae_hub.training.objective import denoising_loss, derived_seed, sample_timesteps


class Constant(nn.Module):
    """Answers with a given tensor and keeps its inputs, so that the loss shows the target."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: torch.Tensor, noisy_images: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        self.images, self.noisy_images = images, noisy_images
        return self.answer


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_algorithm_2(prediction_type: str, rng: torch.Generator) -> None:
    scheduler = VPDDIMScheduler(prediction_type=prediction_type)
    images = torch.rand(6, 3, 8, 8, generator=rng) * 2 - 1
    noise = torch.randn(6, 3, 8, 8, generator=rng)
    t = np.array([0.001, 0.2, 0.45, 0.7, 0.95, 0.999])
    angle = np.arctan2(np.sin(np.pi * t / 2), 4.0 * np.cos(np.pi * t / 2))[:, None, None, None]
    alpha, sigma = np.cos(angle), np.sin(angle)  # alpha / sigma = S cot(pi t / 2), S = 4 (section 4.3)
    x0, eps = images.double().numpy(), noise.double().numpy()
    target = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[prediction_type]

    model = Constant(torch.full_like(images, 0.5))
    losses = denoising_loss(model, scheduler, images, noise, torch.tensor(1000 * t, dtype=torch.float32))
    np.testing.assert_allclose(model.noisy_images.numpy(), alpha * x0 + sigma * eps, atol=2e-6)
    np.testing.assert_allclose(losses.numpy(), ((0.5 - target) ** 2).mean(axis=(1, 2, 3)), rtol=1e-5)
    assert torch.equal(model.images, images)

    weighted = denoising_loss(model, scheduler, images, noise, torch.tensor(1000 * t, dtype=torch.float32), "sigma")
    np.testing.assert_allclose(weighted.numpy(), losses.numpy() * sigma.ravel(), rtol=1e-5)


def test_t_is_uniform() -> None:
    """A Kolmogorov-Smirnov test over the batches of a training, each of which has its own generator."""
    scheduler = VPDDIMScheduler()
    assert sample_timesteps(4, 1, scheduler, torch.Generator()).tolist() == [1000.0] * 4  # in phase 1
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
