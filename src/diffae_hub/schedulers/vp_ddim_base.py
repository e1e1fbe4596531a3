"""What the two DDIM schedulers share: the configuration, the noise levels, the training-time formulas and the update.

`VPDDIMScheduler` and `VPDDIMInverseScheduler` differ only in the sequence of noise levels that they walk through.
Moving from one level to the next is the same arithmetic in both directions, and is here.
"""

from __future__ import annotations

import importlib
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from .noise_schedules import NOISE_SCHEDULES, alpha_sigma, check_choice

PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")
TIMESTEP_SPACINGS = ("uniform", "leading")

# Noise prediction divides by alpha, which is 0 at t = 1: the last time at which it is used.
EPSILON_MAX_TIME = 0.999
# Timesteps are float32 and at least 1 apart.
TIMESTEP_TOLERANCE = 1e-3


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
    alpha: float | torch.Tensor,
    sigma: float | torch.Tensor,
    clip_sample: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x0_hat, eps_hat) with sample = alpha x0_hat + sigma eps_hat, whatever the network predicts.

    Args:
        prediction_type: "v_prediction" (v = alpha eps - sigma x0), "epsilon" (divides by alpha) or "sample" (divides
            by sigma).
        model_output: the network's output, shaped as `sample`.
        sample: x_t, any shape.
        alpha: alpha_t, broadcastable to the sample.
        sigma: sigma_t, broadcastable to the sample.
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
        noise = None  # needs the x0_hat that comes out of the clamp
    if clip_sample:
        original = original.clamp(-1, 1)
    if clip_sample or noise is None:
        noise = (sample - alpha * original) / sigma
    return original, noise


class VPDDIMSchedulerBase(SchedulerMixin, ConfigMixin):
    """Configuration and arithmetic of a deterministic DDIM walk along a variance-preserving noise schedule.

    Subclasses say which noise levels the walk visits, in `_trajectory`.
    """

    _compatibles: ClassVar[list[str]] = ["VPDDIMScheduler", "VPDDIMInverseScheduler"]
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
        _check_integer("num_train_timesteps", num_train_timesteps, minimum=1)
        check_choice("noise_schedule", noise_schedule, NOISE_SCHEDULES)
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
        if not _is_real_number(scaling_factor) or not 0 < scaling_factor < math.inf:
            raise ValueError(f"scaling_factor must be a finite number above 0, got {scaling_factor!r}")
        if clip_sample is not True and clip_sample is not False:
            raise ValueError(f"clip_sample must be True or False, got {clip_sample!r}")

        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None
        # As in diffusers, every training timestep until `set_timesteps` is called.
        self._set_trajectory(num_train_timesteps, device=None)

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        # The inherited method looks the names up in diffusers, where ours are not.
        package = importlib.import_module("diffae_hub")
        return [getattr(package, name) for name in cls._compatibles]

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
        self._check_timesteps(timesteps)
        offset = 1 if self.config.timestep_spacing == "leading" else 0
        if timesteps.device.type != "mps":
            timesteps = timesteps.to(torch.float64)
        return self._alpha_sigma_at_time((timesteps + offset) / self.config.num_train_timesteps)

    def _alpha_sigma_at_time(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return alpha_sigma(self.config.noise_schedule, t, self.config.scaling_factor)

    def _check_timesteps(self, timesteps: torch.Tensor) -> None:
        # Reading the values waits for the device and breaks a compiled graph.
        if torch.compiler.is_compiling() or timesteps.numel() == 0:
            return
        highest = self.config.num_train_timesteps - (self.config.timestep_spacing == "leading")
        low, high = (float(value) for value in timesteps.aminmax())
        if not (low >= 0 and high <= highest):  # written so that NaN fails
            spacing = self.config.timestep_spacing
            raise ValueError(
                f"timesteps must be between 0 and {highest} with timestep_spacing={spacing!r}, got {low:g} to {high:g}"
            )

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
        return self._mix(original_samples, noise, timesteps, lambda alpha, sigma, x, eps: alpha * x + sigma * eps)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float) -> torch.Tensor:
        """v_t = alpha_t noise - sigma_t x_0; arguments and result as in `add_noise`, `sample` being x_0."""
        return self._mix(sample, noise, timesteps, lambda alpha, sigma, x, eps: alpha * eps - sigma * x)

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

    def _mix(
        self,
        original: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor | float,
        formula: Callable[..., torch.Tensor],
    ) -> torch.Tensor:
        if not original.is_floating_point():
            raise ValueError(f"original_samples must be floating point, got {original.dtype}")
        if noise.shape != original.shape:
            raise ValueError(
                f"noise must have the shape of original_samples, {tuple(original.shape)}, got {tuple(noise.shape)}"
            )
        alpha, sigma = self.alpha_sigma(timesteps)
        batch = original.shape[0] if original.ndim else 1
        if alpha.ndim > 1 or alpha.numel() not in (1, batch):
            raise ValueError(f"timesteps must be one number or of shape ({batch},), got shape {tuple(alpha.shape)}")
        dtype = torch.promote_types(original.dtype, torch.float32)
        shape = alpha.shape + (1,) * (original.ndim - 1) if alpha.ndim == 1 else alpha.shape
        alpha, sigma = (level.to(original.device, dtype).reshape(shape) for level in (alpha, sigma))
        return formula(alpha, sigma, original.to(dtype), noise.to(dtype)).to(original.dtype)

    # ---- the walk ---------------------------------------------------------------------------------------------------

    @property
    def step_index(self) -> int | None:
        """Index into `timesteps` of the update that comes next in a loop; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first update, where a pipeline has set it with `set_begin_index`."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Announce that the loop begins at `timesteps[begin_index]`, as pipelines that skip the first steps do."""
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
        num_inference_steps = _check_integer(
            "num_inference_steps", num_inference_steps, minimum=1, maximum=self.config.num_train_timesteps
        )
        self._set_trajectory(num_inference_steps, device)
        self.num_inference_steps = num_inference_steps

    def _set_trajectory(self, num_inference_steps: int, device: str | torch.device | None) -> None:
        timesteps, levels = self._trajectory(num_inference_steps)
        timesteps = timesteps.to(torch.float32)
        # Python floats: multiplying a tensor on any device by them copies nothing and waits for nothing.
        self._timestep_values: list[float] = timesteps.tolist()
        self._levels: list[tuple[float, float]] = levels
        self.timesteps = timesteps.to(device)
        self._own_timesteps = self.timesteps  # stays whole if a pipeline assigns a part of it to `timesteps`
        self._step_index = None
        self._begin_index = None

    def _trajectory(self, num_inference_steps: int) -> tuple[torch.Tensor, list[tuple[float, float]]]:
        """The K timesteps at which the network is evaluated, and the K + 1 pairs (alpha, sigma) of the walk.

        Update k goes from levels[k] to levels[k + 1].
        """
        raise NotImplementedError

    def _uniform_times(self, num_inference_steps: int) -> torch.Tensor:
        """K + 1 equally spaced times from 0 to 1, float64; noise prediction ends at 0.999."""
        times = torch.arange(num_inference_steps + 1, dtype=torch.float64) / num_inference_steps
        return times.clamp(max=EPSILON_MAX_TIME) if self.config.prediction_type == "epsilon" else times

    def _leading_indices(self, num_inference_steps: int) -> torch.Tensor:
        """0, s, 2s, ... below num_train_timesteps, with the smallest integer stride s that gives K of them; float64."""
        total = self.config.num_train_timesteps
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == num_inference_steps:
                return torch.arange(0, total, stride, dtype=torch.float64)
        counts = [len(range(0, total, stride)) for stride in range(1, total + 1)]
        below = max(count for count in counts if count < num_inference_steps)
        above = min(count for count in counts if count > num_inference_steps)
        raise ValueError(
            f"num_inference_steps must be a number that an integer stride over {total} timesteps gives when "
            f"timestep_spacing='leading' (the nearest are {below} and {above}), got {num_inference_steps}"
        )

    def _levels_at(self, t: torch.Tensor) -> list[tuple[float, float]]:
        """(alpha, sigma) at each of the times t (K,), as Python floats."""
        if self.config.prediction_type == "epsilon":
            # Only "leading" with a stride of 1 on a schedule that ends in pure noise gets here with alpha = 0.
            alpha, _ = self._alpha_sigma_at_time(t)
            t = torch.where(alpha == 0, EPSILON_MAX_TIME, t)
        alpha, sigma = self._alpha_sigma_at_time(t)
        return list(zip(alpha.tolist(), sigma.tolist(), strict=True))

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """The sample itself: a variance-preserving network gets x_t unscaled. For diffusers' loops."""
        return sample

    def index_for_timestep(self, timestep: torch.Tensor | float) -> int:
        """Position of `timestep` in `timesteps`; where it is there twice, the one that a loop comes to next.

        Raises:
            ValueError: if it is not one of them.
        """
        if isinstance(timestep, torch.Tensor):
            if timestep.numel() != 1:
                raise ValueError(f"timestep must be one number, got shape {tuple(timestep.shape)}")
            position = self._position_by_address(timestep)
            if position is not None:
                return position
        value = float(timestep)
        values = self._timestep_values
        expected = self._step_index if self._step_index is not None else self._begin_index
        if expected is not None and expected < len(values) and abs(values[expected] - value) <= TIMESTEP_TOLERANCE:
            return expected
        for position, candidate in enumerate(values):
            if abs(candidate - value) <= TIMESTEP_TOLERANCE:
                return position
        raise ValueError(
            f"timestep must be one of the {len(values)} in scheduler.timesteps, "
            f"{values[0]:g} to {values[-1]:g}, got {value:g}"
        )

    def _position_by_address(self, timestep: torch.Tensor) -> int | None:
        # In `for t in scheduler.timesteps` each t is a view of that tensor, so where it lies in memory says which one
        # it is. Reading its value would make the host wait for the accelerator at every step.
        timesteps = self._own_timesteps
        if timestep.device != timesteps.device or timestep.dtype != timesteps.dtype:
            return None
        offset, remainder = divmod(timestep.data_ptr() - timesteps.data_ptr(), timesteps.element_size())
        return offset if remainder == 0 and 0 <= offset < timesteps.numel() else None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> VPDDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Move `sample` from `timestep` to the next noise level of the walk (DDIM; section 3, "Sampling").

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
            timestep: one of `timesteps`; they may come in any order.
            sample: x_t, (B, ...), floating point.
            generator: not used, DDIM is deterministic; for loops that pass one to every scheduler.
            return_dict: whether to return a `VPDDIMSchedulerOutput` or the tuple of its values.

        Returns:
            The next sample and x0_hat, shaped and typed as `sample`. Half precision is computed in float32.

        Raises:
            ValueError: before `set_timesteps`, for a timestep that is not in the list, and for unequal shapes.
        """
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step, with the number of inference steps")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output must have the shape of sample, {tuple(sample.shape)}, got {tuple(model_output.shape)}"
            )
        # 1. the two noise levels
        index = self.index_for_timestep(timestep)
        alpha, sigma = self._levels[index]
        next_alpha, next_sigma = self._levels[index + 1]

        # 2. what the network says about the clean image and the noise
        dtype = torch.promote_types(sample.dtype, torch.float32)
        original, noise = predict_original_and_noise(
            self.config.prediction_type,
            model_output.to(dtype),
            sample.to(dtype),
            alpha,
            sigma,
            clip_sample=self.config.clip_sample,
        )

        # 3. the same image and noise, mixed as at the next level
        next_sample = next_alpha * original + next_sigma * noise

        self._step_index = index + 1
        output = (next_sample.to(sample.dtype), original.to(sample.dtype))
        return VPDDIMSchedulerOutput(*output) if return_dict else output

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _is_real_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """The value as an int; a ValueError that names the argument if it is not an integer of the range."""
    allowed = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"{name} must be an integer, {allowed}, got {value!r}")
    if number < minimum or (maximum is not None and number > maximum):
        raise ValueError(f"{name} must be {allowed}, got {number}")
    return number
