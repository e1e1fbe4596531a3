"""`diffae-hub interpolate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..files import write_png
from .shared import add_model_arguments, load_pipeline


def interpolate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub interpolate`."""
    parser.add_argument("images", nargs=2, type=Path, metavar="IMAGE", help="the two ends")
    parser.add_argument("--frames", type=int, default=9, help="pictures, both ends included (default: %(default)s)")
    add_model_arguments(parser)


def run_interpolate(arguments: argparse.Namespace) -> int:
    """Writes the frames of an interpolation and a strip of all of them."""
    from ..images import film_strip, read_image, to_pil

    first, second = (read_image(path) for path in arguments.images)
    pipeline = load_pipeline(arguments)
    frames = pipeline.interpolate(
        first, second, num_frames=arguments.frames, num_inference_steps=arguments.steps, output_type="pt"
    ).images.cpu()
    arguments.output.mkdir(parents=True, exist_ok=True)
    paths = [arguments.output / f"frame_{index:03d}.png" for index in range(len(frames))]
    for frame, path in zip(frames, paths, strict=True):
        write_png(path, to_pil(frame))
    strip = arguments.output / "strip.png"
    write_png(strip, film_strip(frames))
    if arguments.json:
        print(
            json.dumps(
                {"model": arguments.model, "frames": [str(path) for path in paths], "strip": str(strip)}, indent=2
            )
        )
    else:
        print(f"{len(paths)} frames, {strip}")
    return 0
