"""The distribution of the timesteps. The loss itself is the trainer's test."""

import math

import torch
from scipy.stats import kstest

from diffae_hub import VPDDIMScheduler
from diffae_hub.training.objective import derived_seed, sample_timesteps


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
