"""Walk from one image to another."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from .flags import option
from .shared import Inversion, load_for_sampling, write_pictures


@dataclass(kw_only=True)
class Options(Inversion):
    """Between two or more images, in their order."""

    frames: int = option(9, "pictures, both ends included; with --grid a side")
    grid: bool = option(False, "a square of pictures between four images, its corners")
    gif: bool = option(False, "an animation too, frames.gif")


def run(options: Options, arguments: Namespace) -> tuple[Any, str]:
    """Writes the frames of an interpolation and one picture of all of them."""
    from ..files import new_file, write_png
    from ..images import film_strip, image_grid, read_image

    images = [read_image(path) for path in options.images]
    pipeline, settings = load_for_sampling(options, arguments)
    layout, name = ("grid", "grid") if options.grid else ("path", "strip")
    frames = pipeline.interpolate(images, num_frames=options.frames, layout=layout, **settings).images.cpu()
    paths = write_pictures(options.output, (f"frame_{index:03d}" for index in range(len(frames))), frames)
    overview, animation = options.output / f"{name}.png", options.output / "frames.gif"
    write_png(overview, image_grid(frames, options.frames) if options.grid else film_strip(frames))
    document = {"model": options.model, "frames": paths, name: overview}
    if options.gif:
        first, *others = (image_grid([frame], 1) for frame in frames)  # enlarged
        with new_file(animation) as temporary:
            first.save(temporary, "GIF", save_all=True, append_images=others, duration=100, loop=0)
        document["gif"] = animation
    return document, f"{len(paths)} frames, {overview}"
