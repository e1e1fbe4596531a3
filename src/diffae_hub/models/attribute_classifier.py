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

from .attribute_fitting import fit_directions, principal_directions
from .layers import LatentStatisticsMixin, check_configuration
from .safetensors_only import SafetensorsOnlyMixin


@dataclass
class AttributeClassifierOutput(BaseOutput):
    """`logits`: one per attribute, (B, num_attributes); above 0 where it is more likely present than not."""

    logits: torch.Tensor


class AttributeClassifier(LatentStatisticsMixin, SafetensorsOnlyMixin, ModelMixin, ConfigMixin):
    """A linear classifier of attributes on normalised latent codes.

    Codes are normalised with the mean and standard deviation of the training codes, which are part of its saved state.

    Args:
        latent_dim: Width of the latent code.
        num_attributes: Number of attributes; the official classifiers have the 40 of CelebA.
        attribute_names: Their names, in the order of the rows; None if they have none.
        attribute_scores: What [`~AttributeClassifier.fit`] measured on held-out codes, one dictionary per attribute.
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
        check_configuration(self.config)
        if attribute_names is not None and not len(attribute_names) == len(set(attribute_names)) == num_attributes:
            raise ValueError(f"attribute_names must be {num_attributes} different names, got {list(attribute_names)}")
        self.linear = nn.Linear(latent_dim, num_attributes)
        self.register_latent_statistics(latent_dim)

    @classmethod
    def fit(cls, codes: Any, labels: Any, names: Sequence[str] | None = None, **options: Any) -> Self:
        """A classifier of labelled codes; `config.attribute_scores` has its figures on codes that it did not see.

        Args:
            codes: (N, latent_dim), as the encoder gives them.
            labels: (N,) classes, (N, A) of 0 and 1, or numbers for `method="ridge"`.
            names: One per attribute; by default the classes, or "attribute 0", ...
            options: `method`: "logistic" (binary cross-entropy, the official recipe), "svm" (linear support vectors),
                "means" (from the mean code without the attribute to the one with it) or "ridge" (numbers such as an
                age). `held_out`: share of the codes to measure on, 0.2. `groups`: (N,) which codes belong together, so
                that relatives are on one side of the split. `regularization`: strength of the penalty on the weights,
                in scikit-learn's scale, 1. `seed`: of the split, 0.
        """
        return cls._fitted(*fit_directions(codes, labels, names, **options))

    @classmethod
    def principal_directions(cls, codes: Any, num_directions: int = 10) -> Self:
        """The directions in which codes vary most, "component 0" and so on, from codes (N, latent_dim) alone."""
        return cls._fitted(*principal_directions(codes, num_directions))

    @classmethod
    def _fitted(cls, state: dict[str, Any], names: list[str], scores: list[dict[str, float]]) -> Self:
        num_attributes, latent_dim = state["linear.weight"].shape
        classifier = cls(latent_dim, num_attributes, names, scores)
        classifier.load_state_dict({name: torch.as_tensor(value, dtype=torch.float32) for name, value in state.items()})
        return classifier.eval()

    def forward(
        self, latent_code: torch.Tensor, return_dict: bool = True
    ) -> AttributeClassifierOutput | tuple[torch.Tensor]:
        """The logits, (B, num_attributes), of codes as the encoder gives them, (B, latent_dim).

        A sigmoid turns them into probabilities.
        """
        self._check(latent_code)
        logits = self.linear(self.normalize(latent_code))
        return AttributeClassifierOutput(logits=logits) if return_dict else (logits,)

    @torch.no_grad()
    @apply_forward_hook
    def edit(self, latent_code: torch.Tensor, attribute: int | str, strength: float = 0.3) -> torch.Tensor:
        """Moves codes along an attribute: denormalise(normalise(z) + strength sqrt(latent_dim) w / |w|).

        w is the attribute's row of the weight. The official notebooks use a strength of 0.3; below 0 takes the
        attribute away.

        Args:
            latent_code: z as the encoder gives it, (B, latent_dim).
            attribute: Index of the attribute, 0 to num_attributes - 1, or its name.

        Returns:
            Codes to decode, (B, latent_dim), without a gradient.
        """
        self._check(latent_code)
        if not math.isfinite(strength):
            raise ValueError(f"strength must be finite, got {strength}")
        step = strength * math.sqrt(self.config.latent_dim)
        return self.denormalize(self.normalize(latent_code) + step * self.direction(attribute))

    @torch.no_grad()
    def direction(self, attribute: int | str) -> torch.Tensor:
        """w / |w|, (latent_dim,): where normalised codes have more of an attribute, which is an index or a name."""
        names, indices = list(self.config.attribute_names or ()), range(self.config.num_attributes)
        if attribute not in names and attribute not in indices:
            raise ValueError(f"attribute must be one of {names or list(indices)}, got {attribute!r}")
        index = names.index(attribute) if attribute in names else attribute
        with align_module_device(self.linear):  # sequential offloading keeps the weight elsewhere between calls
            return nn.functional.normalize(self.linear.weight[index], dim=0)

    def _check(self, latent_code: torch.Tensor) -> None:
        if latent_code.ndim != 2 or latent_code.shape[1] != self.config.latent_dim:  # (B, 1) would broadcast
            raise ValueError(
                f"latent_code must have shape (batch, {self.config.latent_dim}), got {tuple(latent_code.shape)}"
            )
