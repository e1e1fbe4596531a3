"""`diffae-hub interpolate`."""

from __future__ import annotations

import argparse
import json

from ..files import new_file, write_png
from .shared import add_image_arguments, load_for_sampling, write_pictures


def interpolate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub interpolate`."""
    parser.add_argument(
        "--frames", type=int, default=9, help="pictures, both ends included; with --grid a side (default: %(default)s)"
    )
    parser.add_argument("--grid", action="store_true", help="a square of pictures between four images, its corners")
    parser.add_argument("--gif", action="store_true", help="an animation too, frames.gif")
    add_image_arguments(parser, "inversion", help="two or more images, in their order")


def run_interpolate(arguments: argparse.Namespace) -> int:
    """Writes the frames of an interpolation and one picture of all of them."""
    from ..images import film_strip, image_grid, read_image

    images = [read_image(path) for path in arguments.images]
    pipeline, settings = load_for_sampling(arguments)
    layout = "grid" if arguments.grid else "path"
    output = pipeline.interpolate(images, num_frames=arguments.frames, layout=layout, **settings)
    frames = output.images.cpu()
    paths = write_pictures(arguments.output, (f"frame_{index:03d}" for index in range(len(frames))), frames)
    name = "grid" if arguments.grid else "strip"
    overview, animation = arguments.output / f"{name}.png", arguments.output / "frames.gif"
    write_png(overview, image_grid(frames, arguments.frames) if arguments.grid else film_strip(frames))
    record = {"model": arguments.model, "frames": paths, name: str(overview)}
    if arguments.gif:
        first, *others = (image_grid([frame], 1) for frame in frames)  # enlarged
        with new_file(animation) as temporary:
            first.save(temporary, "GIF", save_all=True, append_images=others, duration=100, loop=0)
        record["gif"] = str(animation)
    print(json.dumps(record, indent=2) if arguments.json else f"{len(paths)} frames, {overview}")
    return 0
