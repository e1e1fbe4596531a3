"""The training objective: Algorithms 1 and 2 of the paper (supplementary section 7)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..models.conditioned_unet_2d import ConditionedUNet2DModel
from ..models.semantic_encoder import SemanticEncoderModel
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler

LOSS_WEIGHTINGS = ("none", "sigma")


class DiffusionAutoencoder(nn.Module):
    """Encoder and decoder as one module, so that one wrapper (DDP, torch.compile, autocast) sees one forward pass."""

    def __init__(self, encoder: SemanticEncoderModel, decoder: ConditionedUNet2DModel) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: torch.Tensor, noisy_images: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`D(x_t, t, E(x_0))`: images and noisy images (B, C, H, W), timesteps (B,) -> prediction (B, C, H, W)."""
        latent_code = self.encoder(images, return_dict=False)[0]
        return self.decoder(noisy_images, timesteps, latent_code, return_dict=False)[0]


def derived_seed(seed: int, *position: int) -> int:
    """Derives a seed of 63 bits for one draw in the training from integers: its purpose, examples seen, process."""
    return int(np.random.SeedSequence((seed, *position)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def sample_timesteps(
    batch_size: int, phase: int, scheduler: VPDDIMScheduler, generator: torch.Generator
) -> torch.Tensor:
    """Draws the timesteps of a batch: t = 1 in phase 1 (Algorithm 1), t uniform in phase 2 (Algorithm 2, line 5).

    With `timestep_spacing="uniform"` t is continuous in [0, 1]; with `"leading"`, the official convention, it is one of
    the integer indices 0 .. num_train_timesteps - 1. The result is 1000 t, shape (batch_size,), float32.
    """
    last = float(scheduler.config.num_train_timesteps)
    leading = scheduler.config.timestep_spacing == "leading"
    if phase == 1:
        return torch.full((batch_size,), last - 1 if leading else last, device=generator.device)
    if leading:
        return torch.randint(int(last), (batch_size,), generator=generator, device=generator.device).float()
    return torch.rand(batch_size, generator=generator, device=generator.device) * last


def denoising_loss(
    model: nn.Module,
    scheduler: VPDDIMScheduler,
    images: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    weighting: str = "none",
) -> torch.Tensor:
    """Returns the mean squared error between prediction and target for each image, (B,) (Algorithm 2, lines 7-16).

    `images`, x_0 in [-1, 1], and `noise` are (B, C, H, W), float32. `timesteps`, 1000 t, (B,), may stay on the CPU: the
    scheduler then checks them without waiting for a device. `model` is a [`DiffusionAutoencoder`], possibly wrapped.

    With `weighting` "sigma" (beyond the paper) the error is multiplied by sigma_t. A velocity is far harder to predict
    at low noise, where the code hardly helps: unweighted, those errors are most of the loss. Phase 1 is not changed,
    since sigma_1 = 1.
    """
    noisy_images = scheduler.add_noise(images, noise, timesteps)
    target = scheduler.training_target(images, noise, timesteps)
    prediction = model(images, noisy_images, timesteps.to(images.device, non_blocking=True))
    error = F.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
    return error * scheduler.alpha_sigma(timesteps)[1].to(error) if weighting == "sigma" else error
