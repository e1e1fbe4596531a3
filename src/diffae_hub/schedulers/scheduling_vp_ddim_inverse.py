"""VPDDIMInverseScheduler: DDIM inversion from image to noise, x_0 -> x_T, the reverse of VPDDIMScheduler."""

from __future__ import annotations

import torch

from .vp_ddim_base import VPDDIMSchedulerBase


class VPDDIMInverseScheduler(VPDDIMSchedulerBase):
    """DDIM inversion (section 3 of the paper): from an image to the noise that DDIM sampling turns into that image.

    Make it from the sampling scheduler: `VPDDIMInverseScheduler.from_config(scheduler.config)`; the arguments are those
    of `VPDDIMScheduler`. `step` moves to the next *noisier* level and returns it as `prev_sample`.

    "uniform" spacing: K + 1 equally spaced times from t = 0 to t = 1; the first evaluation of the network is at t = 0.
    Two exceptions. Noise prediction ends at t = 0.999, where sampling starts. With x-prediction or `clip_sample` the
    noise is (x - alpha x0) / sigma, and sigma is 0 at t = 0: then x_0 is taken as the sample at t = 1 / (2 K), in the
    middle of the first interval. (Nearer to 0 the division would magnify every error of the network.)

    "leading" spacing, the official rule: the timesteps are the official indices in ascending order. x_0 is taken as the
    sample at the first of them, each update goes to the level of the next, and the last one to alpha = 0, so that x_T
    is the predicted noise itself. (diffusers' DDIMInverseScheduler follows another rule.)
    """

    __module__ = "diffae_hub"

    def _trajectory(self, num_inference_steps: int) -> tuple[torch.Tensor, list[tuple[float, float]]]:
        total = self.config.num_train_timesteps
        if self.config.timestep_spacing == "uniform":
            times = self._uniform_times(num_inference_steps)
            if self.config.prediction_type == "sample" or self.config.clip_sample:
                times = times.clamp(min=0.5 / num_inference_steps)
            return total * times[:-1], self._levels_at(times)
        indices = self._leading_indices(num_inference_steps)
        return indices, [*self._levels_at((indices + 1) / total), (0.0, 1.0)]
