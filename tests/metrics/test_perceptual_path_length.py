"""Perceptual path length against closed forms of the slerp, and against its formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffae_hub.metrics.perceptual_path_length import cross_fade_length, perceptual_path_length


def squared_distance(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    return (images - references).square().flatten(1).sum(dim=1)


def arc(radius: float, angle: float, shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two vectors of one length with a given angle between them, in a random plane, float64."""
    plane, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((math.prod(shape), 2)))
    ends = plane[:, 0], math.cos(angle) * plane[:, 0] + math.sin(angle) * plane[:, 1]
    return tuple(torch.from_numpy(radius * end).reshape(1, *shape) for end in ends)


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
    length = perceptual_path_length(decode, squared_distance, *codes, *noises, num_intervals=num_intervals)
    assert length.shape == (1,) and length.dtype == torch.float64
    assert float(length) == pytest.approx(num_intervals**2 * sum(chords), rel=1e-9)
    if num_intervals == 100:  # and nearly the limit, r^2 w^2
        assert float(length) == pytest.approx(1.5**2 * 2.0**2 + 3.0**2 * 0.7**2, rel=1e-3)


def test_default_is_the_papers_hundred_intervals() -> None:
    codes, noises = arc(1.0, 1.0, (6,), seed=4), arc(1.0, 1.0, (1, 2, 2), seed=5)
    length = perceptual_path_length(lambda z, x: z[:, :, None, None], squared_distance, *codes, *noises)
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

        lengths = perceptual_path_length(
            counting_decode, counting_distance, codes_a, codes_b, noises_a, noises_b, 10, batch_size
        )
        np.testing.assert_allclose(lengths.numpy(), expected, rtol=1e-9)
        assert max(decoded + compared) <= batch_size
        assert sum(decoded) == 4 * 11 and sum(compared) == 4 * 10  # every image once; never from one path to the next


def test_a_path_to_itself_has_no_length_and_direction_does_not_matter() -> None:
    codes_a, codes_b, noises_a, noises_b = random_ends(2)

    def lengths(*ends: torch.Tensor) -> torch.Tensor:
        return perceptual_path_length(
            lambda z, x: x * z[:, :1, None, None], squared_distance, *ends, num_intervals=9, batch_size=4
        )

    assert lengths(codes_a, codes_a, noises_a, noises_a).abs().max() < 1e-12
    forward = lengths(codes_a, codes_b, noises_a, noises_b)
    torch.testing.assert_close(lengths(codes_b, codes_a, noises_b, noises_a), forward)
    assert forward.min() > 0.1
    assert lengths(*(end[:0] for end in random_ends(2))).shape == (0,)


def test_with_a_pipeline(tiny_pipeline) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(2, 1, 8, generator=generator)
    noises = torch.randn(2, 1, 3, 16, 16, generator=generator)

    def decode(latent_code: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return tiny_pipeline.decode(latent_code, noise=noise, num_inference_steps=3, output_type="pt").images

    length = perceptual_path_length(decode, squared_distance, *codes, *noises, num_intervals=2, batch_size=2)
    ends = [decode(code, noise) for code, noise in zip(codes, noises, strict=True)]
    cosines = [torch.cosine_similarity(pair[0].flatten(), pair[1].flatten(), dim=0) for pair in (codes, noises)]
    # half way on an arc between vectors of any lengths: their sum, over 2 cos(w / 2)
    middle = decode(
        *(pair.sum(0) / (2 * torch.cos(c.arccos() / 2)) for pair, c in zip((codes, noises), cosines, strict=True))
    )
    expected = 2 * (squared_distance(ends[0], middle) + squared_distance(middle, ends[1]))
    torch.testing.assert_close(length, expected.double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_cross_fade(batch_size: int) -> None:
    """N equal steps of 1/N of the way: by squared distance the length is that of the ends, whatever N is."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(3, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = cross_fade_length(squared_distance, first, second, num_intervals=7, batch_size=batch_size)
    torch.testing.assert_close(lengths, squared_distance(first, second))
    with pytest.raises(ValueError, match="images_a and images_b must have one shape"):
        cross_fade_length(squared_distance, first, second[:2])


def test_bad_input() -> None:
    codes_a, codes_b, noises_a, noises_b = random_ends(2)

    def length(*ends: torch.Tensor, **numbers: int) -> torch.Tensor:
        return perceptual_path_length(lambda z, x: x, squared_distance, *ends, **numbers)

    with pytest.raises(ValueError, match="must have one shape each"):
        length(codes_a, codes_b[:1], noises_a, noises_b)
    with pytest.raises(ValueError, match="must have one shape each"):
        length(codes_a, codes_b, noises_a, noises_b[:, :, :2])
    with pytest.raises(ValueError, match="one entry per latent code, 2, got 1"):
        length(codes_a, codes_b, noises_a[:1], noises_b[:1])
    for name in ("num_intervals", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            length(codes_a, codes_b, noises_a, noises_b, **{name: 0})
