"""slerp and lerp against closed forms."""

from __future__ import annotations

import math

import torch

from diffae_hub.pipelines.interpolation import lerp, slerp


def test_slerp_on_the_unit_circle_is_the_angle() -> None:
    start, end = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(2.0), math.sin(2.0)]])
    for fraction in (0.0, 0.25, 0.6, 1.0):
        expected = torch.tensor([[math.cos(2.0 * fraction), math.sin(2.0 * fraction)]])
        torch.testing.assert_close(slerp(start, end, fraction), expected, atol=1e-6, rtol=0)


def test_slerp_keeps_the_norm_of_images_and_takes_one_fraction_each() -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(3, 2, 8, 8, generator=generator) for _ in range(2))
    end = end * (start.flatten(1).norm(dim=1) / end.flatten(1).norm(dim=1)).reshape(3, 1, 1, 1)
    result = slerp(start, end, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(result.flatten(1).norm(dim=1), start.flatten(1).norm(dim=1))
    torch.testing.assert_close(result[0], start[0])
    torch.testing.assert_close(result[2], end[2], atol=1e-5, rtol=1e-5)


def test_slerp_without_an_arc_is_linear() -> None:
    start = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    end = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    expected = torch.tensor([[1.5, 0.0], [0.5, 0.0]])
    result = slerp(start, end, 0.25)
    assert torch.isfinite(result).all()
    torch.testing.assert_close(result[:2], expected, atol=1e-3, rtol=0)


def test_lerp_and_half_precision() -> None:
    start, end = torch.zeros(2, 3), torch.ones(2, 3)
    torch.testing.assert_close(lerp(start, end, torch.tensor([0.25, 0.5])), torch.tensor([[0.25] * 3, [0.5] * 3]))
    assert slerp(torch.randn(1, 4).half(), torch.randn(1, 4).half(), 0.5).dtype == torch.float16
