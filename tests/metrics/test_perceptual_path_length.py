"""Perceptual path length against closed forms of the slerp, and against its formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffae_hub.metrics.perceptual_path_length import perceptual_path_length
from diffae_hub.pipelines.interpolation import slerp


def squared_distance(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    return (images - references).square().flatten(1).sum(dim=1)


@pytest.mark.parametrize("num_intervals", [1, 7, 100])
def test_linear_decoder_and_squared_distance(num_intervals: int) -> None:
    # On an arc of radius r, the slerp goes through N equal angles w / N, each of chord^2 = 2 r^2 (1 - cos(w / N)). An
    # orthogonal decoder keeps chords, and those of code and noise add up: PPL = N * N * (chord_z^2 + chord_x^2).
    arcs, ends = ((1.5, 2.0, 12), (3.0, 0.7, 12)), []
    for seed, (radius, angle, size) in enumerate(arcs):
        plane, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, 2)))
        pair = plane[:, 0], math.cos(angle) * plane[:, 0] + math.sin(angle) * plane[:, 1]
        ends.append([torch.from_numpy(radius * end)[None] for end in pair])
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(3)).double())[0]

    def image_at(fractions: torch.Tensor) -> torch.Tensor:
        points = [slerp(*(end.expand(len(fractions), -1) for end in pair), fractions) for pair in ends]
        return (torch.cat(points, dim=1) @ rotation).reshape(-1, 3, 2, 4)

    chords = [2 * r**2 * (1 - math.cos(w / num_intervals)) for r, w, _ in arcs]
    length = perceptual_path_length(image_at, squared_distance, num_intervals)
    assert length == pytest.approx(num_intervals**2 * sum(chords), rel=1e-9)
    if num_intervals == 100:  # the paper's number and the default; nearly the limit, r^2 w^2
        assert length == perceptual_path_length(image_at, squared_distance)
        assert length == pytest.approx(1.5**2 * 2.0**2 + 3.0**2 * 0.7**2, rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 11, 1000])
def test_equals_the_formula_whatever_the_batches(batch_size: int) -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 1, 3, 4, 4))
    path = [1 / (1 + np.exp(-(((1 - i / 10) * first + i / 10 * second) ** 3))) for i in range(11)]
    expected = 10 * sum(np.abs(x - y).max() ** 1.5 for x, y in zip(path, path[1:], strict=False))
    decoded, compared = [], []

    def image_at(fractions: torch.Tensor) -> torch.Tensor:
        decoded.append(len(fractions))
        f = fractions[:, None, None, None]
        return torch.sigmoid(((1 - f) * torch.from_numpy(first) + f * torch.from_numpy(second)) ** 3)

    def distance(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        compared.append(len(images))
        return (images - references).abs().flatten(1).amax(dim=1) ** 1.5

    assert perceptual_path_length(image_at, distance, 10, batch_size) == pytest.approx(expected, rel=1e-9)
    assert max(decoded + compared) <= batch_size
    assert (sum(decoded), sum(compared)) == (11, 10)
