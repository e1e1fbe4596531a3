"""The stages of the pipeline, tensors in and tensors out: image -> z, image -> x_T, (z, x_T) -> image."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from ..images import Tiles
from ..schedulers.compatibility import network_timestep, scheduler_for_one_walk, trained_scheduler
from ..schedulers.noise_schedules import check_choice
from ..schedulers.scheduling_vp_ddim_inverse import VPDDIMInverseScheduler
from .image_processor import check_values

MODES = ("stochastic", "inversion")
# Frames or tiles that go through a network at once.
BATCH_SIZE = 64
# Corrections of one inversion step before it counts as not converging.
MAX_CORRECTIONS = 50
# Images are about in [-1, 1]; values this large come from a meaningless code or weights.
_ABSURD = 1e4

Generators = torch.Generator | list[torch.Generator] | None
CallbackFunction = Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of x_t and the timestep
StepCallback = tuple[CallbackFunction | None, Sequence[str]]  # and the names of the tensors that it gets


@dataclass
class DiffusionAutoencoderPipelineOutput(BaseOutput):
    """What the pipeline returns.

    Args:
        images: By `output_type`: a list of PIL images, an array (B, H, W, C) or tensor (B, C, H, W) in [0, 1], or the
            model's output (B, C, H, W), about in [-1, 1].
        latent_code: z, (B, latent_dim); with tiling, one per tile.
        noise: The decoded x_T, (B, C, H, W), float32.
        spread: Only from `variations`: each pixel's standard deviation over the images in [0, 1], (C, H, W).
    """

    __module__ = "diffae_hub"

    images: list[Image.Image] | np.ndarray | torch.Tensor
    latent_code: torch.Tensor
    noise: torch.Tensor
    spread: torch.Tensor | None = None


class DiffusionAutoencoderStages(DiffusionPipeline):
    """What the public methods of `DiffusionAutoencoderPipeline` share. All but `check_inputs` trust their callers."""

    _callback_tensor_inputs = ["sample", "latent_code"]
    _interrupt = False  # whether to skip the remaining updates

    @property
    def interrupt(self) -> bool:
        """Whether the remaining updates are skipped; callbacks set `_interrupt`, as in diffusers."""
        return self._interrupt

    def check_inputs(
        self,
        batch_size: int,
        num_inference_steps: int,
        mode: str = MODES[0],
        output_type: str = "latent",
        generator: Generators = None,
        latent_code: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        tolerance: float | None = None,
        inversion: str | None = None,
    ) -> None:
        """Raises ValueError for arguments that are not allowed."""
        self._interrupt = False  # reset from the call before
        self.image_processor.check_output_type(output_type)
        check_choice("mode", mode, MODES)
        check_choice("inversion", inversion, (None, "predictor_corrector", "plain"))
        if mode == "stochastic" and (tolerance is not None or inversion is not None):
            raise ValueError(f"tolerance and inversion need mode 'inversion', got {tolerance} and {inversion!r}")
        if tolerance is not None and not (tolerance > 0 and inversion != "plain"):
            raise ValueError(f"tolerance must be above 0, and inversion not 'plain', got {tolerance} and {inversion!r}")
        trained_scheduler(self.scheduler)  # one that walks another schedule would decode to nonsense
        scheduler_for_one_walk(self.scheduler).set_timesteps(num_inference_steps)
        is_list = isinstance(generator, list) and len(generator) == batch_size
        if not (is_list or generator is None or isinstance(generator, torch.Generator)):
            raise ValueError(f"generator must be one torch.Generator or a list of {batch_size}, got {generator!r}")
        width, channels = self.decoder.config.latent_dim, self.decoder.config.in_channels
        if latent_code is not None and (latent_code.shape != (batch_size, width) or not batch_size):
            raise ValueError(f"latent_code must have shape (batch, {width}), got {tuple(latent_code.shape)}")
        if noise is not None:
            shape, factor = tuple(noise.shape), self.decoder.downsampling_factor
            if len(shape) != 4 or shape[:2] != (batch_size, channels) or shape[2] % factor or shape[3] % factor:
                wanted = f"({batch_size}, {channels}, height, width), sides divisible by {factor}"
                raise ValueError(f"noise must have shape {wanted}, got {shape}")
        for name, tensor in (("latent_code", latent_code), ("noise", noise)):
            if tensor is not None:
                check_values(name, tensor)
                if not torch.isfinite(tensor).all():
                    raise ValueError(f"{name} must be finite, got NaN or infinity")

    def _encode(self, pixels: torch.Tensor, tiles: Tiles | None = None) -> torch.Tensor:
        """Images (B, C, H, W) in [-1, 1] -> z, (B, latent_dim), or one per tile."""
        batches = [pixels] if tiles is None else tiles.split(pixels).split(BATCH_SIZE)
        codes = []
        with self._progress("encode", len(batches)) as progress:
            for batch in batches:
                batch = batch.to(self._execution_device, self.encoder.dtype)
                codes.append(self.encoder(batch, return_dict=False)[0])
                progress.update()
        latent_code = torch.cat(codes)
        if not torch.isfinite(latent_code).all():
            raise ValueError("encoder gave a latent code that is not finite: its weights are damaged, or overflow")
        return latent_code

    def _noise(
        self,
        pixels: torch.Tensor,
        latent_code: torch.Tensor,
        num_inference_steps: int,
        mode: str = "inversion",
        generator: Generators = None,
        tolerance: float | None = None,
        inversion: str | None = None,
        tiles: Tiles | None = None,
        callback: StepCallback = (None, ()),
    ) -> torch.Tensor:
        """Returns x_T for images (B, C, H, W) in [-1, 1]: random, or inverted along the trained noise schedule."""
        if mode == "stochastic":
            return self._random_noise(pixels.shape, generator)
        if tolerance is not None:
            inversion = "predictor_corrector"
        given = {} if inversion is None else {"inversion": inversion}
        scheduler = VPDDIMInverseScheduler.from_config(trained_scheduler(self.scheduler).config, **given)
        scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        network = partial(self._network, tiles=tiles)
        return self._walk("invert", scheduler, network, pixels, latent_code, callback, tolerance=tolerance)

    def _decode(
        self,
        latent_code: torch.Tensor,
        noise: torch.Tensor,
        num_inference_steps: int,
        generator: Generators = None,
        tiles: Tiles | None = None,
        callback: StepCallback = (None, ()),
    ) -> torch.Tensor:
        """z and x_T (B, C, H, W) -> images, about in [-1, 1]."""
        scheduler = scheduler_for_one_walk(self.scheduler)
        scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        network = partial(self._network, tiles=tiles)
        return self._walk("decode", scheduler, network, noise, latent_code, callback, generator)

    def _walk(
        self,
        name: str,
        scheduler: SchedulerMixin,
        network_of: Callable[[torch.Tensor | None], Network],
        sample: torch.Tensor,
        latent_code: torch.Tensor | None = None,
        callback: StepCallback = (None, ()),
        generator: Generators = None,
        tolerance: float | None = None,
    ) -> torch.Tensor:
        """Walks from one end of the scheduler's timesteps to the other: x_T -> x_0, or x_0 -> x_T.

        `network_of` gives the network for a latent code.
        """
        function, names = callback
        if isinstance(function, (PipelineCallback, MultiPipelineCallbacks)):
            names = function.tensor_inputs
        allowed = self._callback_tensor_inputs
        if not set(names) <= {*allowed}:
            raise ValueError(f"callback_on_step_end_tensor_inputs must be of {allowed}, got {list(names)}")
        network = network_of(latent_code)
        if hasattr(scheduler, "set_begin_index"):  # with Karras sigmas diffusers may find the first timestep twice
            scheduler.set_begin_index(0)
        extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        sample = sample.to(self._execution_device, torch.promote_types(self.decoder.dtype, torch.float32))
        sample = sample * scheduler.init_noise_sigma
        with self._progress(name, len(scheduler.timesteps)) as progress:
            for index, timestep in enumerate(scheduler.timesteps):
                if self.interrupt:
                    continue
                # 1. noise, x_0 or velocity
                model_input = scheduler.scale_model_input(sample, timestep)
                model_output = network(model_input, network_timestep(scheduler, timestep))
                if tolerance is not None:
                    sample, model_output = _corrected(scheduler, network, model_output, timestep, sample, tolerance)

                # 2. to the next level
                sample = scheduler.step(model_output, timestep, sample, **extra, return_dict=False)[0]
                if function is not None:
                    tensors = {"sample": sample, "latent_code": latent_code}
                    returned = function(self, index, timestep, {name: tensors[name] for name in names}) or {}
                    if not {*returned} <= {*allowed}:
                        raise ValueError(f"callback_on_step_end must return tensors of {allowed}, got {[*returned]}")
                    sample = returned.get("sample", sample).to(sample)
                    if "latent_code" in returned:
                        latent_code = returned["latent_code"]
                        network = network_of(latent_code)
                progress.update()
        largest = float(sample.detach().abs().amax())
        if not largest < _ABSURD:  # written so that NaN fails
            model = "latent_code_model" if latent_code is None else "decoder"
            raise ValueError(
                f"latent_code, noise or the weights of {model} lead to values of {largest:g}: they mean nothing to "
                "this model, are damaged, or overflow half precision"
            )
        return sample

    def _network(self, latent_code: torch.Tensor, tiles: Tiles | None) -> Network:
        """Returns the decoder as a function of x_t and the timestep, in its own dtype. Outputs of tiles are blended."""
        dtype = self.decoder.dtype
        codes = latent_code.to(self._execution_device, dtype)
        # What depends only on the code is computed once, not at each step.
        conditioning = self.decoder.prepare_latent(codes) if tiles is None else None

        def network(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            batches = [sample] if tiles is None else tiles.split(sample).split(BATCH_SIZE)
            outputs = [
                self.decoder(
                    batch.to(dtype, memory_format=torch.channels_last),  # the faster layout, which convolutions keep
                    timestep,
                    code,
                    latent_conditioning=conditioning,
                    return_dict=False,
                )[0].to(sample.dtype)
                for batch, code in zip(batches, codes.split(max(len(b) for b in batches)), strict=True)
            ]
            return outputs[0] if tiles is None else tiles.join(torch.cat(outputs))

        return network

    def _random_noise(self, shape: Sequence[int], generator: Generators) -> torch.Tensor:
        return randn_tensor(tuple(shape), generator=generator, device=self._execution_device, dtype=torch.float32)

    def _progress(self, name: str, total: int) -> Any:
        bar = self.progress_bar(total=total)
        if "desc" not in self._progress_bar_config:
            bar.set_description(name)
        return bar

    def _output(
        self,
        sample: torch.Tensor,
        latent_code: torch.Tensor,
        noise: torch.Tensor,
        output_type: str,
        return_dict: bool,
        **more: torch.Tensor,
    ) -> DiffusionAutoencoderPipelineOutput | tuple:
        self.maybe_free_model_hooks()
        carries_gradient = output_type in ("pt", "latent")
        images = self.image_processor.postprocess(sample if carries_gradient else sample.detach(), output_type)
        output = DiffusionAutoencoderPipelineOutput(images=images, latent_code=latent_code, noise=noise, **more)
        return output if return_dict else output.to_tuple()


def _corrected(
    scheduler: VPDDIMInverseScheduler,
    network: Network,
    model_output: torch.Tensor,
    timestep: torch.Tensor,
    sample: torch.Tensor,
    tolerance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x_t where sampling will evaluate the network, up to the tolerance, and the network's output there."""
    for _ in range(MAX_CORRECTIONS + 1):
        corrected, error = scheduler.correct(model_output, timestep, sample)
        miss = float(error.abs().amax())
        if miss <= tolerance * max(1.0, float(sample.abs().amax())):
            return sample, model_output
        sample, model_output = corrected, network(corrected, timestep)
    raise ValueError(
        f"tolerance must be reached by {MAX_CORRECTIONS} corrections of a step, got {tolerance:g}: {miss:.2g} is left "
        f"at timestep {float(timestep):g}; take more steps or a larger tolerance"
    )
