"""DiffusionAutoencoderPipeline: image -> latent code z and noise x_T -> image, and uses of codes."""

# Annotations stay strings: diffusers would compare real ones with the classes of the components that it is given.
from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ..files import read_json
from ..images import Tiles
from ..models.attribute_classifier import AttributeClassifier
from ..models.conditioned_unet_2d import ConditionedUNet2DModel
from ..models.latent_code_model import LatentCodeModel
from ..models.semantic_encoder import SemanticEncoderModel
from ..network import INDEX
from ..pretrained import list_models, model_folder, of_training
from ..publishing import PublishingMixin
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler
from .image_processor import DiffusionAutoencoderImageProcessor, ImageInput
from .manipulation import ManipulationMixin
from .stages import CallbackFunction, DiffusionAutoencoderPipelineOutput, Generators

# diffusers warns at every `.to(dtype)`, even if its list of modules to be kept in float32 is empty.
logging.getLogger("diffusers.models.modeling_utils").addFilter(
    lambda record: "kept in float32: []" not in record.getMessage()
)


class DiffusionAutoencoderPipeline(PublishingMixin, ManipulationMixin):
    """A diffusion autoencoder: image -> latent code z and noise x_T -> image (section 3, "Diffusion autoencoder").

    These arguments mean the same in all methods:

    - `image`: A PIL image, an array (H, W, C) or a tensor (C, H, W), the last two also with a batch axis, or a list of
      them. Values are uint8, or floating point in [0, 1]. PIL images are cropped and resized to the model's size.
    - `resize_mode`: "crop", "stretch" or "none". None means "crop" for PIL images and "none" for arrays and tensors.
    - `num_inference_steps`: Number K of updates, in each direction. Decode an inverted noise with the same K.
    - `generator`: Draws random noise. With a list of one per image, an image does not depend on its batch.
    - `output_type`: "pil", "np", "pt" (in [0, 1]) or "latent" (as the model gives it, about in [-1, 1]).
    - `callback_on_step_end`: Called as `callback(pipe, step, timestep, tensors)` after each update of decoding (in
      `invert`: of inversion). It may return "sample" and "latent_code" in a dictionary to replace x_t and z. It may set
      `pipe._interrupt = True` to skip the remaining updates of all running calls.
      `callback_on_step_end_tensor_inputs` names the tensors that it gets: "sample" (x_t), "latent_code" (z).

    Each call copies the scheduler, so threads may share a pipeline. `decode` can carry a gradient to z and x_T.
    Networks are faster after `network.to(memory_format=torch.channels_last)`.

    Args:
        encoder: Image -> z.
        decoder: (x_t, t, z) -> noise, x_0 or velocity.
        scheduler: Walks from x_T to the image. A scheduler of diffusers must know the model's noise schedule.
        latent_code_model: Optional; samples new latent codes.
        latent_scheduler: Optional; the scheduler of `latent_code_model`.
        attribute_classifier: Optional; linear classifier of attributes on normalised codes, for editing.
    """

    __module__ = "diffae_hub"
    model_cpu_offload_seq = "encoder->latent_code_model->decoder"
    _exclude_from_cpu_offload = ["attribute_classifier"]  # a single row per attribute, read outside of a forward pass
    _optional_components = ["latent_code_model", "latent_scheduler", "attribute_classifier"]

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
        processor = _image_processor(encoder, decoder)
        channels = {encoder.config.in_channels, decoder.config.in_channels, decoder.config.out_channels}
        if len(channels) > 1:
            raise ValueError(f"encoder and decoder must have the same in_channels and out_channels, got {channels}")
        if processor.fixed_size and encoder.config.sample_size != decoder.config.sample_size:
            sizes = (encoder.config.sample_size, decoder.config.sample_size)
            raise ValueError(f"encoder and decoder must have the same sample_size, got {sizes}")
        self.register_modules(
            encoder=encoder,
            decoder=decoder,
            scheduler=scheduler,
            latent_code_model=latent_code_model,
            latent_scheduler=latent_scheduler,
            attribute_classifier=attribute_classifier,
        )
        self.image_processor = processor
        self._tile_overlap: int | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        config = getattr(value, "config", None)
        if name in ("decoder", "latent_code_model", "attribute_classifier") and config is not None:
            expected = self.encoder.config.latent_dim
            if config.latent_dim != expected:
                raise ValueError(f"{name} must have the encoder's latent_dim, {expected}, got {config.latent_dim}")
        # diffusers does not register a component that replaces None.
        if name in self._optional_components and config is not None and self.config[name][0] is None:
            self.register_modules(**{name: value})
        else:
            super().__setattr__(name, value)
            if name in ("encoder", "decoder") and config is not None and hasattr(self, "image_processor"):
                self.image_processor = _image_processor(self.encoder, self.decoder)

    # ---- loading, saving, settings ---------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Loads a pipeline, float32 unless `dtype` says otherwise. Only safetensors are read.

        Args:
            pretrained_model_name_or_path: A local folder, the name of a bundled model, or a Hub id ("owner/name" or
                "owner/name@revision").
            kwargs: As in diffusers: `dtype` (one, or a dictionary by component), `variant`, `revision`, `cache_dir`,
                `local_files_only`, `token`, `force_download` ...

        Raises:
            ValueError: If there is no such pipeline, or its files lack a tensor or have one too many.
            OSError: If the Hub cannot be reached, or a file is missing or damaged.
        """
        folder = _pipeline_folder(pretrained_model_name_or_path, kwargs)
        try:
            return super().from_pretrained(str(folder), **kwargs | {"use_safetensors": True})
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # from the content of a configuration
            raise ValueError(f"{folder} cannot be loaded: {error}") from error

    def enable_tiling(self, overlap: int | None = None) -> None:
        """Lets `pipe(image)` take images larger than the model's size, in overlapping tiles of that size.

        The other methods still take images of the model's size. At each update the network's outputs for the tiles are
        blended, so that no seams show. PIL images then keep their size (with `resize_mode=None`). Each tile has its own
        code.

        Args:
            overlap: Pixels that neighbouring tiles share at least; None means an eighth of the model's size.
        """
        size = self.image_processor.sample_size
        overlap = size // 8 if overlap is None else overlap
        if isinstance(overlap, bool) or not 0 <= overlap <= size // 2:  # a bool is what diffusers' VAE takes
            raise ValueError(f"overlap must be between 0 and {size // 2}, half of the model's size, got {overlap}")
        self._tile_overlap = overlap

    def disable_tiling(self) -> None:
        """Undoes [`~DiffusionAutoencoderPipeline.enable_tiling`]."""
        self._tile_overlap = None

    # ---- the stages ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, image: ImageInput, resize_mode: str | None = None) -> torch.Tensor:
        """`z = E(x_0)`, (B, latent_dim), in the encoder's dtype."""
        latent_code = self._encode(self.image_processor.preprocess(image, resize_mode))
        self.maybe_free_model_hooks()
        return latent_code

    @torch.no_grad()
    def invert(
        self,
        image: ImageInput,
        latent_code: torch.Tensor | np.ndarray | None = None,
        num_inference_steps: int = 50,
        tolerance: float | None = None,
        inversion: str | None = None,
        resize_mode: str | None = None,
        callback_on_step_end: CallbackFunction | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
    ) -> torch.Tensor:
        """DDIM inversion: the noise x_T (stochastic subcode), (B, C, H, W), from which `decode` gives the images.

        Args:
            latent_code: The images' codes; None encodes them.
            tolerance: Corrects each update until a sampling step back misses by at most this much: the largest error of
                a pixel, relative to the largest value of x_t if that is above 1. 1e-6 is about what float32 can do. It
                is an error if the tolerance is not reached.
            inversion: "predictor_corrector" (K + 1 evaluations, more with a tolerance, which needs this rule), "plain"
                (the paper's rule, less exact), or None for what the scheduler's configuration says.
        """
        pixels = self.image_processor.preprocess(image, resize_mode)
        how = {"mode": "inversion", "tolerance": tolerance, "inversion": inversion}
        latent_code = None if latent_code is None else torch.as_tensor(latent_code)
        self.check_inputs(len(pixels), num_inference_steps, latent_code=latent_code, **how)
        if latent_code is None:
            latent_code = self._encode(pixels)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        noise = self._noise(pixels, latent_code, num_inference_steps, callback=callback, **how)
        self.maybe_free_model_hooks()
        return noise

    def decode(
        self,
        latent_code: torch.Tensor | np.ndarray,
        noise: torch.Tensor | np.ndarray | None = None,
        num_inference_steps: int = 50,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: CallbackFunction | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
    ) -> DiffusionAutoencoderPipelineOutput | tuple:
        """Sampling from x_T to images, conditioned on latent codes.

        If `latent_code` or `noise` requires a gradient (and gradients are enabled), the images carry one with
        `output_type` "pt" or "latent". This keeps all updates in memory, or less after
        `pipe.decoder.enable_gradient_checkpointing()`. Use it to optimise z.

        Args:
            latent_code: z, (B, latent_dim).
            noise: x_T, (B, C, H, W); None draws it from `generator`, at the model's size.
        """
        latent_code = torch.as_tensor(latent_code)  # `load_codes` gives arrays
        noise = None if noise is None else torch.as_tensor(noise)
        given = {"generator": generator, "latent_code": latent_code, "noise": noise}
        self.check_inputs(len(latent_code), num_inference_steps, output_type=output_type, **given)
        wants_gradient = latent_code.requires_grad or (noise is not None and noise.requires_grad)
        with torch.set_grad_enabled(torch.is_grad_enabled() and wants_gradient):
            if noise is None:
                size, channels = self.decoder.config.sample_size, self.decoder.config.in_channels
                noise = self._random_noise((len(latent_code), channels, size, size), generator)
            callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
            sample = self._decode(latent_code, noise, num_inference_steps, generator, callback=callback)
            return self._output(sample, latent_code, noise, output_type, return_dict)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        mode: str = "stochastic",
        num_inference_steps: int = 50,
        generator: Generators = None,
        tolerance: float | None = None,
        inversion: str | None = None,
        output_type: str = "pil",
        resize_mode: str | None = None,
        return_dict: bool = True,
        callback_on_step_end: CallbackFunction | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
    ) -> DiffusionAutoencoderPipelineOutput | tuple:
        """Reconstructs images (section 4.1).

        Args:
            mode: "stochastic" decodes from random noise, which shows what the latent code alone holds. "inversion"
                decodes from the noise that DDIM inversion finds for the image, which is nearly exact.
            num_inference_steps: The paper uses 50.
            tolerance: As in [`~DiffusionAutoencoderPipeline.invert`]; so is `inversion`.

        Examples:
            ```py
            >>> import torch
            >>> from PIL import Image
            >>> from diffae_hub import DiffusionAutoencoderPipeline

            >>> pipe = DiffusionAutoencoderPipeline.from_pretrained("cifar10-32-small")
            >>> image = Image.radial_gradient("L").resize((32, 32))

            >>> # what the latent code alone holds: everything else is drawn at random
            >>> generator = torch.Generator().manual_seed(0)
            >>> output = pipe(image, num_inference_steps=10, generator=generator)
            >>> output.images[0].size
            (32, 32)
            >>> output.latent_code.shape
            torch.Size([1, 512])

            >>> # code and inverted noise together: nearly the image itself
            >>> image = pipe(image, mode="inversion", num_inference_steps=10).images[0]
            ```

        Returns:
            [`DiffusionAutoencoderPipelineOutput`], or the tuple (images, latent_code, noise).
        """
        # 1. Images to [-1, 1], larger ones in tiles if that is enabled.
        pixels = self.image_processor.preprocess(image, resize_mode, keep_larger=self._tile_overlap is not None)
        how = {"tolerance": tolerance, "inversion": inversion}
        self.check_inputs(len(pixels), num_inference_steps, mode, output_type, generator, **how)
        (height, width), size = pixels.shape[-2:], self.image_processor.sample_size
        is_larger = min(height, width) >= size and (height, width) != (size, size)
        tiles = Tiles(height, width, size, self._tile_overlap) if self._tile_overlap is not None and is_larger else None

        # 2. Image -> z -> x_T -> image
        latent_code = self._encode(pixels, tiles)
        noise = self._noise(pixels, latent_code, num_inference_steps, mode, generator, **how, tiles=tiles)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        sample = self._decode(latent_code, noise, num_inference_steps, generator, tiles, callback)
        return self._output(sample, latent_code, noise, output_type, return_dict)


def _image_processor(
    encoder: SemanticEncoderModel, decoder: ConditionedUNet2DModel
) -> DiffusionAutoencoderImageProcessor:
    return DiffusionAutoencoderImageProcessor(
        sample_size=decoder.config.sample_size,
        channels=encoder.config.in_channels,
        downsampling_factor=max(encoder.downsampling_factor, decoder.downsampling_factor),
        fixed_size=encoder.config.latent_head == "flatten" or decoder.config.latent_spatial_size is not None,
    )


def _pipeline_folder(source: str | Path, options: dict[str, Any]) -> Path:
    """Returns the folder of a pipeline, after a download if needed. Removes the Hub's options from `options`.

    Raises ValueError if there is no such pipeline, or its JSON files are not those of one.
    """
    name = str(source)
    folder = of_training(Path(model_folder(name, options) if name else ""))
    if not name or not (folder / INDEX).is_file():
        raise ValueError(
            f"pretrained_model_name_or_path must be a pipeline folder with a {INDEX}, a Hub id 'owner/name' or one of "
            f"the bundled models {list_models()}, got {name!r}"
        )
    for path in folder.glob("*/*.safetensors"):
        if not path.is_file():  # a pipe or a device: reading it may never end
            raise ValueError(f"{folder} must hold ordinary files, got {path}")
    index = read_json(folder / INDEX, ("_class_name", "encoder", "decoder", "scheduler"))
    for component, value in index.items():
        if component.startswith("_") or value == [None, None]:
            continue
        # Only classes of ours and of diffusers' are loaded.
        if not (isinstance(value, list) and len(value) == 2 and value[0] in ("diffae_hub", "diffusers")):
            raise ValueError(f"{INDEX} in {folder} must give {component} a class of diffae_hub's or diffusers'")
        for path in (folder / component).glob("*.json"):
            read_json(path)
    return folder
