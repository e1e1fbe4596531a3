"""Validation while training: PSNR and SSIM of held-out reconstructions, pictures of them, and the run's curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..data.errors import UnfitImage
from ..data.open_dataset import load_rows, open_dataset, where_from
from ..data.sources import local_path, split_name
from ..data.transform import ImageTransform
from ..files import new_file
from ..metrics.psnr import peak_signal_to_noise_ratio
from ..metrics.ssim import structural_similarity
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .presets import TrainingPreset

_CHUNK = 64


def load_validation_images(
    dataset: str, split: str, image_column: str, num_images: int, preset: TrainingPreset
) -> torch.Tensor:
    """The first images of the validation data, (B, C, H, W), in [-1, 1]."""
    if local_path(dataset).exists() or split != split_name(split):
        rows = load_rows(dataset, split, image_column)
    else:  # of a Hub data set's split no more than is used
        stream = islice(open_dataset(dataset, split, image_column, streaming=True), num_images)
        images = [row[image_column] or {} for row in stream]
        rows = [{"path": f"row {index}", "bytes": image.get("bytes")} for index, image in enumerate(images)]
    transform = ImageTransform(
        preset.encoder["sample_size"],
        preset.encoder["in_channels"],
        crop="center" if preset.crop == "random" else preset.crop,
    )
    try:
        images = [transform(rows[index]) for index in range(min(num_images, len(rows)))]
    except UnfitImage:
        raise
    except ValueError as error:
        raise ValueError(f"validation_dataset must hold readable images: {error}") from error
    print(f"validation on the first {len(images):,} of {where_from(rows, dataset, split)}", flush=True)
    return torch.stack(images)


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
        `stochastic` and `inversion` in phase 2) and the pictures by mode, the originals first, (B, C, H, W) in [0, 1],
        on the CPU.
    """
    pipeline.set_progress_bar_config(disable=True)
    modes = {"one_step": ("stochastic", 1)}
    if phase == 2:
        modes = {mode: (mode, num_inference_steps) for mode in ("stochastic", "inversion")}
    originals = images.cpu() / 2 + 0.5
    figures, pictures = {}, {"originals": originals}
    for name, (mode, steps) in modes.items():
        generator = torch.Generator(images.device).manual_seed(seed)
        chunks = [
            pipeline(chunk, mode=mode, num_inference_steps=steps, generator=generator, output_type="pt").images.cpu()
            for chunk in images.split(_CHUNK)
        ]
        pictures[name] = torch.cat(chunks)
        figures[f"psnr_{name}"] = float(peak_signal_to_noise_ratio(pictures[name], originals).mean())
        figures[f"ssim_{name}"] = float(structural_similarity(pictures[name], originals).mean())
    return figures, pictures


def picture_grid(rows: Sequence[torch.Tensor], columns: int = 8, gap: int = 2) -> torch.Tensor:
    """Rows of pictures, each (B, C, H, W) in [0, 1], of at most `columns`, on white -> (C, height, width)."""
    grid = torch.stack([row[:columns] for row in rows])  # (rows, columns, C, H, W)
    grid = torch.nn.functional.pad(grid, (0, gap, 0, gap), value=1.0)
    rows_, columns_, channels, height, width = grid.shape
    grid = grid.permute(2, 0, 3, 1, 4).reshape(channels, rows_ * height, columns_ * width)
    return grid[:, :-gap, :-gap]


def draw_curves(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """The loss and the validations' PSNR over the examples, from the records of metrics.jsonl, as a PNG file.

    Draws nothing where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    panels = (("loss", ("loss",)), ("PSNR, dB", ("psnr_one_step", "psnr_stochastic", "psnr_inversion")))
    for axes, (title, names) in zip(figure.subplots(1, 2), panels, strict=True):
        for name in names:
            points = [(record["examples"], record[name]) for record in records if name in record]
            if points:
                axes.plot(*zip(*points, strict=True), marker="." if name != "loss" else "", label=name)
        axes.set(title=title, xlabel="examples")
        if axes.lines:
            axes.legend()
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
