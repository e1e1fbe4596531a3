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


def arc(radius: float, angle: float, shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two vectors of one length with a given angle between them, in a random plane, float64."""
    plane, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((math.prod(shape), 2)))
    ends = plane[:, 0], math.cos(angle) * plane[:, 0] + math.sin(angle) * plane[:, 1]
    return tuple(torch.from_numpy(radius * end).reshape(1, *shape) for end in ends)


def decoded_slerp(decode, codes_a, codes_b, noises_a, noises_b):
    """The path of the paper: G(f) decodes the slerps of codes and of noises."""

    def image_at(path: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
        return decode(slerp(codes_a[path], codes_b[path], fraction), slerp(noises_a[path], noises_b[path], fraction))

    return image_at


def random_ends(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((count, 5), (count, 5), (count, 3, 4, 4), (count, 3, 4, 4))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("num_intervals", [1, 7, 100])
def test_linear_decoder_and_squared_distance(num_intervals: int) -> None:
    # On an arc of radius r, the slerp goes through N equal angles w / N, each of chord^2 = 2 r^2 (1 - cos(w / N)). An
    # orthogonal decoder keeps chords, and those of code and noise add up: PPL = N * N * (chord_z^2 + chord_x^2).
    codes, noises = arc(1.5, 2.0, (12,), seed=1), arc(3.0, 0.7, (3, 2, 2), seed=2)
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(3)).double())[0]

    def decode(latent_code: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return (torch.cat([latent_code, noise.flatten(1)], dim=1) @ rotation).reshape(-1, 3, 2, 4)

    chords = [2 * r**2 * (1 - math.cos(w / num_intervals)) for r, w in ((1.5, 2.0), (3.0, 0.7))]
    length = perceptual_path_length(decoded_slerp(decode, *codes, *noises), squared_distance, 1, num_intervals)
    assert length.shape == (1,) and length.dtype == torch.float64
    assert float(length) == pytest.approx(num_intervals**2 * sum(chords), rel=1e-9)
    if num_intervals == 100:  # and nearly the limit, r^2 w^2
        assert float(length) == pytest.approx(1.5**2 * 2.0**2 + 3.0**2 * 0.7**2, rel=1e-3)


def test_default_is_the_papers_hundred_intervals() -> None:
    codes, noises = arc(1.0, 1.0, (6,), seed=4), arc(1.0, 1.0, (1, 2, 2), seed=5)
    image_at = decoded_slerp(lambda z, x: z[:, :, None, None], *codes, *noises)
    length = perceptual_path_length(image_at, squared_distance, 1)
    assert float(length) == pytest.approx(100**2 * 2 * (1 - math.cos(0.01)), rel=1e-6)


def test_several_paths_equal_the_formula_whatever_the_batches() -> None:
    codes_a, codes_b, noises_a, noises_b = random_ends(4)
    mixing = torch.randn(5, 48, generator=torch.Generator().manual_seed(1)).double()

    def decode(latent_code: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(noise + (latent_code @ mixing).reshape(-1, 3, 4, 4))

    def distance(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        return (images - references).abs().flatten(1).amax(dim=1) ** 1.5

    def numpy_slerp(start: np.ndarray, end: np.ndarray, fraction: float) -> np.ndarray:
        angle = np.arccos(np.vdot(start, end) / np.linalg.norm(start) / np.linalg.norm(end))
        return (np.sin((1 - fraction) * angle) * start + np.sin(fraction * angle) * end) / np.sin(angle)

    expected = []
    for pair in range(4):
        images = []
        for i in range(11):
            code = numpy_slerp(codes_a[pair].numpy(), codes_b[pair].numpy(), i / 10)
            noise = numpy_slerp(noises_a[pair].numpy(), noises_b[pair].numpy(), i / 10)
            images.append(1 / (1 + np.exp(-noise - (code @ mixing.numpy()).reshape(3, 4, 4))))
        expected.append(10 * sum(np.abs(x - y).max() ** 1.5 for x, y in zip(images, images[1:], strict=False)))

    for batch_size in (1, 2, 7, 11, 44, 1000):
        decoded, compared = [], []

        def counting_decode(latent_code: torch.Tensor, noise: torch.Tensor, sizes=decoded) -> torch.Tensor:
            sizes.append(len(latent_code))
            return decode(latent_code, noise)

        def counting_distance(images: torch.Tensor, references: torch.Tensor, sizes=compared) -> torch.Tensor:
            sizes.append(len(images))
            return distance(images, references)

        image_at = decoded_slerp(counting_decode, codes_a, codes_b, noises_a, noises_b)
        lengths = perceptual_path_length(image_at, counting_distance, 4, 10, batch_size)
        np.testing.assert_allclose(lengths.numpy(), expected, rtol=1e-9)
        assert max(decoded + compared) <= batch_size
        assert sum(decoded) == 4 * 11 and sum(compared) == 4 * 10  # every image once; never from one path to the next


def test_a_path_to_itself_has_no_length_and_direction_does_not_matter() -> None:
    codes_a, codes_b, noises_a, noises_b = random_ends(2)

    def lengths(*ends: torch.Tensor) -> torch.Tensor:
        image_at = decoded_slerp(lambda z, x: x * z[:, :1, None, None], *ends)
        return perceptual_path_length(image_at, squared_distance, 2, num_intervals=9, batch_size=4)

    assert lengths(codes_a, codes_a, noises_a, noises_a).abs().max() < 1e-12
    forward = lengths(codes_a, codes_b, noises_a, noises_b)
    torch.testing.assert_close(lengths(codes_b, codes_a, noises_b, noises_a), forward)
    assert forward.min() > 0.1


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_one_image_fading_into_another(batch_size: int) -> None:
    """N equal steps of 1/N of the way: by squared distance the length is that of the ends, whatever N is."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(3, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))

    def fading(path: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
        return torch.lerp(first[path], second[path], fraction[:, None, None, None])

    lengths = perceptual_path_length(fading, squared_distance, 3, num_intervals=7, batch_size=batch_size)
    torch.testing.assert_close(lengths, squared_distance(first, second))
