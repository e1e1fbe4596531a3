"""VPDDIMScheduler: DDIM sampling from noise to image, x_T -> x_0, on a variance-preserving noise schedule."""

import math
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..pretrained import model_folder
from ..publishing import PublishingMixin
from .noise_schedules import NOISE_SCHEDULES, alpha_sigma, check_choice, discrete_betas

PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")
TIMESTEP_SPACINGS = ("uniform", "trailing", "leading")
MAX_TIMESTEPS = 100_000

# The last time at which noise prediction is used: it divides by alpha, which is 0 at t = 1.
EPSILON_MAX_TIME = 0.999

OWN_CLASSES = ("VPDDIMScheduler", "VPDDIMInverseScheduler", "VPDPMSolverMultistepScheduler")

Levels = list[tuple[float, float]]


class VPDDIMScheduler(PublishingMixin, SchedulerMixin, ConfigMixin):
    """DDIM sampling (section 3 of the paper), deterministic, from pure noise to an image.

    "uniform" spacing (the paper's models): K updates between K + 1 equally spaced times from t = 1 to t = 0. The
    network gets num_train_timesteps * t. Noise prediction starts at t = 0.999, because at t = 1, where alpha is 0, the
    noise says nothing about x_0.

    "leading" spacing (official checkpoints): the timesteps are 0-based indices 0, s, 2s, ... with the smallest integer
    stride s that gives K of them. x_T is taken as the sample at the last of them, and the last update goes to
    alpha = 1. Index i has the noise level of t = (i + 1) / num_train_timesteps. Do not use it with the shifted cosine
    schedules, where alpha is far from 0 at the last index (0.125 at t = 0.98 for SC-4).

    `config` also holds what diffusers' solvers need, so that `DPMSolverMultistepScheduler.from_config(s.config)` uses
    the same noise schedule. The saved configuration does not.

    Args:
        num_train_timesteps: The timestep of t = 1, and the highest number of inference steps; at most 100,000.
        noise_schedule: "shifted_cosine", "linear_beta", "inverted" or "constant_beta" (official latent code models).
        scaling_factor: S of "shifted_cosine". Above 1 means *less* noise at a given t.
        prediction_type: What the network predicts: "v_prediction", "epsilon" or "sample" (x_0).
        timestep_spacing: "uniform" (or "trailing", diffusers' word for it) or "leading".
        clip_sample: Clamp the estimate of x_0 to [-1, 1] at each step and compute the noise from it again. Off for the
            paper's models, on for official checkpoints.
        time_exponent: With "uniform" spacing the times are (k / K) ** time_exponent, k = 0 ... K. Above 1 the steps are
            finer near the image. Only for round trips, where it can make inversion far more exact; the best value
            depends on the model. 0.25 to 4.
    """

    __module__ = "diffae_hub"
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
        time_exponent: float = 1.0,
    ) -> None:
        check_choice("noise_schedule", noise_schedule, NOISE_SCHEDULES)
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
        if not 1 <= num_train_timesteps <= MAX_TIMESTEPS:
            raise ValueError(f"num_train_timesteps must be between 1 and {MAX_TIMESTEPS}, got {num_train_timesteps}")
        if not 0 < scaling_factor < math.inf:
            raise ValueError(f"scaling_factor must be a finite number above 0, got {scaling_factor}")
        if not 0.25 <= time_exponent <= 4 or (time_exponent != 1 and timestep_spacing == "leading"):
            raise ValueError(f"time_exponent must be 0.25 to 4, and 1 with 'leading' spacing, got {time_exponent}")
        if timestep_spacing == "trailing":
            self.register_to_config(timestep_spacing="uniform")  # one word in saved files
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps, 0, -1, dtype=torch.float32)
        self.step_index: int | None = None  # of the update that comes next in a loop
        self.begin_index: int | None = None  # of the first update, if `set_begin_index` was called
        _ = self.config  # computed here, not inside a compiled graph

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # ---- configuration ----------------------------------------------------------------------------------------------

    @property
    def config(self) -> FrozenDict:
        """The arguments, and for diffusers' solvers `trained_betas` and "trailing" in place of "uniform"."""
        if self.__dict__.get("_config_source") is not self._internal_dict:
            self._config_source = self._internal_dict
            # Without `_use_default_values`: a solver would put its own defaults in place of ours.
            own = {name: value for name, value in self._internal_dict.items() if not name.startswith("_")}
            schedule = (own["noise_schedule"], own["num_train_timesteps"], own["scaling_factor"])
            for_solvers = {
                "timestep_spacing": "leading" if own["timestep_spacing"] == "leading" else "trailing",
                "trained_betas": discrete_betas(*schedule, last_time(own["prediction_type"])),
                # A solver of diffusers keeps it, so that our scheduler can be made from its configuration again.
                "_trained_as": own,
                "_class_name": type(self).__name__,
            }
            self._config = FrozenDict(own | for_solvers)
        return self._config

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """Selects what diffusers' `from_config` reads from a configuration of ours, or from one made from ours.

        Raises ValueError for the configuration of a scheduler of diffusers' that was not made from ours.
        """
        config = dict(config_dict)
        trained_as = config.pop("_trained_as", None)
        if trained_as is None and {"beta_schedule", "shift"} & config.keys():  # ours would get other defaults
            raise ValueError("config must be that of a scheduler of diffae_hub's, or of one made from it")
        if trained_as is not None and config["_class_name"] not in OWN_CLASSES:
            config = dict(trained_as)
        config.pop("trained_betas", None)
        return super().extract_init_dict(config, **kwargs)

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """Classes whose options diffusers keeps in the configuration, so that they can be made from it again."""
        import diffae_hub

        return [getattr(diffae_hub, name) for name in OWN_CLASSES]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ) -> Self:
        """As in diffusers; the name of a bundled model is allowed too (with `subfolder="scheduler"`)."""
        source = model_folder(pretrained_model_name_or_path, kwargs, subfolder or "")
        return super().from_pretrained(source, subfolder=subfolder, **kwargs)

    # ---- noise levels -----------------------------------------------------------------------------------------------

    def alpha_sigma(self, timesteps: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha, sigma) at the network's timesteps, of any shape; float64 where the device has it.

        With "uniform" spacing timesteps are num_train_timesteps * t, with "leading" spacing official indices. Timesteps
        out of range are errors, except under `torch.compile`.
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
        """x_t = alpha_t x_0 + sigma_t noise (Algorithm 2, line 7), of the dtype of x_0, computed in float32 at least.

        x_0 and noise are (B, ...), timesteps one number or (B,); see `alpha_sigma`.
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
        """y*, the target of the network's prediction (Algorithm 2, lines 8 to 14); arguments as in `add_noise`."""
        if self.config.prediction_type == "epsilon":
            return noise
        if self.config.prediction_type == "sample":
            return original_samples
        return self.get_velocity(original_samples, noise, timesteps)

    def _prepare_training(
        self, original: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(alpha, sigma, x_0, noise) in at least float32, broadcastable to one another."""
        # Each of these would silently broadcast, or round, to a wrong result.
        if not original.is_floating_point():
            raise ValueError(f"original_samples must be floating point, got {original.dtype}")
        if noise.shape != original.shape:
            raise ValueError(f"noise must be shaped as x_0, {tuple(original.shape)}, got {tuple(noise.shape)}")
        alpha, sigma = self.alpha_sigma(timesteps)
        if alpha.ndim > 1 or alpha.numel() not in (1, len(original)):
            raise ValueError(f"timesteps must be one number or of shape ({len(original)},), got {tuple(alpha.shape)}")
        dtype = torch.promote_types(original.dtype, torch.float32)
        shape = (-1,) + (1,) * (original.ndim - 1)
        alpha, sigma = (level.to(original.device, dtype).reshape(shape) for level in (alpha, sigma))
        return alpha, sigma, original.to(dtype), noise.to(dtype)

    # ---- the walk ---------------------------------------------------------------------------------------------------

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Says that the loop begins at `timesteps[begin_index]`. Then no step waits for the device."""
        self.begin_index = begin_index

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Sets the K `timesteps`, and alpha and sigma at each of them and at the end (in float64).

        With "leading" spacing K must come from an integer stride over the training timesteps (of 1000: 20, 50, 100 and
        250, but not 60).
        """
        highest = self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= highest:
            raise ValueError(f"num_inference_steps must be between 1 and {highest}, got {num_inference_steps}")
        timesteps, self._levels = self._trajectory(num_inference_steps)
        self.timesteps = timesteps.to(device, torch.float32)
        self.num_inference_steps = num_inference_steps
        self.step_index = self.begin_index = None

    def _trajectory(self, num_inference_steps: int) -> tuple[torch.Tensor, Levels]:
        """The K timesteps for the network, and K + 1 pairs (alpha, sigma): update k goes from the k-th to the next."""
        total = self.config.num_train_timesteps
        if self.config.timestep_spacing == "leading":
            indices = self._leading_indices(num_inference_steps).flip(0)
            return indices, [*self._levels_at((indices + 1) / total), (1.0, 0.0)]
        times = self._uniform_times(num_inference_steps).flip(0)
        return total * times[:-1], self._levels_at(times)

    def _uniform_times(self, num_inference_steps: int) -> torch.Tensor:
        """K + 1 times from 0 to 1, equally spaced but for `time_exponent`, float64; noise prediction ends at 0.999."""
        steps = torch.tensor(range(num_inference_steps + 1), dtype=torch.float64)
        times = (steps / num_inference_steps) ** self.config.time_exponent
        return times.clamp(max=last_time(self.config.prediction_type))

    def _leading_indices(self, num_inference_steps: int) -> torch.Tensor:
        """0, s, 2s, ... below num_train_timesteps, with the smallest integer stride s that gives K of them; float64."""
        total = self.config.num_train_timesteps
        stride = -(-total // num_inference_steps)
        indices = torch.arange(0, total, stride, dtype=torch.float64)
        if len(indices) != num_inference_steps:
            raise ValueError(
                f"num_inference_steps must be a number that an integer stride over {total} timesteps gives, such as "
                f"{len(indices)} or {-(-total // (stride - 1))}, with 'leading' spacing, got {num_inference_steps}"
            )
        return indices

    def _levels_at(self, t: torch.Tensor) -> Levels:
        """(alpha, sigma) at each of the times t (K,), as Python floats: multiplying by them waits for no device."""
        if self.config.prediction_type == "epsilon":
            # Only "leading" with a stride of 1 on a schedule that ends in pure noise gets here with alpha = 0.
            t = torch.where(self._alpha_sigma_at_time(t)[0] == 0, EPSILON_MAX_TIME, t)
        alpha, sigma = self._alpha_sigma_at_time(t)
        return list(zip(alpha.tolist(), sigma.tolist(), strict=True))

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """The sample itself: a variance-preserving network gets x_t unscaled. For diffusers' loops."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Moves `sample`, x_t, to the next noise level of the walk.

        Args:
            model_output: f(x_t, t, z), of the sample's shape.
            timestep: The first call needs one of `timesteps`; later calls follow it in order, whatever they get.
            generator: Not used, because all updates are deterministic. For loops that pass one to every scheduler.

        Returns:
            `prev_sample`, the next sample, and `pred_original_sample`, x0_hat, both with the shape and dtype of
            `sample`. Half precision is computed in float32.
        """
        self._start_step(model_output, timestep, sample)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        result, original = self._update(self.step_index, model_output.to(dtype), sample.to(dtype))
        self.step_index += 1
        output = (result.to(sample.dtype), original.to(sample.dtype))
        return DDIMSchedulerOutput(*output) if return_dict else output

    def _start_step(self, model_output: torch.Tensor, timestep: torch.Tensor | float, sample: torch.Tensor) -> None:
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step, with the number of inference steps")
        if model_output.shape != sample.shape or not sample.is_floating_point():  # integers would be rounded
            kinds = [(tuple(tensor.shape), tensor.dtype) for tensor in (model_output, sample)]
            raise ValueError(f"model_output and sample must be floating point, of one shape, got {kinds}")
        if self.step_index is None and self.begin_index is not None:
            self.step_index = self.begin_index
        elif self.step_index is None:
            positions = (self.timesteps == timestep).nonzero()
            if not len(positions):
                raise ValueError(f"timestep must be one of those in scheduler.timesteps, got {float(timestep):g}")
            self.step_index = int(positions[0])
        if self.step_index >= len(self.timesteps):
            raise ValueError(f"step must be called once for each of {len(self.timesteps)} timesteps, got one call more")

    def _update(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next sample and x0_hat (DDIM; section 3, "Sampling").

        | name | symbol |
        |---|---|
        | sample | x_t |
        | next_alpha, next_sigma | alpha_t', sigma_t' at the next level t' |
        | original, noise | x0_hat, eps_hat |

        x_t' = alpha_t' x0_hat + sigma_t' eps_hat is the paper's update with the score written out. It does not divide
        by alpha_t, so for v- and x-prediction it also holds at t = 1.
        """
        original, noise = self._predict(model_output, sample, *self._levels[index])
        next_alpha, next_sigma = self._levels[index + 1]
        return next_alpha * original + next_sigma * noise, original

    def _predict(
        self, model_output: torch.Tensor, sample: torch.Tensor, alpha: float, sigma: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0_hat, eps_hat) with sample = alpha x0_hat + sigma eps_hat, whatever the network predicts."""
        prediction_type, clip_sample = self.config.prediction_type, self.config.clip_sample
        if prediction_type == "v_prediction":  # v = alpha eps - sigma x0
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


def last_time(prediction_type: str) -> float:
    """The noisiest time at which the network is used."""
    return EPSILON_MAX_TIME if prediction_type == "epsilon" else 1.0
