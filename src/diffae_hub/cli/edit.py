"""`diffae-hub edit`."""

from __future__ import annotations

import argparse
import json

from ..files import write_png
from .shared import add_image_arguments, load_for_sampling, write_pictures


def edit_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub edit`."""
    parser.description = """Change an attribute of images.

  diffae-hub edit photo.png --model MODEL --attribute "dark skin tone" --strengths -0.3 0 0.3 --output out

`diffae-hub fit-attributes` gives a model its attributes."""
    parser.add_argument("--attribute", required=True, metavar="NAME", help="what to change")
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.3], help="how far (default: 0.3)")
    parser.add_argument("--keep", nargs="*", default=[], metavar="NAME", help="attributes that shall stay")
    add_image_arguments(parser, "inversion")


def run_edit(arguments: argparse.Namespace) -> int:
    """Writes the edited images, and each image's strip, the original first."""
    import torch

    from ..images import film_strip, pil_to_array, read_image

    images = [read_image(path) for path in arguments.images]
    pipeline, settings = load_for_sampling(arguments)
    attribute, strengths = arguments.attribute, arguments.strengths
    edited = pipeline.edit(images, {attribute: strengths}, keep=arguments.keep, **settings).images.cpu()
    config, records = pipeline.decoder.config, []
    for number, (path, picture) in enumerate(zip(arguments.images, images, strict=True)):
        row = edited[number * len(strengths) : (number + 1) * len(strengths)]
        name = f"{number:03d}_{path.stem}"
        files = write_pictures(arguments.output, (f"{name}_{strength:g}" for strength in strengths), row)
        original = torch.from_numpy(pil_to_array(picture, config.in_channels, (config.sample_size,) * 2))
        strip = arguments.output / f"{name}_strip.png"
        write_png(strip, film_strip([original.permute(2, 0, 1), *row]))
        records.append({"image": str(path), "edited": files, "strip": str(strip)})
        if not arguments.json:
            print(strip)
    if arguments.json:
        print(json.dumps({"attribute": attribute, "strengths": strengths, "images": records}))
    return 0
