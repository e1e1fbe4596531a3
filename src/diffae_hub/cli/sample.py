"""Make new images."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from .flags import option
from .shared import Sampling, load_for_sampling, write_pictures


@dataclass(kw_only=True)
class Options(Sampling):
    """How many."""

    num_images: int = option(16, "how many")


def run(options: Options, arguments: Namespace) -> tuple[Any, str]:
    """Draws new images with the latent code model, and writes them and a grid of all."""
    from ..files import write_png
    from ..images import image_grid

    pipeline, settings = load_for_sampling(options, arguments)
    images = pipeline.sample(options.num_images, **settings).images.cpu()
    paths = write_pictures(options.output, (f"sample_{index:04d}" for index in range(len(images))), images)
    grid = options.output / "grid.png"
    write_png(grid, image_grid(images, max(1, round(len(images) ** 0.5))))
    return {"images": paths, "grid": grid}, str(grid)
