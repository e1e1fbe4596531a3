"""VPDDIMScheduler: DDIM sampling from noise to image, x_T -> x_0, on a variance-preserving noise schedule."""

from __future__ import annotations

import torch

from .vp_ddim_base import VPDDIMSchedulerBase


class VPDDIMScheduler(VPDDIMSchedulerBase):
    """DDIM sampling (section 3 of the paper), deterministic, from pure noise to an image.

    "uniform" spacing (the paper's models): K + 1 equally spaced times from t = 1 to t = 0 and K updates; the timesteps
    given to the network are num_train_timesteps * t. Noise prediction cannot say anything about x_0 at t = 1, where
    alpha is 0, so that it starts at t = 0.999.

    "leading" spacing (official checkpoints): the timesteps are 0-based indices 0, s, 2s, ... with the smallest integer
    stride s that gives K of them. x_T is taken as the sample at the last of them, and the last update goes to
    alpha = 1. Index i has the noise level of t = (i + 1) / num_train_timesteps. Do not use it with the shifted cosine
    schedules, where alpha is far from 0 at the last index (0.125 at t = 0.98 for SC-4).

    Args:
        num_train_timesteps: the timestep that stands for t = 1; also the highest number of inference steps. It does
            not change the schedule as a function of t.
        noise_schedule: "shifted_cosine", "linear_beta", "inverted" or "constant_beta" (official latent code models);
            see `noise_schedules`.
        scaling_factor: S of "shifted_cosine". Above 1 means *less* noise at a given t.
        prediction_type: what the network puts out: "v_prediction", "epsilon" or "sample" (x_0).
        timestep_spacing: "uniform" or "leading".
        clip_sample: clamp the estimate of x_0 to [-1, 1] at each step and derive the noise again from it. Off for the
            paper's models, on for official checkpoints.

    Raises:
        ValueError: for a value that is not allowed.
    """

    __module__ = "diffae_hub"

    def _trajectory(self, num_inference_steps: int) -> tuple[torch.Tensor, list[tuple[float, float]]]:
        total = self.config.num_train_timesteps
        if self.config.timestep_spacing == "uniform":
            times = self._uniform_times(num_inference_steps).flip(0)
            return total * times[:-1], self._levels_at(times)
        indices = self._leading_indices(num_inference_steps).flip(0)
        return indices, [*self._levels_at((indices + 1) / total), (1.0, 0.0)]
