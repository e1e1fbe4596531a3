"""VPDDIMScheduler: DDIM sampling from noise to image, x_T -> x_0, on a variance-preserving noise schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from ..pretrained import model_folder
from ..publishing import PublishingMixin
from .noise_schedules import NOISE_SCHEDULES, alpha_sigma, check_choice, discrete_betas

PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")
TIMESTEP_SPACINGS = ("uniform", "trailing", "leading")
MAX_TRAIN_TIMESTEPS = 100_000

# Noise prediction divides by alpha, which is 0 at t = 1: the last time at which it is used.
EPSILON_MAX_TIME = 0.999

# Classes of this package, and what one of them has in its configuration and another has not.
OWN_CLASSES = ("VPDDIMScheduler", "VPDDIMInverseScheduler", "VPDPMSolverMultistepScheduler")
OPTIONS_OF_ONE_CLASS = ("inversion", "lambda_min", "lambda_max")

Levels = list[tuple[float, float]]


@dataclass
class VPDDIMSchedulerOutput(BaseOutput):
    """What `step` returns.

    Args:
        prev_sample: the sample at the next timestep of the loop, shaped and typed as the input sample. The name is
            diffusers'; the inverse scheduler's is the noisier one.
        pred_original_sample: the estimate of x_0 that the step used, clamped where `clip_sample` is on.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


def predict_original_and_noise(
    prediction_type: str,
    model_output: torch.Tensor,
    sample: torch.Tensor,
    alpha: float,
    sigma: float,
    clip_sample: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x0_hat, eps_hat) with sample = alpha x0_hat + sigma eps_hat, whatever the network predicts.

    Args:
        prediction_type: "v_prediction" (v = alpha eps - sigma x0), "epsilon" (divides by alpha) or "sample" (divides
            by sigma).
        model_output: the network's output, shaped as `sample`.
        sample: x_t, any shape.
        alpha: alpha_t.
        sigma: sigma_t.
        clip_sample: clamp x0_hat to [-1, 1] and derive eps_hat again from it (divides by sigma).
    """
    if prediction_type == "v_prediction":
        original = alpha * sample - sigma * model_output
        noise = sigma * sample + alpha * model_output
    elif prediction_type == "epsilon":
        original = (sample - sigma * model_output) / alpha
        noise = model_output
    else:
        original = model_output
    if clip_sample:
        original = original.clamp(-1, 1)
    if clip_sample or prediction_type == "sample":
        noise = (sample - alpha * original) / sigma
    return original, noise


class VPDDIMScheduler(PublishingMixin, SchedulerMixin, ConfigMixin):
    """DDIM sampling (section 3 of the paper), deterministic, from pure noise to an image.

    "uniform" spacing (the paper's models): K + 1 equally spaced times from t = 1 to t = 0 and K updates; the timesteps
    given to the network are num_train_timesteps * t. Noise prediction cannot say anything about x_0 at t = 1, where
    alpha is 0, so that it starts at t = 0.999.

    "leading" spacing (official checkpoints): the timesteps are 0-based indices 0, s, 2s, ... with the smallest integer
    stride s that gives K of them. x_T is taken as the sample at the last of them, and the last update goes to
    alpha = 1. Index i has the noise level of t = (i + 1) / num_train_timesteps. Do not use it with the shifted cosine
    schedules, where alpha is far from 0 at the last index (0.125 at t = 0.98 for SC-4).

    `config` also carries what diffusers' solvers need, so that `DPMSolverMultistepScheduler.from_config(s.config)`
    walks the same noise schedule; the saved configuration is without it. See `compatibility` for their timesteps.

    Args:
        num_train_timesteps: the timestep that stands for t = 1; also the highest number of inference steps. It does
            not change the schedule as a function of t. At most 100,000.
        noise_schedule: "shifted_cosine", "linear_beta", "inverted" or "constant_beta" (official latent code models);
            see `noise_schedules`.
        scaling_factor: S of "shifted_cosine". Above 1 means *less* noise at a given t.
        prediction_type: what the network puts out: "v_prediction", "epsilon" or "sample" (x_0).
        timestep_spacing: "uniform", or diffusers' word for it, "trailing"; or "leading".
        clip_sample: clamp the estimate of x_0 to [-1, 1] at each step and derive the noise again from it. Off for the
            paper's models, on for official checkpoints.

    Raises:
        ValueError: for a value that is not allowed.
    """

    __module__ = "diffae_hub"
    _compatibles: ClassVar[list[str]] = []
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        noise_schedule: str = "shifted_cosine",
        scaling_factor: float = 4.0,
        prediction_type: str = "v_prediction",
        timestep_spacing: str = "uniform",
        clip_sample: bool = False,
    ) -> None:
        check_choice("noise_schedule", noise_schedule, NOISE_SCHEDULES)
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
        if not 1 <= num_train_timesteps <= MAX_TRAIN_TIMESTEPS:
            raise ValueError(
                f"num_train_timesteps must be between 1 and {MAX_TRAIN_TIMESTEPS}, got {num_train_timesteps}"
            )
        if not 0 < scaling_factor < math.inf:
            raise ValueError(f"scaling_factor must be a finite number above 0, got {scaling_factor}")
        if timestep_spacing == "trailing":
            self.register_to_config(timestep_spacing="uniform")  # one word in saved files
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps, 0, -1, dtype=torch.float32)
        self._step_index: int | None = None
        self._begin_index: int | None = None
        _ = self.config  # computed here, not inside a compiled graph

    # ---- configuration ----------------------------------------------------------------------------------------------

    @property
    def config(self) -> FrozenDict:
        """The arguments, and for diffusers' solvers `trained_betas` and "trailing" in place of "uniform"."""
        if self.__dict__.get("_config_source") is not self._internal_dict:
            self._config_source = self._internal_dict
            # Without `_use_default_values`: a solver would put its own defaults in place of ours.
            own = {name: value for name, value in self._internal_dict.items() if not name.startswith("_")}
            leading, last = own["timestep_spacing"] == "leading", self._last_time(own["prediction_type"])
            more = {
                "timestep_spacing": "leading" if leading else "trailing",
                "trained_betas": discrete_betas(
                    own["noise_schedule"], own["num_train_timesteps"], own["scaling_factor"], last
                ),
                # A solver of diffusers keeps it, so that our scheduler can be made from its configuration again.
                "_trained_as": own,
                "_class_name": type(self).__name__,
            }
            self._config = FrozenDict(own | more)
        return self._config

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """What diffusers' `from_config` reads from a configuration: one of ours, or one that was made from ours."""
        config = dict(config_dict)
        trained_as = config.pop("_trained_as", None)
        if trained_as is not None and config["_class_name"] not in OWN_CLASSES:
            config = dict(trained_as)
        config.pop("trained_betas", None)
        kept = {name: config.pop(name) for name in OPTIONS_OF_ONE_CLASS if name in config}
        expected = cls._get_init_keys(cls)
        config |= {name: value for name, value in kept.items() if name in expected}
        init, unused, hidden = super().extract_init_dict(config, **kwargs)
        return init, unused, hidden | {name: value for name, value in kept.items() if name not in expected}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ) -> Self:
        """As in diffusers; the name of a bundled model is allowed too (with `subfolder="scheduler"`)."""
        source = model_folder(pretrained_model_name_or_path, kwargs, subfolder or "")
        return super().from_pretrained(source, subfolder=subfolder, **kwargs)

    # ---- noise levels -----------------------------------------------------------------------------------------------

    def alpha_sigma(self, timesteps: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha, sigma) at timesteps such as the network gets.

        Args:
            timesteps: any shape, integer or float. With "uniform" spacing num_train_timesteps * t, in
                [0, num_train_timesteps]; with "leading" spacing the official 0-based index, in
                [0, num_train_timesteps - 1], whose noise level is the one of t = (index + 1) / num_train_timesteps.

        Returns:
            (alpha, sigma), shaped as timesteps and on their device, float64 (float32 where the device has no float64).

        Raises:
            ValueError: for a timestep out of range or NaN (not checked under `torch.compile`).
        """
        if not isinstance(timesteps, torch.Tensor):
            timesteps = torch.as_tensor(timesteps, dtype=torch.float64)
        # Reading the values waits for the device and breaks a compiled graph.
        if not torch.compiler.is_compiling() and timesteps.numel():
            highest = self.config.num_train_timesteps - self._index_offset
            low, high = (float(value) for value in timesteps.aminmax())
            if not (low >= 0 and high <= highest):  # written so that NaN fails
                raise ValueError(f"timesteps must be between 0 and {highest}, got {low:g} to {high:g}")
        if timesteps.device.type != "mps":
            timesteps = timesteps.to(torch.float64)
        return self._alpha_sigma_at_time((timesteps + self._index_offset) / self.config.num_train_timesteps)

    def _alpha_sigma_at_time(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return alpha_sigma(self.config.noise_schedule, t, self.config.scaling_factor)

    @property
    def _index_offset(self) -> int:
        """What is added to a timestep to get num_train_timesteps * t."""
        return 1 if self.config.timestep_spacing == "leading" else 0

    # ---- training: Algorithms 1 and 2 -------------------------------------------------------------------------------

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float
    ) -> torch.Tensor:
        """x_t = alpha_t x_0 + sigma_t noise (Algorithm 2, line 7).

        Args:
            original_samples: x_0, (B, ...), floating point.
            noise: shaped as x_0.
            timesteps: one number, or (B,); see `alpha_sigma`.

        Returns:
            x_t, shaped and typed as original_samples; half precision is computed in float32.

        Raises:
            ValueError: for shapes that do not fit and for timesteps out of range.
        """
        alpha, sigma, x, eps = self._prepare_training(original_samples, noise, timesteps)
        return (alpha * x + sigma * eps).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float) -> torch.Tensor:
        """v_t = alpha_t noise - sigma_t x_0; arguments and result as in `add_noise`, `sample` being x_0."""
        alpha, sigma, x, eps = self._prepare_training(sample, noise, timesteps)
        return (alpha * eps - sigma * x).to(sample.dtype)

    def training_target(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float
    ) -> torch.Tensor:
        """y*, what the network is trained to put out (Algorithm 2, lines 8 to 14), for the configured prediction type.

        Arguments as in `add_noise`. The noise and x_0 come back as they are.
        """
        if self.config.prediction_type == "epsilon":
            return noise
        if self.config.prediction_type == "sample":
            return original_samples
        return self.get_velocity(original_samples, noise, timesteps)

    def _prepare_training(
        self, original: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(alpha, sigma, x_0, noise) in at least float32, broadcastable to one another."""
        # Each of these would broadcast, or round, to a wrong result without a word.
        if not original.is_floating_point():
            raise ValueError(f"original_samples must be floating point, got {original.dtype}")
        if noise.shape != original.shape:
            raise ValueError(
                f"noise must have the shape of original_samples, {tuple(original.shape)}, got {tuple(noise.shape)}"
            )
        alpha, sigma = self.alpha_sigma(timesteps)
        if alpha.ndim > 1 or alpha.numel() not in (1, len(original)):
            raise ValueError(f"timesteps must be one number or of shape ({len(original)},), got {tuple(alpha.shape)}")
        dtype = torch.promote_types(original.dtype, torch.float32)
        shape = (-1,) + (1,) * (original.ndim - 1)
        alpha, sigma = (level.to(original.device, dtype).reshape(shape) for level in (alpha, sigma))
        return alpha, sigma, original.to(dtype), noise.to(dtype)

    # ---- the walk ---------------------------------------------------------------------------------------------------

    @property
    def step_index(self) -> int | None:
        """Index of the update that comes next in a loop; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first update, where a pipeline has set it with `set_begin_index`."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Announce that the loop begins at `timesteps[begin_index]`. Then no step waits for the device."""
        self._begin_index = begin_index

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay out the walk: `timesteps`, and alpha and sigma at each of them and at its end (in float64).

        Args:
            num_inference_steps: the number K of updates, 1 to num_train_timesteps. With "leading" spacing only those
                that an integer stride over the training timesteps gives (1000: 20, 50, 100, 250, but not 60).
            device: where `timesteps` shall be.

        Raises:
            ValueError: for a number of steps that is not allowed.
        """
        if not 1 <= num_inference_steps <= self.config.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps must be between 1 and {self.config.num_train_timesteps}, "
                f"got {num_inference_steps}"
            )
        timesteps, self._levels = self._trajectory(num_inference_steps)
        self.timesteps = timesteps.to(device, torch.float32)
        self.num_inference_steps = num_inference_steps
        self._num_steps = len(timesteps)
        self._step_index = None
        self._begin_index = None

    def _trajectory(self, num_inference_steps: int) -> tuple[torch.Tensor, Levels]:
        """The K timesteps at which the network is evaluated, and the K + 1 pairs (alpha, sigma) of the walk.

        Update k goes from levels[k] to levels[k + 1].
        """
        total = self.config.num_train_timesteps
        if self.config.timestep_spacing == "leading":
            indices = self._leading_indices(num_inference_steps).flip(0)
            return indices, [*self._levels_at((indices + 1) / total), (1.0, 0.0)]
        times = self._uniform_times(num_inference_steps).flip(0)
        return total * times[:-1], self._levels_at(times)

    @staticmethod
    def _last_time(prediction_type: str) -> float:
        return EPSILON_MAX_TIME if prediction_type == "epsilon" else 1.0

    def _uniform_times(self, num_inference_steps: int) -> torch.Tensor:
        """K + 1 equally spaced times from 0 to 1, float64; noise prediction ends at 0.999."""
        times = torch.tensor(range(num_inference_steps + 1), dtype=torch.float64) / num_inference_steps
        return times.clamp(max=self._last_time(self.config.prediction_type))

    def _leading_indices(self, num_inference_steps: int) -> torch.Tensor:
        """0, s, 2s, ... below num_train_timesteps, with the smallest integer stride s that gives K of them; float64."""
        total = self.config.num_train_timesteps
        stride = -(-total // num_inference_steps)
        indices = torch.arange(0, total, stride, dtype=torch.float64)
        if len(indices) != num_inference_steps:
            raise ValueError(
                f"num_inference_steps must be a number that an integer stride over {total} timesteps gives when "
                f"timestep_spacing='leading' (the nearest are {len(indices)} and {-(-total // (stride - 1))}), "
                f"got {num_inference_steps}"
            )
        return indices

    def _levels_at(self, t: torch.Tensor) -> Levels:
        """(alpha, sigma) at each of the times t (K,), as Python floats: multiplying by them waits for no device."""
        if self.config.prediction_type == "epsilon":
            # Only "leading" with a stride of 1 on a schedule that ends in pure noise gets here with alpha = 0.
            alpha, _ = self._alpha_sigma_at_time(t)
            t = torch.where(alpha == 0, EPSILON_MAX_TIME, t)
        alpha, sigma = self._alpha_sigma_at_time(t)
        return list(zip(alpha.tolist(), sigma.tolist(), strict=True))

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """The sample itself: a variance-preserving network gets x_t unscaled. For diffusers' loops."""
        return sample

    def index_for_timestep(self, timestep: torch.Tensor | float, schedule_timesteps: torch.Tensor | None = None) -> int:
        """Position of `timestep` in `timesteps`; the first, where it is there twice.

        Raises:
            ValueError: if it is not one of them.
        """
        timesteps = self.timesteps if schedule_timesteps is None else schedule_timesteps
        positions = (timesteps == timestep).nonzero()
        if not len(positions):
            raise ValueError(f"timestep must be one of those in scheduler.timesteps, got {float(timestep):g}")
        return int(positions[0])

    def _init_step_index(self, timestep: torch.Tensor | float) -> None:
        self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> VPDDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Move `sample` to the next noise level of the walk (DDIM; section 3, "Sampling").

        | name | symbol |
        |---|---|
        | sample | x_t |
        | model_output | f(x_t, t, z): eps, x_0 or v |
        | alpha, sigma | alpha_t, sigma_t |
        | next_alpha, next_sigma | alpha_t', sigma_t' at the next level t' |
        | original, noise | x0_hat, eps_hat |

        x_t' = alpha_t' x0_hat + sigma_t' eps_hat is the paper's update with the score written out, but it does not
        divide by alpha_t, so that it holds at t = 1 too for v- and x-prediction.

        Args:
            model_output: the network's output for this sample and timestep, shaped as the sample.
            timestep: the one of `timesteps` that the first step starts from; later steps follow it in order.
            sample: x_t, (B, ...), floating point.
            generator: not used, DDIM is deterministic; for loops that pass one to every scheduler.
            return_dict: whether to return a `VPDDIMSchedulerOutput` or the tuple of its values.

        Returns:
            The next sample and x0_hat, shaped and typed as `sample`. Half precision is computed in float32.

        Raises:
            ValueError: before `set_timesteps` and after the last step, and for unequal shapes.
        """
        index = self._start_step(model_output, timestep, sample)
        # 1. what the network says about the clean image and the noise
        original, noise = self._predict(model_output, sample, self._levels[index])

        # 2. the same image and noise, mixed as at the next level
        next_alpha, next_sigma = self._levels[index + 1]
        return self._finish_step(next_alpha * original + next_sigma * noise, original, sample.dtype, return_dict)

    def _start_step(self, model_output: torch.Tensor, timestep: torch.Tensor | float, sample: torch.Tensor) -> int:
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step, with the number of inference steps")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output must have the shape of sample, {tuple(sample.shape)}, got {tuple(model_output.shape)}"
            )
        if self._step_index is None:
            self._init_step_index(timestep)
        if self._step_index >= self._num_steps:
            raise ValueError("timestep lies after the last step: call set_timesteps before the next loop")
        return self._step_index

    def _predict(
        self, model_output: torch.Tensor, sample: torch.Tensor, level: tuple[float, float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0_hat, eps_hat) in at least float32."""
        dtype = torch.promote_types(sample.dtype, torch.float32)
        return predict_original_and_noise(
            self.config.prediction_type, model_output.to(dtype), sample.to(dtype), *level, self.config.clip_sample
        )

    def _finish_step(
        self, sample: torch.Tensor, original: torch.Tensor, dtype: torch.dtype, return_dict: bool
    ) -> VPDDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        self._step_index += 1
        output = (sample.to(dtype), original.to(dtype))
        return VPDDIMSchedulerOutput(*output) if return_dict else output

    def __len__(self) -> int:
        return self.config.num_train_timesteps
