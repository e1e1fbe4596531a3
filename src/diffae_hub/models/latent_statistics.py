"""Mean and standard deviation of the training set's latent codes, part of the state of the networks that need them."""

from __future__ import annotations

import torch


class LatentStatisticsMixin:
    """Buffers `latent_mean` and `latent_std`, (latent_dim,), and the normalisation by them."""

    def register_latent_statistics(self, latent_dim: int) -> None:
        """Registers the buffers, as 0 and 1."""
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_std", torch.ones(latent_dim))

    def normalize(self, latent_code: torch.Tensor) -> torch.Tensor:
        """Latent codes (B, latent_dim) of the encoder -> codes of mean 0 and standard deviation 1."""
        return (latent_code - self.latent_mean) / self.latent_std

    def denormalize(self, normalized_code: torch.Tensor) -> torch.Tensor:
        """The inverse of [`~LatentStatisticsMixin.normalize`]."""
        return normalized_code * self.latent_std + self.latent_mean
