"""Codes moved along attributes (section 5.2, "Attribute manipulation"; official DiffAE's rule)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from ..models.attribute_classifier import AttributeClassifier

Strength = float | Sequence[float]


def edited_codes(
    latent_code: torch.Tensor,
    edits: Mapping[str, Strength] | torch.Tensor,
    strength: Strength,
    keep: Sequence[str],
    classifier: AttributeClassifier | None,
) -> torch.Tensor:
    """z' = denormalise(normalise(z) + sum of a sqrt(d) w / |w|).

    w is an attribute's row of the classifier's weight; with `keep`, less its part in the space that the rows of these
    attributes span. Normalisation is by the mean and standard deviation of the classifier's training codes.

    Args:
        latent_code: z, (B, d).
        edits: Strengths a by attribute, or a direction (d,) in the space of the codes themselves, which is added
            `strength` times, as long as it is.
        strength: Of a direction.
        keep: Attributes that shall stay.
        classifier: Of the attributes; a direction needs none unless something is to be kept.

    Returns:
        (B * F, d), image by image; F is the number of strengths.

    Raises:
        ValueError: For what is not allowed; an unknown attribute's message lists those there are.
    """
    dtype, z = latent_code.dtype, latent_code.float()
    std = torch.ones_like(z[0])
    if isinstance(edits, torch.Tensor):
        if edits.shape != z.shape[1:]:
            raise ValueError(f"edits must be a direction of shape {tuple(z.shape[1:])}, got {tuple(edits.shape)}")
        strengths = [strength]
        if keep:
            std = _known(classifier).latent_std.to(z)
        directions = (edits.to(z) / std)[None]
        lengths = directions.norm(dim=1)
    else:
        if not edits:
            raise ValueError("edits must name at least one attribute, got none")
        strengths = list(edits.values())
        std = _known(classifier).latent_std.to(z)
        directions = torch.stack([_direction(classifier, name) for name in edits]).to(z)
        lengths = torch.full((len(edits),), math.sqrt(z.shape[1]), device=z.device)
    amounts = _table(strengths).to(z)  # (edits, F)
    if keep:
        if not isinstance(edits, torch.Tensor) and set(keep) & set(edits):
            raise ValueError(
                f"keep must name attributes other than those of edits, got {sorted(set(keep) & set(edits))}"
            )
        kept, _ = torch.linalg.qr(torch.stack([_direction(classifier, name) for name in keep]).to(z).T)  # (d, kept)
        whole = directions.norm(dim=1)
        directions = directions - directions @ kept @ kept.T
        if (directions.norm(dim=1) < 1e-4 * whole).any():
            raise ValueError(f"keep leaves nothing of an edit, got {list(keep)}")
    directions = torch.nn.functional.normalize(directions, dim=1)
    moves = (amounts * lengths[:, None]).T @ directions * std  # (F, d): denormalising the sum leaves std times the step
    return (z[:, None] + moves).flatten(0, 1).to(dtype)


def _known(classifier: AttributeClassifier | None) -> AttributeClassifier:
    if classifier is None:
        raise ValueError("edits and keep name attributes, but this pipeline has no attribute_classifier")
    return classifier


def _direction(classifier: AttributeClassifier | None, name: str) -> torch.Tensor:
    names = list(_known(classifier).config.attribute_names or range(classifier.config.num_attributes))
    if name not in names:
        raise ValueError(f"edits and keep must name attributes among {names}, got {name!r}")
    return classifier.linear.weight.detach()[names.index(name)].float()


def _table(strengths: Sequence[Strength]) -> torch.Tensor:
    """One row per edit, as long as the longest; a single strength is repeated."""
    rows = [torch.as_tensor(strength, dtype=torch.float32).reshape(-1) for strength in strengths]
    longest = max(len(row) for row in rows)
    if any(len(row) not in (1, longest) or not torch.isfinite(row).all() for row in rows) or longest == 0:
        raise ValueError(f"strengths must be finite numbers, or lists of one length, got {list(strengths)}")
    return torch.stack([row.expand(longest) for row in rows])
