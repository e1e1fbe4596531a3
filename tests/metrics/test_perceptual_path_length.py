"""Perceptual path length of a path whose squared steps are known."""

import pytest
import torch

from diffae_hub.metrics.perceptual_path_length import perceptual_path_length


@pytest.mark.parametrize(("num_intervals", "batch_size"), [(1, 50), (7, 1), (10, 2), (10, 1000), (100, 50)])
def test_path_of_known_steps(num_intervals: int, batch_size: int) -> None:
    """G(f) = f^2 in every pixel: the step from i / N to (i + 1) / N is (2 i + 1) / N^2."""
    decoded, compared = [], []

    def image_at(fractions: torch.Tensor) -> torch.Tensor:
        decoded.append(len(fractions))
        return fractions.square()[:, None, None, None].expand(-1, 3, 2, 4)

    def squared_distance(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        compared.append(len(images))
        return (images - references).square().flatten(1).mean(dim=1)

    length = perceptual_path_length(image_at, squared_distance, num_intervals, batch_size)
    expected = num_intervals * sum(((2 * i + 1) / num_intervals**2) ** 2 for i in range(num_intervals))
    assert length == pytest.approx(expected, rel=1e-9)
    assert max(decoded + compared) <= batch_size
    assert (sum(decoded), sum(compared)) == (num_intervals + 1, num_intervals)
