"""Validation while training: PSNR and SSIM of the reconstructions, and a picture of them."""

from __future__ import annotations

import torch

from ..metrics.psnr import peak_signal_to_noise_ratio
from ..metrics.ssim import structural_similarity
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline

_CHUNK = 64


def validate(
    pipeline: DiffusionAutoencoderPipeline, images: torch.Tensor, phase: int, num_inference_steps: int, seed: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Reconstructs held-out images and compares.

    Args:
        pipeline: Around the averaged weights.
        images: (B, C, H, W), in [-1, 1].
        phase: In phase 1 the model knows t = 1 only: it is decoded in one step.
        num_inference_steps: DDIM steps in phase 2, of decoding and of inversion.
        seed: Seed of the noise of stochastic reconstruction.

    Returns:
        Figures (`psnr_<mode>` in dB and `ssim_<mode>`, means over the images; a mode is `one_step` in phase 1,
        `stochastic` and `inversion` in phase 2) and the reconstructions by mode, (B, C, H, W) in [0, 1], on the CPU.
    """
    pipeline.set_progress_bar_config(disable=True)
    modes = {"one_step": ("stochastic", 1)}
    if phase == 2:
        modes = {mode: (mode, num_inference_steps) for mode in ("stochastic", "inversion")}
    originals = images.cpu() / 2 + 0.5
    figures, reconstructions = {}, {}
    for name, (mode, steps) in modes.items():
        generator = torch.Generator(images.device).manual_seed(seed)
        chunks = [
            pipeline(
                chunk / 2 + 0.5, mode=mode, num_inference_steps=steps, generator=generator, output_type="pt"
            ).images.cpu()
            for chunk in images.split(_CHUNK)
        ]
        reconstructions[name] = torch.cat(chunks)
        figures[f"psnr_{name}"] = float(peak_signal_to_noise_ratio(reconstructions[name], originals).mean())
        figures[f"ssim_{name}"] = float(structural_similarity(reconstructions[name], originals).mean())
    return figures, reconstructions


def picture_grid(originals: torch.Tensor, reconstructions: dict[str, torch.Tensor], columns: int = 8) -> torch.Tensor:
    """One row of originals and one per kind of reconstruction.

    Args:
        originals: (B, C, H, W), in [0, 1].
        reconstructions: Each as `originals`.
        columns: At most this many images.

    Returns:
        (C, height, width), in [0, 1]; images are 2 pixels apart, on white.
    """
    rows = [originals.cpu(), *(images.cpu() for images in reconstructions.values())]
    columns = min(columns, len(originals))
    channels, height, width = originals.shape[1:]
    grid = torch.ones(channels, len(rows) * (height + 2) - 2, columns * (width + 2) - 2)
    for row, images in enumerate(rows):
        for column in range(columns):
            top, left = row * (height + 2), column * (width + 2)
            grid[:, top : top + height, left : left + width] = images[column]
    return grid
