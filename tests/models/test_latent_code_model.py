"""The latent code model: its arithmetic against plain torch in float64, saving and bad input."""

from __future__ import annotations

import math

import pytest
import torch

from diffae_hub import LatentCodeModel

from ..conftest import randomize

TINY = {"latent_dim": 6, "hidden_dim": 10, "num_layers": 3, "time_sinusoid_dim": 4, "time_embed_dim": 5}


def test_arithmetic_in_float64() -> None:
    model = randomize(LatentCodeModel(**TINY))
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    z, t = torch.randn(3, 6), torch.tensor([0.0, 40.0, 999.0])

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(x: torch.Tensor) -> torch.Tensor:
        return x / (1 + torch.exp(-x))

    frequencies = torch.tensor([1.0, math.exp(-math.log(10_000) / 2)]).double()
    angles = t.double()[:, None] * frequencies
    time = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
    time = silu(linear("time_embedding.linear_2", silu(linear("time_embedding.linear_1", time))))
    h = z.double()
    for index in range(2):
        h = torch.cat([h, z.double()], dim=1) if index else h
        h = linear(f"layers.{index}.linear", h) * (1 + linear(f"layers.{index}.time_projection", time))
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        h = silu(h * w[f"layers.{index}.norm.weight"] + w[f"layers.{index}.norm.bias"])
    expected = linear("linear_out", torch.cat([h, z.double()], dim=1))
    torch.testing.assert_close(model(z, t).sample.double(), expected, atol=1e-5, rtol=1e-4)


def test_statistics_are_saved(tmp_path) -> None:
    model = LatentCodeModel(**TINY)
    model.latent_mean.copy_(torch.arange(6.0))
    model.latent_std.fill_(2.0)
    model.save_pretrained(tmp_path)
    loaded = LatentCodeModel.from_pretrained(tmp_path)
    code = torch.arange(6.0)[None] + 4.0
    torch.testing.assert_close(loaded.normalize(code), torch.full((1, 6), 2.0))
    torch.testing.assert_close(loaded.denormalize(loaded.normalize(code)), code)


def test_it_compiles_without_graph_breaks() -> None:
    model = randomize(LatentCodeModel(**TINY))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    z, timestep = torch.randn(3, 6), torch.tensor([0, 40, 999])
    assert torch.equal(compiled(z, timestep).sample, model(z, timestep).sample)


def test_bad_configuration_and_timesteps() -> None:
    for name in TINY:
        for value in (0, 10_000_000):
            with pytest.raises(ValueError, match=name):
                LatentCodeModel(**{**TINY, name: value})
    for timestep in (torch.zeros(2), torch.zeros(3, 1)):
        with pytest.raises(ValueError, match="timestep"):
            LatentCodeModel(**TINY)(torch.zeros(3, 6), timestep)
