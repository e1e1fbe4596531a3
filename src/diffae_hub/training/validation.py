"""Validation during training: PSNR and SSIM of held-out reconstructions, and the run's curves."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ..data.fingerprint import warn_if_same_data
from ..data.open_dataset import image_of, open_dataset
from ..data.sources import split_name
from ..data.transform import ImageTransform
from ..files import new_file
from ..metrics.psnr import peak_signal_to_noise_ratio
from ..metrics.ssim import structural_similarity
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .options import TrainingOptions
from .presets import TrainingPreset

_CHUNK = 64


def load_validation_images(options: TrainingOptions, preset: TrainingPreset) -> torch.Tensor:
    """Loads images spread over the validation data, (B, C, H, W), in [-1, 1]; of a whole Hub split, the first ones."""
    dataset, split, column = options.validation_dataset, options.validation_split, options.image_column
    # Of a whole split on the Hub, only the images that are used are downloaded.
    streaming = not Path(dataset).expanduser().exists() and split == split_name(split)
    rows = open_dataset(dataset, split, column, streaming)
    warn_if_same_data("validation_dataset", (dataset, split), (options.dataset, options.split))
    if streaming:
        chosen = enumerate(islice(rows, options.validation_images))
    else:  # spread out, since the first ones may all be of one class
        count = min(len(rows), options.validation_images)
        chosen = ((index, rows[index]) for index in (number * len(rows) // count for number in range(count)))
    transform = ImageTransform(preset.encoder["sample_size"], preset.encoder["in_channels"], crop=preset.crop)
    images = [transform(image_of(row, column, index)) for index, row in chosen]
    if not images:
        raise ValueError(f"validation_dataset must hold at least one image, got none in split {split!r} of {dataset!r}")
    print(f"validation on {len(images):,} images of {dataset}, split {split}", flush=True)
    return torch.stack(images)


def validate(
    pipeline: DiffusionAutoencoderPipeline, images: torch.Tensor, phase: int, num_inference_steps: int, seed: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Reconstructs held-out images, (B, C, H, W) in [-1, 1]: in one step in phase 1, where the model only knows t = 1.

    Returns figures (`psnr_<mode>` in dB and `ssim_<mode>`, means over the images) and the pictures by mode, the
    originals first, (B, C, H, W) in [0, 1], on the CPU.
    """
    pipeline.set_progress_bar_config(disable=True)
    modes = {"one_step": ("stochastic", 1)}
    if phase == 2:
        modes = {mode: (mode, num_inference_steps) for mode in ("stochastic", "inversion")}
    images = images / 2 + 0.5
    originals = images.cpu()
    figures, pictures = {}, {"originals": originals}
    for name, (mode, steps) in modes.items():
        options = {"mode": mode, "num_inference_steps": steps, "output_type": "pt"}
        options["generator"] = torch.Generator(images.device).manual_seed(seed)
        pictures[name] = torch.cat([pipeline(chunk, **options).images.cpu() for chunk in images.split(_CHUNK)])
        figures[f"psnr_{name}"] = float(peak_signal_to_noise_ratio(pictures[name], originals).mean())
        figures[f"ssim_{name}"] = float(structural_similarity(pictures[name], originals).mean())
    return figures, pictures


def draw_curves(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws loss and validation PSNR over the examples, with a line where phase 2 begins, as a PNG file."""
    panels = {
        "loss": ("loss",),
        "PSNR from the code alone, dB": ("psnr_one_step", "psnr_stochastic"),
        "PSNR of round trips, dB": ("psnr_inversion",),
    }
    panels = {title: names for title, names in panels.items() if any(name in r for name in names for r in records)}
    figure = Figure(figsize=(4 * max(1, len(panels)), 3.5), layout="constrained")
    phase_1 = [record["examples"] for record in records if record["phase"] == 1]
    every_panel = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for axes, (title, names) in zip(every_panel, panels.items(), strict=False):
        for name in names:
            points = [(record["examples"], record[name]) for record in records if name in record]
            if points:
                axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "", label=name)
        if phase_1 and phase_1[-1] < records[-1]["examples"]:
            axes.axvline(phase_1[-1], color="gray", linestyle=":", label="phase 2 begins")
        axes.set(title=title, xlabel="examples")
        axes.locator_params(axis="x", nbins=5)
        if axes.lines:
            axes.legend()
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
