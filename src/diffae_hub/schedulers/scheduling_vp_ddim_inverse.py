"""VPDDIMInverseScheduler: DDIM inversion from image to noise, x_0 -> x_T, the reverse of VPDDIMScheduler."""

import torch
from diffusers.configuration_utils import register_to_config

from .noise_schedules import check_choice
from .scheduling_vp_ddim import Levels, VPDDIMScheduler


class VPDDIMInverseScheduler(VPDDIMScheduler):
    """DDIM inversion (section 3 of the paper): from an image to the noise that DDIM sampling turns into that image.

    Make it from the sampling scheduler: `VPDDIMInverseScheduler.from_config(scheduler.config)`. `step` moves to the
    next *noisier* level and returns that sample as `prev_sample`. Decode with the same number K of steps.

    **Predictor-corrector** walks the levels of the sampler backwards, with K + 1 evaluations of the network. A sampling
    step from x_1 down to x_0 evaluates the network at x_1, so its inverse is implicit: x_0 = c x_1 + d f(x_1, t_1),
    where f is v or, for noise prediction, eps. Each `step` *corrects*: it solves this equation for x_1, with f at the
    guess of x_1. Then it *predicts*: it guesses the next sample with f extrapolated from its last two values. This is
    about as exact as plain inversion with four times as many steps. The first evaluation, at t = 0, is used only for
    the first guess. Where f is not defined at t = 0 (x-prediction, `clip_sample`), it is half a step later.

    **Plain** (the paper, the official code) evaluates the network at x_0 instead, K times. With "uniform" spacing it
    uses the K + 1 times of the sampler from 0 to 1. Where f is not defined at t = 0, x_0 is taken as the sample half a
    step later. With "leading" spacing it uses the official indices in ascending order. x_0 is taken as the sample at
    the first of them, each update goes to the level of the next, and the last one to alpha = 0, so that x_T is the
    predicted noise itself. (diffusers' DDIMInverseScheduler follows another rule.)

    Args:
        inversion: "predictor_corrector", "plain" or None. None means predictor-corrector with "uniform" spacing and
            plain with "leading". The other arguments are those of `VPDDIMScheduler`.
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
        time_exponent: float = 1.0,
        inversion: str | None = None,
    ) -> None:
        check_choice("inversion", inversion, (None, "predictor_corrector", "plain"))
        super().__init__(
            num_train_timesteps,
            noise_schedule,
            scaling_factor,
            prediction_type,
            timestep_spacing,
            clip_sample,
            time_exponent,
        )

    @property
    def _is_plain(self) -> bool:
        leading = self.config.timestep_spacing == "leading"
        return (self.config.inversion or ("plain" if leading else "predictor_corrector")) == "plain"

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """As for the sampler; predictor-corrector has K + 1 `timesteps` and needs K of at least 2."""
        if not self._is_plain and num_inference_steps < 2:
            raise ValueError(
                f"num_inference_steps must be at least 2 for predictor-corrector inversion, got {num_inference_steps}"
            )
        super().set_timesteps(num_inference_steps, device)
        self._target: torch.Tensor | None = None  # the last corrected sample
        self._last_output: torch.Tensor | None = None  # f at the timestep before

    def _trajectory(self, num_inference_steps: int) -> tuple[torch.Tensor, Levels]:
        total, leading = self.config.num_train_timesteps, self.config.timestep_spacing == "leading"
        divides_by_sigma = self.config.prediction_type == "sample" or self.config.clip_sample
        first_time = float(self._uniform_times(num_inference_steps)[1]) / 2 if divides_by_sigma else 0.0
        if not self._is_plain:
            timesteps, levels = super()._trajectory(num_inference_steps)
            timesteps, levels = timesteps.flip(0), levels[::-1]
            first = timesteps[:1] if leading else torch.tensor([total * first_time])
            self._first_level = levels[1] if leading else self._levels_at(torch.tensor([first_time]))[0]
            return torch.cat([first, timesteps]), levels
        if leading:
            indices = self._leading_indices(num_inference_steps)
            return indices, [*self._levels_at((indices + 1) / total), (0.0, 1.0)]
        times = self._uniform_times(num_inference_steps).clamp(min=first_time)
        return total * times[:-1], self._levels_at(times)

    def _update(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next, noisier sample and x0_hat.

        | name | symbol |
        |---|---|
        | sample | guess of x_1 at the timestep's level (x_0 itself in the first step) |
        | output | f(x_1, t_1): v, or eps for noise prediction |
        | corrected | x_1 = (x_0 - d f) / c |
        | guess | f(x_2, t_2), extrapolated: 2 f(x_1, t_1) - f(x_0, t_0) |
        """
        if self._is_plain:
            return super()._update(index, model_output, sample)
        first = self._target is None
        alpha, sigma = self._first_level if index == 0 else self._levels[index]
        original, noise = self._predict(model_output, sample, alpha, sigma)
        output = noise if self.config.prediction_type == "epsilon" else alpha * noise - sigma * original

        # 1. correct
        corrected = sample if first else self._solve(self._target, output, index)

        # 2. predict
        if index + 1 == len(self.timesteps):
            return corrected, original
        guess = output if first else 2 * output - self._last_output
        self._target, self._last_output = corrected, output
        return self._solve(corrected, guess, index + 1), original

    def correct(
        self, model_output: torch.Tensor, timestep: torch.Tensor | float, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One iteration of the corrector. For exact inversion, repeat it before `step` until the error is small.

        The fixed-point iteration x_1 <- (x_0 - d f(x_1, t_1)) / c. It converges where |d / c| times the slope of f is
        below 1, as a rule from 5 steps on. The arguments are those of `step`; `sample` is the guess of x_1.

        Returns:
            The corrected sample, and the error by which a sampling step from `sample` misses the last corrected sample
            (x_0 in the second step), both like `sample` in shape and dtype. In the first step: `sample` and zeros.
        """
        self._start_step(model_output, timestep, sample)
        if self._target is None:
            return sample, torch.zeros_like(sample)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        level, (alpha, sigma) = self._levels[self.step_index], self._levels[self.step_index - 1]
        original, noise = self._predict(model_output.to(dtype), sample.to(dtype), *level)
        error = self._target - (alpha * original + sigma * noise)
        scale, _ = self._implicit_step(self.step_index)
        return (sample + error / scale).to(sample.dtype), error.to(sample.dtype)

    def _solve(self, target: torch.Tensor, output: torch.Tensor, index: int) -> torch.Tensor:
        """x_1 at levels[index], from which a sampling step with f = `output` leads to `target`."""
        scale, weight = self._implicit_step(index)
        return (target - weight * output) / scale

    def _implicit_step(self, index: int) -> tuple[float, float]:
        """(c, d) of the sampling step x_0 = c x_1 + d f(x_1, t_1) from levels[index] down to levels[index - 1]."""
        (alpha_0, sigma_0), (alpha_1, sigma_1) = self._levels[index - 1], self._levels[index]
        if self.config.prediction_type == "epsilon":
            return alpha_0 / alpha_1, sigma_0 - alpha_0 * sigma_1 / alpha_1
        return alpha_1 * alpha_0 + sigma_1 * sigma_0, alpha_1 * sigma_0 - sigma_1 * alpha_0
