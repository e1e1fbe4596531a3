"""diffusers' schedulers in place of ours: which noise schedule they walk, and what the network is given."""

from __future__ import annotations

import copy
import logging
import re

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .scheduling_vp_ddim import VPDDIMScheduler
from .scheduling_vp_dpmsolver_multistep import VPDPMSolverMultistepScheduler

# diffusers says at every swap that it ignores these; the noise schedule it gets as `trained_betas`.
_IGNORED = "'noise_schedule': '[a-z_]+', 'scaling_factor': [0-9.e+-]+, 'time_exponent': [0-9.e+-]+"
logging.getLogger("diffusers.configuration_utils").addFilter(
    lambda record: not re.search(f"attributes {{{_IGNORED}}} were passed", record.getMessage())
)

SOLVERS = {"ddim": VPDDIMScheduler, "dpm": VPDPMSolverMultistepScheduler}

UNFIT = {
    "LCMScheduler": "needs a distilled network",
    "TCDScheduler": "needs a distilled network",
    "VPDDIMInverseScheduler": "walks from images to noise",
    "DDIMInverseScheduler": "walks from images to noise",
    "DPMSolverMultistepInverseScheduler": "walks from images to noise",
}
# Their second evaluation in a step spoils it (6 dB) if sigma / alpha falls from almost infinity in one step.
RUNGE_KUTTA = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
# alphas_cumprod in float32 is a product of up to 1000 rounded factors.
ALPHA_BAR_TOLERANCE = 1e-4


def trained_scheduler(scheduler: SchedulerMixin) -> VPDDIMScheduler:
    """A DDIM scheduler on the noise schedule that the model was trained with.

    `scheduler` is one of ours, or one of diffusers' that was made from ours,
    `DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)`. A stochastic one, such as DDPM, may be. A
    ValueError, if it cannot be known to share the model's noise schedule and prediction type.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if isinstance(scheduler, VPDDIMScheduler) and name not in UNFIT:
        return VPDDIMScheduler.from_config(config)
    if "_trained_as" not in config:
        raise ValueError(
            f"scheduler must tell how the model was trained: make it by {name}.from_config(pipe.scheduler.config), "
            "from a scheduler of diffae_hub's"
        )
    trained = VPDDIMScheduler.from_config(config)
    betas = torch.tensor(trained.config.trained_betas, dtype=torch.float64)
    alpha_bar = getattr(scheduler, "alphas_cumprod", None)
    walks_it = alpha_bar is not None and alpha_bar.shape == betas.shape and not config.get("use_flow_sigmas")
    if name in UNFIT:
        problem = UNFIT[name]
    elif name == "PNDMScheduler" and trained.config.timestep_spacing != "leading":
        problem = "loses the image at its first steps, from pure noise"
    elif not walks_it or (alpha_bar.cpu() - torch.cumprod(1 - betas, 0)).abs().max() > ALPHA_BAR_TOLERANCE:
        problem = "walks another noise schedule than the model's, which its trained_betas hold"
    elif config.prediction_type != trained.config.prediction_type:
        problem = f"has prediction_type {config.prediction_type!r}, the model {trained.config.prediction_type!r}"
    elif config.timestep_spacing == "leading" != trained.config.timestep_spacing:
        problem = "has timestep_spacing 'leading', which does not begin at pure noise"
    else:
        return trained
    raise ValueError(f"scheduler must not be this {name}: it {problem}. DPMSolverMultistepScheduler will do")


def scheduler_for_one_walk(scheduler: SchedulerMixin) -> SchedulerMixin:
    """A copy that no other thread walks on. From (nearly) pure noise, Runge-Kutta solvers get exponential sigmas.

    They stay with Karras sigmas, if these were asked for, but not with others.
    """
    scheduler = copy.deepcopy(scheduler)
    if type(scheduler).__name__ in RUNGE_KUTTA and scheduler.config["_trained_as"]["timestep_spacing"] != "leading":
        scheduler.register_to_config(use_exponential_sigmas=True)
    return scheduler


def with_solver(scheduler: SchedulerMixin, solver: str) -> VPDDIMScheduler:
    """One of `SOLVERS` on the noise schedule that the model was trained with."""
    return SOLVERS[solver].from_config(trained_scheduler(scheduler).config)


def fitting_solver(scheduler: SchedulerMixin, random_noise: bool) -> str:
    """The one of `SOLVERS` for random noise, or for an image's own, which DDIM walks back; of official models DDIM."""
    is_official = trained_scheduler(scheduler).config.timestep_spacing == "leading"
    return "dpm" if random_noise and not is_official else "ddim"


def network_timestep(scheduler: SchedulerMixin, timestep: torch.Tensor | float) -> torch.Tensor | float:
    """What the network is given at one of the scheduler's timesteps.

    diffusers counts from 0: its index i has the noise level of t = (i + 1) / num_train_timesteps, for which a network
    of the paper's is given i + 1. A network of the official code is given i.
    """
    if isinstance(scheduler, VPDDIMScheduler) or scheduler.config["_trained_as"]["timestep_spacing"] == "leading":
        return timestep
    return timestep + 1
