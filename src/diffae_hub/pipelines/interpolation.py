"""Interpolation between vectors or images: linear, and spherical (section 5.2; Karras et al.'s Slerp in section 10)."""

from collections.abc import Callable

import torch

Interpolation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | float], torch.Tensor]

# Below this sine the two directions are parallel (or opposite, without a unique arc) and are interpolated linearly.
_SMALL_SINE = 1e-6


def lerp(start: torch.Tensor, end: torch.Tensor, fraction: torch.Tensor | float) -> torch.Tensor:
    """`(1 - f) start + f end` of tensors (B, ...) or (1, ...), with f a number or one per batch element, (B,)."""
    return torch.lerp(start, end, _weight(fraction, start))


def slerp(start: torch.Tensor, end: torch.Tensor, fraction: torch.Tensor | float) -> torch.Tensor:
    """Spherical interpolation `sin((1 - f) w) / sin(w) start + sin(f w) / sin(w) end`; shapes as in [`lerp`].

    w is the angle between the two flattened tensors, per batch element. Parallel and opposite ones have no
    unique arc and are interpolated linearly. Computed in float32 at least.
    """
    dtype = torch.promote_types(start.dtype, torch.float32)
    first, second = start.to(dtype), end.to(dtype)
    cosine = torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1)).clamp(-1, 1)
    angle = _weight(torch.arccos(cosine), first)
    sine = torch.sin(angle)
    weight = _weight(fraction, first)
    arc = torch.sin((1 - weight) * angle) * first + torch.sin(weight * angle) * second
    straight = lerp(first, second, fraction)
    return torch.where(sine < _SMALL_SINE, straight, arc / sine.clamp(min=_SMALL_SINE)).to(start.dtype)


def _weight(fraction: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    weight = torch.as_tensor(fraction, dtype=like.dtype, device=like.device)
    return weight.reshape(-1, *[1] * (like.ndim - 1)) if weight.ndim else weight


def along_path(points: torch.Tensor, num_frames: int, how: Interpolation) -> torch.Tensor:
    """Returns `num_frames` points, equally spaced along the legs between the points (K, ...), ends included."""
    place = torch.linspace(0, len(points) - 1, num_frames, dtype=torch.float64)
    leg = place.floor().long().clamp(max=len(points) - 2)
    return how(points[leg], points[leg + 1], place - leg)


def between_corners(corners: torch.Tensor, num_frames: int, how: Interpolation) -> torch.Tensor:
    """Fills a grid (num_frames^2, ...), row by row, from (4, ...): upper left, upper right, lower left, lower right."""
    left, right = (along_path(corners[[upper, upper + 2]], num_frames, how) for upper in (0, 1))
    rows = [along_path(torch.stack(ends), num_frames, how) for ends in zip(left, right, strict=True)]
    return torch.cat(rows)


INTERPOLATIONS: dict[str, Interpolation] = {"slerp": slerp, "lerp": lerp}
LAYOUTS = {"path": along_path, "grid": between_corners}
