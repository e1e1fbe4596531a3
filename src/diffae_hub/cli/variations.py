"""`diffae-hub variations`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..files import write_png
from .flags import add_flags
from .shared import Sampling, load_for_sampling


def variations_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub variations`."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="image file")
    parser.add_argument("--num-images", type=int, default=8, help="how many (default: %(default)s)")
    add_flags(parser, Sampling)


def run_variations(arguments: argparse.Namespace) -> int:
    """Decodes one code from several noises; writes a strip of them and a picture of their spread, 5 times."""
    from ..images import film_strip, image_grid, read_image

    image = read_image(arguments.image)
    pipeline, settings = load_for_sampling(arguments)
    output = pipeline.variations(image, arguments.num_images, **settings)
    arguments.output.mkdir(parents=True, exist_ok=True)
    strip, spread = arguments.output / "variations.png", arguments.output / "spread.png"
    write_png(strip, film_strip(output.images.cpu()))
    write_png(spread, image_grid([(5 * output.spread.cpu()).clamp(max=1)], 1))
    print(json.dumps({"strip": str(strip), "spread": str(spread)}) if arguments.json else f"{strip}\n{spread}")
    return 0
