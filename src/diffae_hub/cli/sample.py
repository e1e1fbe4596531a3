"""`diffae-hub sample`."""

from __future__ import annotations

import argparse
import json

from ..files import write_png
from .flags import add_flags
from .shared import Sampling, load_for_sampling, write_pictures


def sample_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub sample`."""
    parser.add_argument("--num-images", type=int, default=16, help="how many (default: %(default)s)")
    add_flags(parser, Sampling)


def run_sample(arguments: argparse.Namespace) -> int:
    """Draws new images with the latent code model, and writes them and a grid of all."""
    from ..images import image_grid

    pipeline, settings = load_for_sampling(arguments)
    images = pipeline.sample(arguments.num_images, **settings).images.cpu()
    paths = write_pictures(arguments.output, (f"sample_{index:04d}" for index in range(len(images))), images)
    grid = arguments.output / "grid.png"
    write_png(grid, image_grid(images, max(1, round(len(images) ** 0.5))))
    print(json.dumps({"images": paths, "grid": str(grid)}) if arguments.json else grid)
    return 0
