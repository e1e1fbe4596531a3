"""Change an attribute of images.

  diffae-hub edit photo.png --model MODEL --attribute "dark skin tone" --strengths -0.3 0 0.3 --output out

`diffae-hub fit-attributes` gives a model its attributes.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import MISSING, dataclass
from typing import Any

from .flags import option
from .shared import Inversion, load_for_sampling, write_pictures


@dataclass(kw_only=True)
class Options(Inversion):
    """What to change, and how far."""

    attribute: str = option(MISSING, "what to change")
    strengths: tuple[float, ...] = option((0.3,), "how far, in one direction or the other")
    keep: tuple[str, ...] = option((), "attributes that shall stay")


def run(options: Options, arguments: Namespace) -> tuple[Any, str]:
    """Writes the edited images, and each image's strip, the original first."""
    import torch

    from ..files import write_png
    from ..images import film_strip, pil_to_array, read_image

    images = [read_image(path) for path in options.images]
    pipeline, settings = load_for_sampling(options, arguments)
    strengths = options.strengths
    edited = pipeline.edit(images, {options.attribute: strengths}, keep=options.keep, **settings).images.cpu()
    config, records = pipeline.decoder.config, []
    for number, (path, picture) in enumerate(zip(options.images, images, strict=True)):
        row = edited[number * len(strengths) : (number + 1) * len(strengths)]
        name = f"{number:03d}_{path.stem}"
        files = write_pictures(options.output, (f"{name}_{strength:g}" for strength in strengths), row)
        original = torch.from_numpy(pil_to_array(picture, config.in_channels, (config.sample_size,) * 2))
        strip = options.output / f"{name}_strip.png"
        write_png(strip, film_strip([original.permute(2, 0, 1), *row]))
        records.append({"image": path, "edited": files, "strip": strip})
    document = {"attribute": options.attribute, "strengths": strengths, "images": records}
    return document, "\n".join(str(record["strip"]) for record in records)
