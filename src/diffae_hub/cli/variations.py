"""Decode one code from several noises."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from .flags import option
from .shared import Sampling, load_for_sampling


@dataclass(kw_only=True)
class Options(Sampling):
    """Of what, and how many."""

    image: Path = option(MISSING, "image file", positional=True)
    num_images: int = option(8, "how many")


def run(options: Options, arguments: Namespace) -> tuple[Any, str]:
    """Writes a strip of an image's variations and a picture of their spread, 5 times."""
    from ..files import write_png
    from ..images import film_strip, image_grid, read_image

    image = read_image(options.image)
    pipeline, settings = load_for_sampling(options, arguments)
    output = pipeline.variations(image, options.num_images, **settings)
    options.output.mkdir(parents=True, exist_ok=True)
    strip, spread = options.output / "variations.png", options.output / "spread.png"
    write_png(strip, film_strip(output.images.cpu()))
    write_png(spread, image_grid([(5 * output.spread.cpu()).clamp(max=1)], 1))
    return {"strip": strip, "spread": spread}, f"{strip}\n{spread}"
