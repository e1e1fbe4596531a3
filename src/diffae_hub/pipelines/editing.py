"""Moves codes along attributes (section 5.2, "Attribute manipulation"; official DiffAE's rule)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..models.attribute_classifier import AttributeClassifier
from .image_processor import check_values

Strength = float | Sequence[float]


def edited_codes(
    latent_code: torch.Tensor,
    edits: Mapping[str, Strength] | torch.Tensor | np.ndarray,
    strength: Strength,
    keep: Sequence[str],
    classifier: AttributeClassifier | None,
) -> torch.Tensor:
    """Edits codes z, (B, d), as in `DiffusionAutoencoderPipeline.edit`. Returns (B * F, d) for F strengths each."""
    edits = torch.from_numpy(edits) if isinstance(edits, np.ndarray) else edits
    if isinstance(keep, str):
        raise ValueError(f"keep must be a list of attributes, got {keep!r}")
    by_name = isinstance(edits, Mapping)
    if by_name and not (isinstance(strength, (int, float)) and strength == 1):
        raise ValueError(f"strength must be 1 with attributes, whose strengths are in edits, got {strength}")
    if not (by_name or isinstance(edits, torch.Tensor)):
        raise ValueError(f"edits must be a dictionary of strengths by attribute, or a direction, got {edits!r}")
    z = latent_code.float()
    if classifier is None and (by_name or keep):
        raise ValueError("edits and keep name attributes, but this pipeline has no attribute_classifier")
    std = classifier.latent_std.to(z) if by_name or keep else torch.ones_like(z[0])
    if by_name:
        if not edits or set(keep) & set(edits):
            raise ValueError(f"edits and keep must name attributes, but none in both, got {list(edits)} and {keep}")
        steps = math.sqrt(z.shape[1]) * torch.stack([classifier.direction(name) for name in edits]).to(z)
    else:
        check_values("edits", edits)
        if edits.shape != z.shape[1:]:
            raise ValueError(f"edits must be a direction of shape {tuple(z.shape[1:])}, got {tuple(edits.shape)}")
        steps = (edits.to(z) / std)[None]
    amounts = _table(list(edits.values()) if by_name else [strength]).to(z)  # (edits, F)
    if keep:
        # An orthonormal basis, (d, rank): directions may be nearly the same.
        basis, sizes, _ = torch.linalg.svd(torch.stack([classifier.direction(name) for name in keep]).to(z).T, False)
        kept = basis[:, sizes > 1e-3 * sizes[0]]
        lengths, rest = steps.norm(dim=1, keepdim=True), steps - steps @ kept @ kept.T
        if (rest.norm(dim=1, keepdim=True) < 1e-4 * lengths).any():
            raise ValueError(f"keep leaves nothing of an edit, got {list(keep)}")
        steps = lengths * torch.nn.functional.normalize(rest, dim=1)
    moves = amounts.T @ steps * std  # (F, d): denormalising the sum leaves std times the step
    return (z[:, None] + moves).flatten(0, 1).to(latent_code.dtype)


def _table(strengths: Sequence[Strength]) -> torch.Tensor:
    """Makes a table with a row per edit, as long as the longest; a single strength is repeated."""
    rows = [torch.as_tensor(strength, dtype=torch.float32).reshape(-1) for strength in strengths]
    longest = max(len(row) for row in rows)
    if any(len(row) not in (1, longest) or not torch.isfinite(row).all() for row in rows) or longest == 0:
        raise ValueError(f"strengths must be finite numbers, or lists of one length, got {strengths}")
    return torch.stack([row.expand(longest) for row in rows])
