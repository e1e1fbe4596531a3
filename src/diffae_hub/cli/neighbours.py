"""Find the images of an encoded data set that are nearest to one."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from .flags import option
from .shared import silence_libraries


@dataclass
class Options:
    """What to look for, and where."""

    image: Path = option(MISSING, "image file", positional=True)
    codes: Path = option(MISSING, "folder of `diffae-hub encode`")
    model: str = option("cifar10-32-small", "the model that made the codes")
    num_neighbours: int = option(8, "how many")
    metric: Literal["cosine", "euclidean"] = option("cosine", "distance between normalised codes")
    sheet: Path | None = option(None, "a PNG file for a contact sheet, the image first")


def run(options: Options, arguments: Namespace) -> tuple[Any, str]:
    """The images whose codes are nearest to an image's, with their distances."""
    import torch

    from ..codes.fingerprints import check_encoder
    from ..codes.neighbours import nearest_codes
    from ..codes.shards import codes_summary, load_codes
    from ..data.open_dataset import load_rows
    from ..data.transform import ImageTransform
    from ..devices import load_pipeline
    from ..files import write_png
    from ..images import film_strip, read_image

    silence_libraries()
    image = read_image(options.image)
    summary, codes = codes_summary(options.codes), load_codes(options.codes, ["source"])
    pipeline = load_pipeline(options.model, torch.device("cpu"))
    check_encoder(pipeline, summary)
    query = pipeline.encode(image).float().numpy()
    distances, rows = nearest_codes(codes["latent_code"], query, options.num_neighbours, options.metric)
    found = [
        {"index": int(codes["index"][row]), "source": str(codes["source"][row]), "distance": float(distance)}
        for row, distance in zip(rows[0], distances[0], strict=True)
    ]
    if options.sheet is not None:
        config = pipeline.encoder.config
        transform = ImageTransform(config.sample_size, config.in_channels, crop=summary["crop"])
        data = load_rows(summary["dataset"], summary["split"], summary["image_column"])
        first = pipeline.image_processor.preprocess(image)[0]
        pictures = [first, *(transform(data[neighbour["index"]]) for neighbour in found)]
        write_png(options.sheet, film_strip([picture / 2 + 0.5 for picture in pictures]))
    lines = [f"{neighbour['distance']:.4f}  {neighbour['source']}" for neighbour in found]
    return {"image": options.image, "neighbours": found}, "\n".join(lines)
