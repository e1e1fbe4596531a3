"""Muon against torch's Muon, and learning rates against their formulas."""

import math

import pytest
import torch

from diffae_hub.training.optimizers import Muon, learning_rate_at


def test_learning_rates() -> None:
    """Linear over 128,000 examples, then constant (section 8), and other schedules after a warm-up of 100."""
    for seen, rate in ((256, 2e-7), (64_000, 5e-5), (127_744, 9.98e-5), (128_000, 1e-4), (64_000_000, 1e-4)):
        assert learning_rate_at(seen, 1e-4, "constant", 128_000, 64_000_000) == pytest.approx(rate, rel=1e-12)
    assert learning_rate_at(256, 1e-4, "constant", 0, 64_000_000) == 1e-4
    for seen in (50, 100, 250, 900):
        warm, progress = min(1, seen / 100), max(0, (seen - 100) / 900)
        for name, share in (("cosine", (1 + math.cos(math.pi * progress)) / 2), ("linear", 1 - progress)):
            assert learning_rate_at(seen, 2.0, name, 100, 1000) == pytest.approx(2 * warm * share)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_muon_is_torchs_on_matrices(rng: torch.Generator, shape: tuple[int, int]) -> None:
    """torch computes in bfloat16, so a step agrees to about 2 % of its size."""
    start = torch.randn(*shape, generator=rng)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    options = {"weight_decay": 0.0, "momentum": 0.95, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = Muon([ours], lr=0.01), torch.optim.Muon([theirs], lr=0.01, **options)
    for _ in range(4):
        before = ours.detach().clone(), theirs.detach().clone()
        gradient = torch.randn(*shape, generator=rng)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        steps = [after.detach() - old for after, old in zip((ours, theirs), before, strict=True)]
        assert float((steps[0] - steps[1]).norm() / steps[1].norm()) < 0.03


def test_muon_is_adam_for_vectors_and_flattens_convolutions(rng: torch.Generator) -> None:
    bias, kernel = torch.randn(5, generator=rng), torch.randn(5, 3, 2, 2, generator=rng)
    parameters = [torch.nn.Parameter(value.clone()) for value in (bias, kernel, bias, kernel.flatten(1))]
    parameters[1].data = parameters[1].data.to(memory_format=torch.channels_last)
    gradients = torch.randn(5, generator=rng), torch.randn(5, 3, 2, 2, generator=rng)
    optimizers = (
        Muon(parameters[:2], lr=0.01),
        torch.optim.Adam(parameters[2:3], lr=0.01),
        Muon(parameters[3:], lr=0.01),
    )
    for _ in range(3):
        for parameter, gradient in zip(parameters, (*gradients, gradients[0], gradients[1].flatten(1)), strict=True):
            parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(parameters[0], parameters[2])
    torch.testing.assert_close(parameters[1].detach().flatten(1), parameters[3].detach())
