"""diffusers' schedulers in place of ours: which noise schedule they walk, and what the network is given."""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .scheduling_vp_ddim import VPDDIMScheduler

# They walk jumps that only distilled networks have learned.
DISTILLED_ONLY = ("LCMScheduler", "TCDScheduler")
# alphas_cumprod in float32 is a product of up to 1000 rounded factors.
ALPHA_BAR_TOLERANCE = 1e-4


def trained_scheduler(scheduler: SchedulerMixin) -> VPDDIMScheduler:
    """A DDIM scheduler on the noise schedule that the model was trained with.

    Args:
        scheduler: one of ours, or one of diffusers' that was made from ours,
            `DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)`. Stochastic ones, such as DDPM, are allowed.

    Raises:
        ValueError: if the scheduler cannot be known to share the model's noise schedule and prediction type.
    """
    if isinstance(scheduler, VPDDIMScheduler):
        return VPDDIMScheduler.from_config(scheduler.config)
    name, config = type(scheduler).__name__, scheduler.config
    if name in DISTILLED_ONLY:
        raise ValueError(
            f"scheduler must not be {name}: it needs a distilled network. Take DPMSolverMultistepScheduler"
        )
    if "_trained_as" not in config:
        raise ValueError(
            f"scheduler must tell how the model was trained: make it by {name}.from_config(pipe.scheduler.config), "
            "from a scheduler of diffae_hub's"
        )
    trained = VPDDIMScheduler.from_config(config)
    betas = torch.tensor(trained.config.trained_betas, dtype=torch.float64)
    alpha_bar = getattr(scheduler, "alphas_cumprod", None)
    walks_it = alpha_bar is not None and alpha_bar.shape == betas.shape and not config.get("use_flow_sigmas")
    if not walks_it or (alpha_bar.cpu() - torch.cumprod(1 - betas, 0)).abs().max() > ALPHA_BAR_TOLERANCE:
        raise ValueError(
            f"scheduler {name} must walk the model's noise schedule. Take one of diffusers' that have trained_betas, "
            "DPMSolverMultistepScheduler for instance, and change none of its betas"
        )
    if config.prediction_type != trained.config.prediction_type:
        raise ValueError(
            f"scheduler must have the model's prediction_type, {trained.config.prediction_type!r}, "
            f"got {config.prediction_type!r}"
        )
    return trained


def network_timestep(scheduler: SchedulerMixin, timestep: torch.Tensor | float) -> torch.Tensor | float:
    """What the network is given at one of the scheduler's timesteps.

    diffusers counts from 0: its index i has the noise level of t = (i + 1) / num_train_timesteps, for which a network
    of the paper's is given i + 1. A network of the official code is given i.
    """
    if isinstance(scheduler, VPDDIMScheduler) or scheduler.config["_trained_as"]["timestep_spacing"] == "leading":
        return timestep
    return timestep + 1
