"""`diffae-hub sample`."""

from __future__ import annotations

import argparse
import json

from ..files import write_png
from .shared import add_model_arguments, exact_tolerance, load_pipeline


def sample_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub sample`."""
    parser.add_argument("--num-images", type=int, default=16, help="how many (default: %(default)s)")
    add_model_arguments(parser, mode="stochastic")


def run_sample(arguments: argparse.Namespace) -> int:
    """Draws new images with the latent code model, and writes them and a grid of all."""
    import torch

    from ..images import image_grid, to_pil

    exact_tolerance(arguments)
    images = load_pipeline(arguments).sample(
        arguments.num_images,
        num_inference_steps=arguments.steps,
        generator=torch.Generator().manual_seed(arguments.seed),
        output_type="pt",
    )
    images = images.images.cpu()
    arguments.output.mkdir(parents=True, exist_ok=True)
    paths = [arguments.output / f"sample_{index:04d}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        write_png(path, to_pil(image))
    grid = arguments.output / "grid.png"
    write_png(grid, image_grid(images, max(1, round(len(images) ** 0.5))))
    print(json.dumps({"images": [str(p) for p in paths], "grid": str(grid)}) if arguments.json else grid)
    return 0
