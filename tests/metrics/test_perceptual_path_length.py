"""Perceptual path length against closed forms of the slerp."""

import math

import numpy as np
import pytest
import torch

from diffae_hub.metrics.perceptual_path_length import perceptual_path_length
from diffae_hub.pipelines.interpolation import slerp


@pytest.mark.parametrize(("num_intervals", "batch_size"), [(1, 50), (7, 1), (10, 2), (10, 1000), (100, 50)])
def test_linear_decoder_and_squared_distance(num_intervals: int, batch_size: int) -> None:
    # On an arc of radius r, the slerp goes through N equal angles w / N, each of chord^2 = 2 r^2 (1 - cos(w / N)). An
    # orthogonal decoder keeps chords, and those of code and noise add up: PPL = N * N * (chord_z^2 + chord_x^2).
    arcs, ends = ((1.5, 2.0, 12), (3.0, 0.7, 12)), []
    for seed, (radius, angle, size) in enumerate(arcs):
        plane, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, 2)))
        pair = plane[:, 0], math.cos(angle) * plane[:, 0] + math.sin(angle) * plane[:, 1]
        ends.append([torch.from_numpy(radius * end)[None] for end in pair])
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(3)).double())[0]
    decoded, compared = [], []

    def image_at(fractions: torch.Tensor) -> torch.Tensor:
        decoded.append(len(fractions))
        points = [slerp(*(end.expand(len(fractions), -1) for end in pair), fractions) for pair in ends]
        return (torch.cat(points, dim=1) @ rotation).reshape(-1, 3, 2, 4)

    def squared_distance(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        compared.append(len(images))
        return (images - references).square().flatten(1).sum(dim=1)

    chords = [2 * r**2 * (1 - math.cos(w / num_intervals)) for r, w, _ in arcs]
    length = perceptual_path_length(image_at, squared_distance, num_intervals, batch_size)
    assert length == pytest.approx(num_intervals**2 * sum(chords), rel=1e-9)
    assert max(decoded + compared) <= batch_size
    assert (sum(decoded), sum(compared)) == (num_intervals + 1, num_intervals)
    if num_intervals == 100:  # the paper's number and the default; nearly the limit, r^2 w^2
        assert length == pytest.approx(1.5**2 * 2.0**2 + 3.0**2 * 0.7**2, rel=1e-3)
