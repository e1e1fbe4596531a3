"""VPDPMSolverMultistepScheduler: about ten evaluations of the network in place of fifty (DPM-Solver++ 2M)."""

import math

import torch
from diffusers.configuration_utils import register_to_config

from .noise_schedules import time_at_log_ratio
from .scheduling_vp_ddim import Levels, VPDDIMScheduler, last_time


class VPDPMSolverMultistepScheduler(VPDDIMScheduler):
    """DPM-Solver++(2M) of Lu et al. 2022 on a variance-preserving noise schedule, exact at both ends.

    It walks from x_T at t = 1 (0.999 for noise prediction) to the image. It and `VPDDIMScheduler` can be made from each
    other's configuration. The K - 1 levels between the ends are equally spaced in lambda = ln(alpha / sigma), half the
    log-SNR, within the schedule's range. With "leading" spacing timesteps are official indices with fractions.

    Args:
        lambda_min: Lambda at the second evaluation.
        lambda_max: Lambda at the last evaluation. The others are as in `VPDDIMScheduler`, without `time_exponent`.
    """

    __module__ = "diffae_hub"

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        noise_schedule: str = "shifted_cosine",
        scaling_factor: float = 4.0,
        prediction_type: str = "v_prediction",
        timestep_spacing: str = "uniform",
        clip_sample: bool = False,
        lambda_min: float = -2.5,
        lambda_max: float = 4.0,
    ) -> None:
        super().__init__(
            num_train_timesteps, noise_schedule, scaling_factor, prediction_type, timestep_spacing, clip_sample
        )
        if not lambda_min < lambda_max:
            raise ValueError(f"lambda_min must be below lambda_max, got {lambda_min} and {lambda_max}")

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:  # noqa: D102
        super().set_timesteps(num_inference_steps, device)
        self._last_original: torch.Tensor | None = None  # x0_hat of the step before

    def _trajectory(self, num_inference_steps: int) -> tuple[torch.Tensor, Levels]:
        config, offset = self.config, self._index_offset
        # The ends of the schedule; with "leading" spacing the last timestep is index 0.
        ends = torch.tensor([last_time(config.prediction_type), offset / config.num_train_timesteps]).double()
        alpha, sigma = self._alpha_sigma_at_time(ends)
        lowest, highest = (torch.log(alpha) - torch.log(sigma)).tolist()
        last = min(config.lambda_max, highest)
        if config.lambda_min > lowest:
            lambdas = torch.linspace(config.lambda_min, last, num_inference_steps - 1, dtype=torch.float64)
        else:
            lambdas = torch.linspace(lowest, last, num_inference_steps, dtype=torch.float64)[1:]
        inner = time_at_log_ratio(config.noise_schedule, lambdas, config.scaling_factor)
        times = torch.cat([ends[:1], inner])
        return config.num_train_timesteps * times - offset, [*self._levels_at(times), (1.0, 0.0)]

    def _update(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next sample and x0_hat (algorithm 2 of Lu et al.).

        | name | symbol |
        |---|---|
        | original, self._last_original | x0_hat here and at the level before |
        | ratio | h / h_prev, the steps in lambda from here and to here |
        | extrapolated | D = x0_hat + (x0_hat - x0_hat_prev) h / (2 h_prev) |

        Their update x' = (sigma' / sigma) x - alpha' (exp(-h) - 1) D is alpha' D + sigma' (x - alpha D) / sigma, which
        holds at alpha = 0 and at sigma' = 0. The first and the last step take D = x0_hat: DDIM's update.
        """
        (alpha, sigma), (next_alpha, next_sigma) = self._levels[index], self._levels[index + 1]
        original, _ = self._predict(model_output, sample, alpha, sigma)

        extrapolated = original
        last_alpha, last_sigma = self._levels[index - 1]
        if self._last_original is not None and last_alpha > 0 and next_sigma > 0:
            here = math.log(alpha / sigma)
            ratio = (math.log(next_alpha / next_sigma) - here) / (here - math.log(last_alpha / last_sigma))
            extrapolated = original + 0.5 * ratio * (original - self._last_original)
        self._last_original = original

        noise = (sample - alpha * extrapolated) / sigma
        return next_alpha * extrapolated + next_sigma * noise, original
