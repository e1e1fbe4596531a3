"""AttributeClassifier: latent code -> attributes, and the direction in which an attribute grows (official DiffAE)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from accelerate.utils import align_module_device
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .attribute_fitting import FittedDirections, fit_directions, principal_directions
from .latent_statistics import LatentStatisticsMixin
from .layers import check_range
from .safetensors_only import SafetensorsOnlyMixin


@dataclass
class AttributeClassifierOutput(BaseOutput):
    """Output of [`AttributeClassifier`].

    Args:
        logits: One per attribute, shape (B, num_attributes); above 0 where it is more likely present than not.
    """

    logits: torch.Tensor


class AttributeClassifier(LatentStatisticsMixin, SafetensorsOnlyMixin, ModelMixin, ConfigMixin):
    """A linear classifier of attributes on normalised latent codes.

    Codes are normalised with the mean and standard deviation of the training codes, which are part of its saved state.

    Args:
        latent_dim: Width of the latent code.
        num_attributes: Number of attributes; the official classifiers have the 40 of CelebA.
        attribute_names: Their names, in the order of the rows; None if they have none.
        attribute_scores: What [`~AttributeClassifier.fit`] measured on held-out codes, one dictionary per attribute.

    Raises:
        ValueError: If a number is out of range, or the names are not `num_attributes` different strings.
    """

    __module__ = "diffae_hub"

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 512,
        num_attributes: int = 40,
        attribute_names: Sequence[str] | None = None,
        attribute_scores: Sequence[dict[str, float]] | None = None,
    ) -> None:
        super().__init__()
        check_range(1, 1_000_000, latent_dim=latent_dim, num_attributes=num_attributes)
        if attribute_names is not None:
            different = len(set(attribute_names))
            if not len(attribute_names) == different == num_attributes:
                raise ValueError(
                    f"attribute_names must be None or {num_attributes} different names, one per attribute, "
                    f"got {len(attribute_names)}, {different} of them different"
                )
        self.linear = nn.Linear(latent_dim, num_attributes)
        self.register_latent_statistics(latent_dim)

    @classmethod
    def fit(cls, codes: Any, labels: Any, names: Sequence[str] | None = None, **options: Any) -> Self:
        """A classifier of labelled codes; `config.attribute_scores` has its figures on codes that it did not see.

        Args:
            codes: (N, latent_dim), as the encoder gives them.
            labels: (N,) classes, (N, A) of 0 and 1, or numbers for `method="ridge"`.
            names: One per attribute.
            options: `method` ("logistic", "svm", "means", "ridge"), `held_out`, `groups`, `regularization`, `seed`; see
                [`~models.attribute_fitting.fit_directions`].

        Raises:
            ValueError: If labels do not fit the codes, an attribute has one kind of label, or codes are not finite.
        """
        return cls._from_directions(fit_directions(codes, labels, names, **options))

    @classmethod
    def principal_directions(cls, codes: Any, num_directions: int = 10) -> Self:
        """The directions in which codes vary most, "component 0" and so on, from codes (N, latent_dim) alone."""
        return cls._from_directions(principal_directions(codes, num_directions))

    @classmethod
    def _from_directions(cls, fitted: FittedDirections) -> Self:
        count, latent_dim = fitted.weight.shape
        classifier = cls(latent_dim, count, fitted.names, fitted.scores)
        state = {
            "linear.weight": fitted.weight,
            "linear.bias": fitted.bias,
            "latent_mean": fitted.mean,
            "latent_std": fitted.std,
        }
        classifier.load_state_dict({name: torch.as_tensor(value, dtype=torch.float32) for name, value in state.items()})
        return classifier.eval()

    def forward(
        self, latent_code: torch.Tensor, return_dict: bool = True
    ) -> AttributeClassifierOutput | tuple[torch.Tensor]:
        """Classifies latent codes.

        Args:
            latent_code: z as the encoder gives it, (B, latent_dim).
            return_dict: Whether to return an [`AttributeClassifierOutput`] or a tuple.

        Returns:
            The logits, (B, num_attributes); a sigmoid turns them into probabilities.
        """
        self._check(latent_code)
        logits = self.linear(self.normalize(latent_code))
        return AttributeClassifierOutput(logits=logits) if return_dict else (logits,)

    @torch.no_grad()
    @apply_forward_hook
    def edit(self, latent_code: torch.Tensor, attribute: int | str, strength: float = 0.3) -> torch.Tensor:
        """Moves codes along an attribute: denormalise(normalise(z) + strength sqrt(latent_dim) w / |w|).

        w is the attribute's row of the weight. The official notebooks use a strength of 0.3.

        Args:
            latent_code: z as the encoder gives it, (B, latent_dim).
            attribute: Index of the attribute, 0 to num_attributes - 1, or its name.
            strength: How far; below 0 takes the attribute away.

        Returns:
            Codes to decode, (B, latent_dim), without a gradient.

        Raises:
            ValueError: If `latent_code` is not (B, latent_dim), `strength` is not finite, or no such attribute exists.
        """
        self._check(latent_code)
        if not math.isfinite(strength):
            raise ValueError(f"strength must be finite, got {strength}")
        with align_module_device(self.linear):  # sequential offloading keeps the weight elsewhere between calls
            direction = nn.functional.normalize(self.linear.weight[self._index(attribute)], dim=0)
        step = strength * math.sqrt(self.config.latent_dim)
        return self.denormalize(self.normalize(latent_code) + step * direction)

    def _index(self, attribute: int | str) -> int:
        names = self.config.attribute_names
        if isinstance(attribute, str):
            if names is None or attribute not in names:
                known = "this classifier has none" if names is None else ", ".join(names)
                raise ValueError(f"attribute must be an index or one of the names ({known}), got {attribute!r}")
            return list(names).index(attribute)
        if not 0 <= attribute < self.config.num_attributes:
            last = self.config.num_attributes - 1
            raise ValueError(f"attribute must be a name or an index between 0 and {last}, got {attribute}")
        return attribute

    def _check(self, latent_code: torch.Tensor) -> None:
        if latent_code.ndim != 2 or latent_code.shape[1] != self.config.latent_dim:  # (B, 1) would broadcast
            raise ValueError(
                f"latent_code must have shape (batch, {self.config.latent_dim}), got {tuple(latent_code.shape)}"
            )
