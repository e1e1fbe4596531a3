"""Uses of codes: interpolation, editing and variations of images, and new images (section 5.2)."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..models.attribute_classifier import AttributeClassifier
from ..schedulers.compatibility import scheduler_for_one_walk, trained_scheduler
from ..schedulers.noise_schedules import check_choice
from .image_processor import ImageInput, check_values
from .interpolation import INTERPOLATIONS, LAYOUTS
from .stages import (
    BATCH_SIZE,
    CallbackFunction,
    DiffusionAutoencoderPipelineOutput,
    DiffusionAutoencoderStages,
    Generators,
    StepCallback,
)

# One call decodes at most this many images, because they are held in memory together.
MAX_FRAMES = 4096

Strength = float | Sequence[float]


class ManipulationMixin(DiffusionAutoencoderStages):
    """The methods of `DiffusionAutoencoderPipeline` that make images from changed codes.

    They decode `BATCH_SIZE` images at a time, and at most `MAX_FRAMES` in all; a callback sees each batch.
    """

    @torch.no_grad()
    def interpolate(
        self,
        images: ImageInput,
        num_frames: int = 9,
        num_inference_steps: int = 50,
        layout: str = "path",
        mode: str = "inversion",
        latent_interpolation: str = "slerp",
        noise_interpolation: str = "slerp",
        generator: torch.Generator | None = None,
        tolerance: float | None = None,
        inversion: str | None = None,
        output_type: str = "pil",
        resize_mode: str | None = None,
        return_dict: bool = True,
        callback_on_step_end: CallbackFunction | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
    ) -> DiffusionAutoencoderPipelineOutput | tuple:
        """Interpolates images (section 5.2): their codes and noises are interpolated, then decoded.

        Args:
            images: A list of two or more; four for a grid.
            num_frames: Number of frames of a path, at least that of the images. Frames are equally spaced: a path of K
                images meets each of them if num_frames - 1 is a multiple of K - 1. For a grid, frames per side.
            layout: "path" leads through the images in their order. "grid" fills the square between four images: upper
                left, upper right, lower left, lower right.
            mode: "inversion" interpolates the images' own noises; with "stochastic" all frames share one random noise.
            latent_interpolation: "slerp" (the paper) or "lerp" (official DiffAE).
            noise_interpolation: "slerp" or "lerp"; the latter loses variance between the ends.
        """
        check_choice("latent_interpolation", latent_interpolation, tuple(INTERPOLATIONS))
        check_choice("noise_interpolation", noise_interpolation, tuple(INTERPOLATIONS))
        check_choice("layout", layout, tuple(LAYOUTS))
        pixels = self.image_processor.preprocess(images, resize_mode)
        is_grid, count = layout == "grid", len(pixels)
        self.check_inputs(count, num_inference_steps, mode, output_type, tolerance=tolerance, inversion=inversion)
        if isinstance(generator, list):  # all frames share a noise
            raise ValueError("generator must be one torch.Generator, got a list")
        if count < 2 or (is_grid and count != 4):
            raise ValueError(f"images must be a list of {'four' if is_grid else 'two or more'} images, got {count}")
        least, most = (2, int(MAX_FRAMES**0.5)) if is_grid else (count, MAX_FRAMES)
        _check_count("num_frames", num_frames, least, most)

        codes = self._encode(pixels)
        noises = self._noise(pixels, codes, num_inference_steps, mode, generator, tolerance, inversion)
        if mode == "stochastic":
            noises = noises[:1].expand_as(noises)
        codes = LAYOUTS[layout](codes, num_frames, INTERPOLATIONS[latent_interpolation])
        noises = LAYOUTS[layout](noises, num_frames, INTERPOLATIONS[noise_interpolation])
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        sample = self._decode_batches(codes, noises, num_inference_steps, generator, callback)
        return self._output(sample, codes, noises, output_type, return_dict)

    @torch.no_grad()
    def edit(
        self,
        image: ImageInput,
        edits: Mapping[str, Strength] | torch.Tensor | np.ndarray,
        strength: Strength = 1.0,
        keep: Sequence[str] = (),
        mode: str = "inversion",
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
        """Edits images by moving their codes along attributes (section 5.2; official DiffAE's rule).

        z' = denormalise(normalise(z) + sum of a sqrt(d) w / |w|), where w is the classifier's direction for an
        attribute, a is its strength and d is the width of the code.

        Args:
            edits: Attribute names of the `attribute_classifier`, each with its strength or a list of strengths, which
                gives one image per strength. Official DiffAE uses 0.3; a negative strength removes the attribute. Or a
                direction (latent_dim,) that is added to the code, such as the difference of two mean codes.
            strength: Factor of a direction, or a list of factors.
            keep: Attributes that must not change: the move is made orthogonal to their directions.
            mode: "inversion" keeps the details that the code does not hold; "stochastic" draws them at random, the same
                for all strengths.

        Returns:
            The edited images: all strengths of the first image, then those of the next.
        """
        pixels = self.image_processor.preprocess(image, resize_mode)
        self.check_inputs(
            len(pixels), num_inference_steps, mode, output_type, generator, tolerance=tolerance, inversion=inversion
        )
        how = (edits, strength, keep, self.attribute_classifier)
        count = len(_edited_codes(pixels.new_zeros(len(pixels), self.decoder.config.latent_dim), *how))
        if count > MAX_FRAMES:
            raise ValueError(f"strength must give at most {MAX_FRAMES} images in all, got {count}")

        codes = self._encode(pixels)
        noises = self._noise(pixels, codes, num_inference_steps, mode, generator, tolerance, inversion)
        codes, noises = _edited_codes(codes, *how), noises.repeat_interleave(count // len(pixels), dim=0)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        sample = self._decode_batches(codes, noises, num_inference_steps, generator, callback)
        return self._output(sample, codes, noises, output_type, return_dict)

    @torch.no_grad()
    def variations(
        self,
        image: ImageInput,
        num_images: int = 4,
        num_inference_steps: int = 50,
        generator: Generators = None,
        output_type: str = "pil",
        resize_mode: str | None = None,
        return_dict: bool = True,
        callback_on_step_end: CallbackFunction | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
    ) -> DiffusionAutoencoderPipelineOutput | tuple:
        """Decodes the code of one image from several noises. `spread` shows what the code does not hold."""
        _check_count("num_images", num_images, 1, MAX_FRAMES)
        pixels = self.image_processor.preprocess(image, resize_mode)
        if len(pixels) != 1:
            raise ValueError(f"image must be a single image, got {len(pixels)}")
        self.check_inputs(num_images, num_inference_steps, output_type=output_type, generator=generator)

        codes = self._encode(pixels).repeat(num_images, 1)
        noises = self._random_noise((num_images, *pixels.shape[1:]), generator)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        sample = self._decode_batches(codes, noises, num_inference_steps, generator, callback)
        spread = self.image_processor.denormalize(sample).std(dim=0, correction=0)
        return self._output(sample, codes, noises, output_type, return_dict, spread=spread)

    @torch.no_grad()
    def sample(
        self,
        num_images: int = 1,
        generator: Generators = None,
        num_inference_steps: int = 50,
        latent_num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: CallbackFunction | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
    ) -> DiffusionAutoencoderPipelineOutput | tuple:
        """Makes new images: the latent code model draws codes, and the decoder decodes them (official DiffAE).

        Args:
            generator: Draws the noise of the codes first, then that of the images.
            latent_num_inference_steps: Updates for drawing the codes. Callbacks do not see them.
        """
        model = self.latent_code_model
        if model is None or self.latent_scheduler is None:
            raise ValueError("sample needs a pipeline with latent_code_model and latent_scheduler, got one without")
        _check_count("num_images", num_images, 1, MAX_FRAMES)
        self.check_inputs(num_images, num_inference_steps, output_type=output_type, generator=generator)
        trained_scheduler(self.latent_scheduler)
        scheduler = scheduler_for_one_walk(self.latent_scheduler)
        try:
            scheduler.set_timesteps(latent_num_inference_steps, device=self._execution_device)
        except ValueError as error:
            raise ValueError(f"latent_num_inference_steps: {error}") from error

        def network(codes: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return model(codes.to(model.dtype), timestep, return_dict=False)[0].to(codes.dtype)

        codes = self._random_noise((num_images, model.config.latent_dim), generator)
        codes = self._walk("draw codes", scheduler, lambda _: network, codes, generator=generator)
        codes = model.denormalize(codes.to(model.dtype))
        size, channels = self.decoder.config.sample_size, self.decoder.config.in_channels
        noises = self._random_noise((num_images, channels, size, size), generator)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        sample = self._decode_batches(codes, noises, num_inference_steps, generator, callback)
        return self._output(sample, codes, noises, output_type, return_dict)

    def _decode_batches(
        self,
        codes: torch.Tensor,
        noises: torch.Tensor,
        num_inference_steps: int,
        generator: Generators,
        callback: StepCallback = (None, ()),
    ) -> torch.Tensor:
        images = []
        for first in range(0, len(codes), BATCH_SIZE):
            batch, own = slice(first, first + BATCH_SIZE), generator
            if isinstance(generator, list):  # for solvers that draw noise at each step; one per input image
                own = [generator[row * len(generator) // len(codes)] for row in range(len(codes))[batch]]
            images.append(self._decode(codes[batch], noises[batch], num_inference_steps, own, callback=callback))
        return torch.cat(images)


def _check_count(name: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        raise ValueError(f"{name} must be between {least} and {most}, got {count}")


def _edited_codes(
    latent_code: torch.Tensor,
    edits: Mapping[str, Strength] | torch.Tensor | np.ndarray,
    strength: Strength,
    keep: Sequence[str],
    classifier: AttributeClassifier | None,
) -> torch.Tensor:
    """Edits codes z, (B, d), as in `DiffusionAutoencoderPipeline.edit`. Returns (B * F, d) for F strengths each."""
    edits = torch.from_numpy(edits) if isinstance(edits, np.ndarray) else edits
    if isinstance(keep, str):
        raise ValueError(f"keep must be a list of attributes, got {keep!r}")
    by_name = isinstance(edits, Mapping)
    if by_name and not (isinstance(strength, (int, float)) and strength == 1):
        raise ValueError(f"strength must be 1 with attributes, whose strengths are in edits, got {strength}")
    if not (by_name or isinstance(edits, torch.Tensor)):
        raise ValueError(f"edits must be a dictionary of strengths by attribute, or a direction, got {edits!r}")
    z = latent_code.float()
    if classifier is None and (by_name or keep):
        raise ValueError("edits and keep name attributes, but this pipeline has no attribute_classifier")
    std = classifier.latent_std.to(z) if by_name or keep else torch.ones_like(z[0])
    if by_name:
        if not edits or set(keep) & set(edits):
            raise ValueError(f"edits and keep must name attributes, but none in both, got {list(edits)} and {keep}")
        steps = math.sqrt(z.shape[1]) * torch.stack([classifier.direction(name) for name in edits]).to(z)
    else:
        check_values("edits", edits)
        if edits.shape != z.shape[1:]:
            raise ValueError(f"edits must be a direction of shape {tuple(z.shape[1:])}, got {tuple(edits.shape)}")
        steps = (edits.to(z) / std)[None]
    amounts = _table(list(edits.values()) if by_name else [strength]).to(z)  # (edits, F)
    if keep:
        # An orthonormal basis, (d, rank): directions may be nearly the same.
        basis, sizes, _ = torch.linalg.svd(torch.stack([classifier.direction(name) for name in keep]).to(z).T, False)
        kept = basis[:, sizes > 1e-3 * sizes[0]]
        lengths, rest = steps.norm(dim=1, keepdim=True), steps - steps @ kept @ kept.T
        if (rest.norm(dim=1, keepdim=True) < 1e-4 * lengths).any():
            raise ValueError(f"keep leaves nothing of an edit, got {list(keep)}")
        steps = lengths * torch.nn.functional.normalize(rest, dim=1)
    moves = amounts.T @ steps * std  # (F, d): denormalising the sum leaves std times the step
    return (z[:, None] + moves).flatten(0, 1).to(latent_code.dtype)


def _table(strengths: Sequence[Strength]) -> torch.Tensor:
    """Makes a table with a row per edit, as long as the longest; a single strength is repeated."""
    rows = [torch.as_tensor(strength, dtype=torch.float32).reshape(-1) for strength in strengths]
    longest = max(len(row) for row in rows)
    if any(len(row) not in (1, longest) or not torch.isfinite(row).all() for row in rows) or longest == 0:
        raise ValueError(f"strengths must be finite numbers, or lists of one length, got {strengths}")
    return torch.stack([row.expand(longest) for row in rows])
