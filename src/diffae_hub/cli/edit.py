"""`diffae-hub edit`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..files import write_png
from .shared import add_model_arguments, exact_tolerance, load_pipeline


def edit_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub edit`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """Change an attribute of images.

  diffae-hub edit photo.png --model MODEL --attribute "dark skin tone" --strengths -0.3 0 0.3 --output out

`diffae-hub fit-attributes` gives a model its attributes."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument("--attribute", required=True, metavar="NAME", help="what to change")
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.3], help="how far (default: 0.3)")
    parser.add_argument("--keep", nargs="*", default=[], metavar="NAME", help="attributes that shall stay")
    add_model_arguments(parser, mode="inversion")


def run_edit(arguments: argparse.Namespace) -> int:
    """Writes the edited images, and each image's strip, the original first."""
    import torch

    from ..images import film_strip, pil_to_array, read_image, to_pil

    tolerance = exact_tolerance(arguments)
    images = [read_image(path) for path in arguments.images]
    pipeline = load_pipeline(arguments)
    edited = pipeline.edit(
        images,
        {arguments.attribute: arguments.strengths},
        keep=arguments.keep,
        mode=arguments.mode,
        num_inference_steps=arguments.steps,
        generator=torch.Generator().manual_seed(arguments.seed),
        tolerance=tolerance,
        output_type="pt",
    ).images.cpu()
    arguments.output.mkdir(parents=True, exist_ok=True)
    size, records = pipeline.decoder.config.sample_size, []
    for number, (path, picture, row) in enumerate(
        zip(arguments.images, images, edited.split(len(arguments.strengths)), strict=True)
    ):
        original = torch.from_numpy(pil_to_array(picture, pipeline.decoder.config.in_channels, (size, size)))
        files = [arguments.output / f"{number:03d}_{path.stem}_{strength:g}.png" for strength in arguments.strengths]
        for file, image in zip(files, row, strict=True):
            write_png(file, to_pil(image))
        strip = arguments.output / f"{number:03d}_{path.stem}_strip.png"
        write_png(strip, film_strip([original.permute(2, 0, 1), *row]))
        records.append({"image": str(path), "edited": [str(file) for file in files], "strip": str(strip)})
        if not arguments.json:
            print(strip)
    if arguments.json:
        print(json.dumps({"attribute": arguments.attribute, "strengths": arguments.strengths, "images": records}))
    return 0
