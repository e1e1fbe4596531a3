"""`diffae-hub interpolate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..files import new_file, write_png
from .shared import add_model_arguments, exact_tolerance, load_pipeline


def interpolate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub interpolate`."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="two or more images, in their order")
    parser.add_argument(
        "--frames", type=int, default=9, help="pictures, both ends included; with --grid a side (default: %(default)s)"
    )
    parser.add_argument("--grid", action="store_true", help="a square of pictures between four images, its corners")
    parser.add_argument("--gif", action="store_true", help="an animation too, frames.gif")
    add_model_arguments(parser, mode="inversion")


def run_interpolate(arguments: argparse.Namespace) -> int:
    """Writes the frames of an interpolation and one picture of all of them."""
    import torch

    from ..images import film_strip, image_grid, read_image, to_pil

    tolerance = exact_tolerance(arguments)
    images = [read_image(path) for path in arguments.images]
    pipeline = load_pipeline(arguments)
    frames = pipeline.interpolate(
        images,
        num_frames=arguments.frames,
        num_inference_steps=arguments.steps,
        layout="grid" if arguments.grid else "path",
        mode=arguments.mode,
        generator=torch.Generator().manual_seed(arguments.seed),
        tolerance=tolerance,
        output_type="pt",
    ).images.cpu()
    arguments.output.mkdir(parents=True, exist_ok=True)
    paths = [arguments.output / f"frame_{index:03d}.png" for index in range(len(frames))]
    for frame, path in zip(frames, paths, strict=True):
        write_png(path, to_pil(frame))
    record = {"model": arguments.model, "frames": [str(path) for path in paths]}
    name = "grid" if arguments.grid else "strip"
    record[name] = str(arguments.output / f"{name}.png")
    write_png(Path(record[name]), image_grid(frames, arguments.frames) if arguments.grid else film_strip(frames))
    if arguments.gif:
        record["gif"] = str(arguments.output / "frames.gif")
        first, *others = (image_grid([frame], 1) for frame in frames)  # enlarged
        with new_file(Path(record["gif"])) as temporary:
            first.save(temporary, "GIF", save_all=True, append_images=others, duration=100, loop=0)
    print(json.dumps(record, indent=2) if arguments.json else f"{len(paths)} frames, {record[name]}")
    return 0
