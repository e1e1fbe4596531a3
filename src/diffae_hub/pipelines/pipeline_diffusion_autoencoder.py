"""DiffusionAutoencoderPipeline: encode, invert, decode, interpolate."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors import SafetensorError, safe_open

from ..files import check_regular_files
from ..models.attribute_classifier import AttributeClassifier
from ..models.conditioned_unet_2d import ConditionedUNet2DModel, LatentConditioning
from ..models.latent_code_model import LatentCodeModel
from ..models.semantic_encoder import SemanticEncoderModel
from ..pretrained import bundled_model_names, bundled_model_path
from ..publishing import PublishingMixin
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler
from ..schedulers.scheduling_vp_ddim_inverse import VPDDIMInverseScheduler
from .image_processor import DiffusionAutoencoderImageProcessor, ImageInput
from .interpolation import lerp, slerp

MODES = ("stochastic", "inversion")
INTERPOLATIONS = {"slerp": slerp, "lerp": lerp}

Generators = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[["DiffusionAutoencoderPipeline", int, torch.Tensor, dict[str, torch.Tensor]], dict[str, Any]]


@dataclass
class DiffusionAutoencoderPipelineOutput(BaseOutput):
    """What decoding returns.

    Args:
        images: As `output_type` says: list of PIL images, array (B, H, W, C) or tensor (B, C, H, W) in [0, 1], or the
            model's own (B, C, H, W), about in [-1, 1].
        latent_code: z, (B, latent_dim).
        noise: x_T that was decoded, (B, C, H, W), float32.
    """

    __module__ = "diffae_hub"

    images: list[Image.Image] | np.ndarray | torch.Tensor
    latent_code: torch.Tensor
    noise: torch.Tensor


class DiffusionAutoencoderPipeline(PublishingMixin, DiffusionPipeline):
    """A diffusion autoencoder: image -> latent code z and noise x_T -> image (section 3, "Diffusion autoencoder").

    Args:
        encoder: Image -> z.
        decoder: (x_t, t, z) -> noise, x_0 or velocity.
        scheduler: Walks from x_T to the image. The scheduler of the inverse walk is made from its configuration.
        latent_code_model: Optional; samples new latent codes.
        latent_scheduler: Optional; the scheduler of `latent_code_model`.
        attribute_classifier: Optional; linear classifier of attributes on normalised codes, for editing.

    Raises:
        ValueError: If a component that is not optional is None, or the components do not fit one another.
    """

    __module__ = "diffae_hub"
    model_cpu_offload_seq = "encoder->latent_code_model->decoder"
    _optional_components = ["latent_code_model", "latent_scheduler", "attribute_classifier"]
    _callback_tensor_inputs = ["sample", "latent_code"]

    def __init__(
        self,
        encoder: SemanticEncoderModel,
        decoder: ConditionedUNet2DModel,
        scheduler: VPDDIMScheduler,
        latent_code_model: LatentCodeModel | None = None,
        latent_scheduler: VPDDIMScheduler | None = None,
        attribute_classifier: AttributeClassifier | None = None,
    ) -> None:
        super().__init__()
        for name, component in (("encoder", encoder), ("decoder", decoder), ("scheduler", scheduler)):
            if component is None:
                raise ValueError(f"{name} must be given, got None")
        fixed_size = encoder.config.latent_head == "flatten" or decoder.config.latent_spatial_size is not None
        _check_same("encoder's in_channels", encoder.config.in_channels, "decoder's", decoder.config.in_channels)
        _check_same("decoder's in_channels", decoder.config.in_channels, "out_channels", decoder.config.out_channels)
        if fixed_size:
            _check_same("encoder's sample_size", encoder.config.sample_size, "decoder's", decoder.config.sample_size)
        for name, component in (
            ("decoder", decoder),
            ("latent_code_model", latent_code_model),
            ("attribute_classifier", attribute_classifier),
        ):
            if component is not None:
                _check_same("encoder's latent_dim", encoder.config.latent_dim, f"{name}'s", component.config.latent_dim)
        self.register_modules(
            encoder=encoder,
            decoder=decoder,
            scheduler=scheduler,
            latent_code_model=latent_code_model,
            latent_scheduler=latent_scheduler,
            attribute_classifier=attribute_classifier,
        )
        self.image_processor = DiffusionAutoencoderImageProcessor(
            sample_size=decoder.config.sample_size,
            channels=encoder.config.in_channels,
            downsampling_factor=max(encoder.downsampling_factor, decoder.downsampling_factor),
            fixed_size=fixed_size,
        )

    # ---- loading and saving ----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> DiffusionAutoencoderPipeline:
        """Loads a pipeline, float32 unless `dtype` says otherwise. Only safetensors are read.

        The networks keep the contiguous memory layout, so that a pipeline comes back bit-equal from saving and loading.
        They are faster after `network.to(memory_format=torch.channels_last)`, with the same results but for rounding
        (about 1e-6); the command line does so.

        Args:
            pretrained_model_name_or_path: A local folder, the name of a bundled model, or a Hub id ("owner/name").
            kwargs: As in diffusers.

        Raises:
            ValueError: If there is no such folder or bundled model, a weight file is damaged or does not hold exactly
                the model's tensors, or a configuration holds a value that is not allowed.
            OSError: If a Hub repository cannot be reached or a file is missing.
        """
        name = str(pretrained_model_name_or_path)
        folder = Path(name)
        is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
        # Any folder, one of results say, may happen to bear a bundled model's name.
        if not (folder / "model_index.json").is_file() and name in bundled_model_names():
            folder = bundled_model_path(name)
        elif is_hub_id and not folder.exists():
            # The download of diffusers refuses components whose classes are not its own.
            names = ("cache_dir", "force_download", "local_files_only", "revision", "token")
            options = {key: kwargs.pop(key) for key in names if key in kwargs}
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"], **options))
        if not name or not (folder / "model_index.json").is_file():
            raise ValueError(
                "pretrained_model_name_or_path must be a pipeline folder with a model_index.json, a Hub id "
                f"'owner/name' or one of the bundled models {bundled_model_names()}, got {name!r}"
            )
        check_regular_files(folder)
        _check_configurations(folder)
        kwargs["use_safetensors"] = True
        try:
            return super().from_pretrained(folder, **kwargs)
        except (SafetensorError, OSError, RuntimeError) as error:
            damaged = _damaged_weight_files(folder)
            if damaged:
                raise ValueError(
                    f"weight file {damaged[0]} is damaged or truncated; download or convert it again"
                ) from error
            raise

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Saves the pipeline, weights as safetensors; arguments as in diffusers.

        Raises:
            ValueError: If `safe_serialization=False` is asked for.
        """
        if not kwargs.pop("safe_serialization", True):
            raise ValueError("safe_serialization must be True: weights are written as safetensors only, got False")
        super().save_pretrained(save_directory, safe_serialization=True, **kwargs)

    # ---- the four stages -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: ImageInput, resize_mode: str | None = None) -> torch.Tensor:
        """`z = E(x_0)`.

        Args:
            images: PIL image(s), arrays or tensors; see [`DiffusionAutoencoderImageProcessor.preprocess`].
            resize_mode: None, "crop", "stretch" or "none".

        Returns:
            Latent codes, (B, latent_dim), in the encoder's dtype.

        Raises:
            ValueError: For images that are not allowed.
        """
        batch = self.image_processor.preprocess(images, resize_mode).to(self._execution_device, self.encoder.dtype)
        latent_code = self.encoder(batch, return_dict=False)[0]
        self.maybe_free_model_hooks()
        return latent_code

    @torch.no_grad()
    def invert(
        self,
        images: ImageInput,
        latent_code: torch.Tensor | None = None,
        num_inference_steps: int = 50,
        resize_mode: str | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> torch.Tensor:
        """DDIM inversion: the noise x_T (stochastic subcode) that decodes to the images.

        Args:
            images: As in [`~DiffusionAutoencoderPipeline.encode`].
            latent_code: Their codes; None encodes them.
            num_inference_steps: Number of updates, 1 to 1000.
            resize_mode: As in [`~DiffusionAutoencoderPipeline.encode`].
            callback_on_step_end: As in [`~DiffusionAutoencoderPipeline.decode`].
            callback_on_step_end_tensor_inputs: As in [`~DiffusionAutoencoderPipeline.decode`].

        Returns:
            x_T, (B, C, H, W), float32.

        Raises:
            ValueError: For arguments that are not allowed.
        """
        wanted = self._check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        batch = self.image_processor.preprocess(images, resize_mode).to(self._execution_device)
        scheduler = VPDDIMInverseScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        if latent_code is None:
            latent_code = self.encoder(batch.to(self.encoder.dtype), return_dict=False)[0]
        self._check_latent_code(latent_code, batch.shape[0])
        noise = self._walk(scheduler, batch, latent_code, callback_on_step_end, wanted)
        self.maybe_free_model_hooks()
        return noise

    @torch.no_grad()
    def decode(
        self,
        latent_code: torch.Tensor,
        noise: torch.Tensor | None = None,
        num_inference_steps: int = 50,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> DiffusionAutoencoderPipelineOutput | tuple:
        """DDIM sampling from x_T to images, conditioned on latent codes.

        Args:
            latent_code: z, (B, latent_dim), floating point.
            noise: x_T, (B, C, H, W); None draws it from `generator`, at the model's `sample_size`.
            num_inference_steps: Number of updates, 1 to 1000.
            generator: One generator, or a list of one per image; with one per image an image does not depend on its
                batch.
            output_type: "pil", "np", "pt" (both in [0, 1]) or "latent" (as the model gives it).
            return_dict: Whether to return a [`DiffusionAutoencoderPipelineOutput`] or a tuple.
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after each update; it returns None
                or a dictionary, whose "sample", if any, replaces the sample and must have its shape.
            callback_on_step_end_tensor_inputs: List of "sample", "latent_code" or both: what it receives. None means
                ["sample"], or for a `PipelineCallback` of diffusers its `tensor_inputs`.

        Returns:
            Images, latent code, noise.

        Raises:
            ValueError: For arguments that are not allowed.
        """
        self.image_processor.check_output_type(output_type)
        wanted = self._check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._check_latent_code(latent_code)
        device, batch_size = self._execution_device, latent_code.shape[0]
        _check_generator(generator, batch_size)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        noise = self._prepare_noise(noise, batch_size, generator, device)
        sample = self._walk(self.scheduler, noise, latent_code.to(device), callback_on_step_end, wanted)
        self.maybe_free_model_hooks()
        images = self.image_processor.postprocess(sample, output_type)
        if not return_dict:
            return images, latent_code, noise
        return DiffusionAutoencoderPipelineOutput(images=images, latent_code=latent_code, noise=noise)

    @torch.no_grad()
    def interpolate(
        self,
        image_a: ImageInput,
        image_b: ImageInput,
        num_frames: int = 9,
        num_inference_steps: int = 50,
        latent_interpolation: str = "slerp",
        output_type: str = "pil",
        resize_mode: str | None = None,
        return_dict: bool = True,
    ) -> DiffusionAutoencoderPipelineOutput | tuple:
        """Images between two images (section 5.2): codes and noises are interpolated, then decoded.

        Args:
            image_a: One image, as in [`~DiffusionAutoencoderPipeline.encode`].
            image_b: One image.
            num_frames: Number of images, both ends included; at least 2.
            num_inference_steps: Updates of inversion and of decoding, 1 to 1000.
            latent_interpolation: How z is interpolated: "slerp" (the paper) or "lerp" (official DiffAE). The noise x_T
                is always interpolated spherically.
            output_type: As in [`~DiffusionAutoencoderPipeline.decode`].
            resize_mode: As in [`~DiffusionAutoencoderPipeline.encode`].
            return_dict: Whether to return a [`DiffusionAutoencoderPipelineOutput`] or a tuple.

        Raises:
            ValueError: For arguments that are not allowed.
        """
        if _as_integer(num_frames) is None or num_frames < 2:
            raise ValueError(f"num_frames must be an integer of at least 2, got {num_frames!r}")
        if latent_interpolation not in tuple(INTERPOLATIONS):  # a tuple: it may be unhashable
            raise ValueError(
                f"latent_interpolation must be one of {sorted(INTERPOLATIONS)}, got {latent_interpolation!r}"
            )
        self.image_processor.check_output_type(output_type)
        ends = [self.image_processor.preprocess(image, resize_mode) for image in (image_a, image_b)]
        if any(end.shape[0] != 1 for end in ends):
            raise ValueError(f"image_a and image_b must be one image each, got {[end.shape[0] for end in ends]}")
        batch = torch.cat(ends)
        codes = self.encode(batch)
        noises = self.invert(batch, latent_code=codes, num_inference_steps=num_inference_steps)
        fractions = torch.linspace(0, 1, num_frames, device=codes.device)

        def between(tensor: torch.Tensor, how: Callable) -> torch.Tensor:
            first, second = (end[None].expand(num_frames, *end.shape) for end in tensor)
            return how(first, second, fractions)

        return self.decode(
            between(codes, INTERPOLATIONS[latent_interpolation]),
            noise=between(noises, slerp),
            num_inference_steps=num_inference_steps,
            output_type=output_type,
            return_dict=return_dict,
        )

    @torch.no_grad()
    def __call__(
        self,
        images: ImageInput,
        mode: str = "stochastic",
        num_inference_steps: int = 50,
        generator: Generators = None,
        output_type: str = "pil",
        resize_mode: str | None = None,
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> DiffusionAutoencoderPipelineOutput | tuple:
        """Reconstructs images (section 4.1).

        Args:
            images: As in [`~DiffusionAutoencoderPipeline.encode`].
            mode: "stochastic" decodes from random noise: what the latent code alone holds. "inversion" decodes from the
                noise that DDIM inversion finds for the image: nearly exact.
            num_inference_steps: Updates of decoding, and of inversion; 1 to 1000. The paper uses 50.
            generator: As in [`~DiffusionAutoencoderPipeline.decode`]; checked in both modes, used by "stochastic".
            output_type: As in [`~DiffusionAutoencoderPipeline.decode`].
            resize_mode: As in [`~DiffusionAutoencoderPipeline.encode`].
            return_dict: Whether to return a [`DiffusionAutoencoderPipelineOutput`] or a tuple.
            callback_on_step_end: As in [`~DiffusionAutoencoderPipeline.decode`]; called while decoding.
            callback_on_step_end_tensor_inputs: As in [`~DiffusionAutoencoderPipeline.decode`].

        Returns:
            Images, latent code, noise.

        Raises:
            ValueError: For arguments that are not allowed.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        self.image_processor.check_output_type(output_type)
        self._check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        batch = self.image_processor.preprocess(images, resize_mode)
        _check_generator(generator, batch.shape[0])
        self.scheduler.set_timesteps(num_inference_steps)  # a bad number fails before any work

        latent_code = self.encode(batch)
        if mode == "inversion":
            noise = self.invert(batch, latent_code=latent_code, num_inference_steps=num_inference_steps)
        else:
            noise = self._prepare_noise(None, batch.shape[0], generator, self._execution_device, batch.shape[1:])
        return self.decode(
            latent_code,
            noise=noise,
            num_inference_steps=num_inference_steps,
            output_type=output_type,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )

    @torch.no_grad()
    def sample(
        self,
        num_images: int = 1,
        generator: Generators = None,
        num_inference_steps: int = 50,
        latent_num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> DiffusionAutoencoderPipelineOutput | tuple:
        """New images: the latent code model draws codes, the decoder turns them into images (official DiffAE).

        Args:
            num_images: How many, at least 1.
            generator: One generator, or a list of one per image; it draws the codes' noise first, then the images'.
            num_inference_steps: Updates of decoding.
            latent_num_inference_steps: Updates of drawing the codes.
            output_type: As in [`~DiffusionAutoencoderPipeline.decode`].
            return_dict: Whether to return a [`DiffusionAutoencoderPipelineOutput`] or a tuple.

        Returns:
            Images, latent code, noise.

        Raises:
            ValueError: If the pipeline has no latent code model, or for arguments that are not allowed.
        """
        model = self.latent_code_model
        if model is None or self.latent_scheduler is None:
            raise ValueError(
                "sample needs a pipeline with latent_code_model and latent_scheduler, which this one does not have"
            )
        if _as_integer(num_images) is None or num_images < 1:
            raise ValueError(f"num_images must be an integer of at least 1, got {num_images!r}")
        _check_generator(generator, num_images)
        self.image_processor.check_output_type(output_type)
        self.scheduler.set_timesteps(num_inference_steps)  # a bad number fails before any work
        device = self._execution_device
        self.latent_scheduler.set_timesteps(latent_num_inference_steps, device=device)
        code = randn_tensor((num_images, model.config.latent_dim), generator=generator, device=device)
        for timestep in self.latent_scheduler.timesteps:
            prediction = model(code.to(model.dtype), timestep, return_dict=False)[0].to(code.dtype)
            code = self.latent_scheduler.step(prediction, timestep, code, return_dict=False)[0]
        return self.decode(
            model.denormalize(code.to(model.dtype)),
            num_inference_steps=num_inference_steps,
            generator=generator,
            output_type=output_type,
            return_dict=return_dict,
        )

    # ---- shared ----------------------------------------------------------------------------------------------------

    def _walk(
        self,
        scheduler: VPDDIMScheduler | VPDDIMInverseScheduler,
        sample: torch.Tensor,
        latent_code: torch.Tensor,
        callback_on_step_end: StepCallback | None,
        wanted: list[str],
    ) -> torch.Tensor:
        """Walks `sample` through the scheduler's timesteps. The trajectory is float32, the network in its own dtype."""
        dtype = self.decoder.dtype
        # What depends on the code only is computed once, not at each step.
        conditioning: LatentConditioning = self.decoder.prepare_latent(latent_code.to(sample.device, dtype))
        with self.progress_bar(total=len(scheduler.timesteps)) as progress:
            for index, timestep in enumerate(scheduler.timesteps):
                model_output = self.decoder(
                    sample.to(dtype), timestep, None, latent_conditioning=conditioning, return_dict=False
                )[0]
                sample = scheduler.step(model_output.to(sample.dtype), timestep, sample, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {"sample": sample, "latent_code": latent_code}
                    returned = callback_on_step_end(self, index, timestep, {name: tensors[name] for name in wanted})
                    sample = _returned_sample(returned, sample)
                progress.update()
        return sample

    def _check_callback(self, callback: object, tensor_inputs: object) -> list[str]:
        """Which tensors the callback receives."""
        if callback is not None and not callable(callback):
            raise ValueError(f"callback_on_step_end must be None or callable, got {type(callback).__name__}")
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            tensor_inputs = callback.tensor_inputs
        if tensor_inputs is None:
            return ["sample"]
        allowed = self._callback_tensor_inputs
        if not isinstance(tensor_inputs, (list, tuple)) or any(name not in allowed for name in tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs must be None or a list of names among {allowed}, "
                f"got {tensor_inputs!r}"
            )
        return list(tensor_inputs)

    def _check_latent_code(self, latent_code: torch.Tensor, batch_size: int | None = None) -> None:
        width = self.decoder.config.latent_dim
        if not isinstance(latent_code, torch.Tensor) or not latent_code.is_floating_point():
            raise ValueError(f"latent_code must be a floating-point tensor, got {_describe(latent_code)}")
        if latent_code.ndim != 2 or latent_code.shape[1] != width or latent_code.shape[0] == 0:
            raise ValueError(f"latent_code must have shape (batch, {width}), got {tuple(latent_code.shape)}")
        if batch_size is not None and latent_code.shape[0] != batch_size:
            raise ValueError(f"latent_code must have one row per image, {batch_size}, got {latent_code.shape[0]}")
        if not bool(torch.isfinite(latent_code).all()):
            raise ValueError("latent_code must be finite, got NaN or infinity")

    def _prepare_noise(
        self,
        noise: torch.Tensor | None,
        batch_size: int,
        generator: Generators,
        device: torch.device,
        image_shape: torch.Size | None = None,
    ) -> torch.Tensor:
        size, channels = self.decoder.config.sample_size, self.decoder.config.in_channels
        if noise is None:
            shape = (batch_size, *(image_shape or (channels, size, size)))
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if not isinstance(noise, torch.Tensor) or not noise.is_floating_point():
            raise ValueError(f"noise must be a floating-point tensor, got {_describe(noise)}")
        if noise.ndim != 4 or noise.shape[:2] != (batch_size, channels):
            raise ValueError(
                f"noise must have shape ({batch_size}, {channels}, height, width), got {tuple(noise.shape)}"
            )
        height, width = noise.shape[-2:]
        if self.decoder.config.latent_spatial_size is not None and (height, width) != (size, size):
            raise ValueError(f"noise height and width must be {size} for this model, got {height} x {width}")
        factor = self.decoder.downsampling_factor
        if height % factor or width % factor or not height or not width:
            raise ValueError(f"noise height and width must be divisible by {factor}, got {height} x {width}")
        if not bool(torch.isfinite(noise).all()):
            raise ValueError("noise must be finite, got NaN or infinity")
        return noise.to(device, torch.float32)


def _as_integer(value: object) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _describe(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__


def _check_same(name: str, value: object, other_name: str, other: object) -> None:
    if value != other:
        raise ValueError(f"{name} and {other_name} must be the same, got {value} and {other}")


def _check_generator(generator: object, batch_size: int) -> None:
    if generator is None:
        return
    for item in generator if isinstance(generator, list) else [generator]:
        if not isinstance(item, torch.Generator):
            raise ValueError(
                f"generator must be None, a torch.Generator or a list of {batch_size}, got {type(item).__name__}"
            )
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"generator must be one generator or a list of {batch_size}, got {len(generator)}")


def _returned_sample(returned: object, sample: torch.Tensor) -> torch.Tensor:
    """What a callback's answer makes of the sample."""
    if returned is not None and not isinstance(returned, dict):
        raise ValueError(f"callback_on_step_end must return None or a dictionary, got {type(returned).__name__}")
    replacement = (returned or {}).get("sample", sample)
    if not isinstance(replacement, torch.Tensor) or replacement.shape != sample.shape:
        got = tuple(replacement.shape) if isinstance(replacement, torch.Tensor) else type(replacement).__name__
        raise ValueError(
            f"callback_on_step_end must return a sample that is a tensor of shape {tuple(sample.shape)}, got {got}"
        )
    return replacement.to(sample)


def _check_configurations(folder: Path) -> None:
    """Checks that the JSON files below a pipeline folder hold objects, and model_index.json names components."""
    index = folder / "model_index.json"
    for path in (index, *sorted(folder.glob("*/*config.json"))):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
            raise ValueError(f"{path} must hold JSON, got {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
        if path == index:
            for name, value in content.items():
                if not name.startswith("_") and not (isinstance(value, list) and len(value) == 2):
                    raise ValueError(f"{path} must give library and class of {name} as a list of two, got {value!r}")


def _damaged_weight_files(folder: Path) -> list[Path]:
    """Weight files below a pipeline folder whose header or length does not hold."""
    damaged = []
    for path in sorted(folder.glob("*/*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError):
            damaged.append(path)
    return damaged
