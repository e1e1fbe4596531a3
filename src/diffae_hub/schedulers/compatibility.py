"""diffusers' schedulers in place of ours: their noise schedule, and the timesteps that the network gets."""

import copy
import logging
import re

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .scheduling_vp_ddim import VPDDIMScheduler
from .scheduling_vp_dpmsolver_multistep import VPDPMSolverMultistepScheduler

# diffusers warns at every swap that it ignores these; it gets the noise schedule as `trained_betas`.
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
# Their second evaluation in a step costs 6 dB if sigma / alpha falls from almost infinity in that step.
RUNGE_KUTTA = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
# alphas_cumprod in float32 is a product of up to 1000 rounded factors.
ALPHA_BAR_TOLERANCE = 1e-4


def trained_scheduler(scheduler: SchedulerMixin) -> VPDDIMScheduler:
    """Returns a DDIM scheduler on the noise schedule that the model was trained with.

    `scheduler` is one of ours, or one of diffusers' that was made from ours, as in
    `DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)`. It may be stochastic, such as DDPM. Raises
    ValueError if it is not known to share the model's noise schedule and prediction type.
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
        problem = "uses another noise schedule than the model's trained_betas"
    elif config.prediction_type != trained.config.prediction_type:
        problem = f"has prediction_type {config.prediction_type!r}, the model {trained.config.prediction_type!r}"
    elif config.timestep_spacing == "leading" != trained.config.timestep_spacing:
        problem = "has timestep_spacing 'leading', which does not begin at pure noise"
    else:
        return trained
    raise ValueError(f"scheduler must not be this {name}: it {problem}. DPMSolverMultistepScheduler will do")


def scheduler_for_one_walk(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Returns a copy for one thread. Runge-Kutta solvers that start from (nearly) pure noise get exponential sigmas.

    They keep Karras sigmas if these were asked for, but no others.
    """
    if isinstance(scheduler, VPDDIMScheduler):  # without its state, which may carry a gradient
        return scheduler.from_config(scheduler.config)
    scheduler = copy.deepcopy(scheduler)
    if type(scheduler).__name__ in RUNGE_KUTTA and scheduler.config["_trained_as"]["timestep_spacing"] != "leading":
        scheduler.register_to_config(use_exponential_sigmas=True)
    return scheduler


def with_solver(scheduler: SchedulerMixin, solver: str) -> VPDDIMScheduler:
    """Returns one of `SOLVERS` on the noise schedule that the model was trained with."""
    return SOLVERS[solver].from_config(trained_scheduler(scheduler).config)


def fitting_solver(scheduler: SchedulerMixin, random_noise: bool) -> str:
    """Chooses one of `SOLVERS`: "ddim" for an image's own noise and for official models, "dpm" for random noise."""
    is_official = trained_scheduler(scheduler).config.timestep_spacing == "leading"
    return "dpm" if random_noise and not is_official else "ddim"


def network_timestep(scheduler: SchedulerMixin, timestep: torch.Tensor | float) -> torch.Tensor | float:
    """Returns what the network gets at one of the scheduler's timesteps.

    diffusers counts from 0: its index i has the noise level of t = (i + 1) / num_train_timesteps. There one of the
    paper's networks gets i + 1, and one of the official code's gets i.
    """
    if isinstance(scheduler, VPDDIMScheduler) or scheduler.config["_trained_as"]["timestep_spacing"] == "leading":
        return timestep
    return timestep + 1
