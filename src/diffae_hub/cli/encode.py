"""Write the latent codes of a data set, in shards.

  diffae-hub encode train.parquet --split train --model cifar10-32-small --columns label --output codes

Given again, the command continues where it stopped. `accelerate launch -m diffae_hub.cli encode ...` shares the work.
`diffae_hub.load_codes` reads them.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from .flags import option
from .shared import silence_libraries


@dataclass
class Options:
    """What to encode and how."""

    dataset: str = option(MISSING, "folder of images, parquet, `datasets` folder or Hub data set", positional=True)
    output: Path = option(MISSING, "folder of the codes, new or to be continued")
    model: str = option("cifar10-32-small", "bundled model, pipeline folder or Hub id")
    columns: tuple[str, ...] = option((), 'copied beside the codes; "label" for folders whose subfolders are classes')
    format: Literal["parquet", "safetensors"] = option("parquet", "of the shards")
    shard_size: int = option(10_000, "images per shard")
    batch_size: int = option(100, "images at a time")
    num_images: int | None = option(None, "the first so many, not all")
    streaming: bool = option(False, "read the data set while encoding, never all at once")
    split: str = option("test", "split of the data set")
    image_column: str = option("image", "its column of images")
    crop: Literal["center", "d2c"] = option("center", "d2c is the usual crop of CelebA")
    device: str | None = option(None, "cpu, cuda ... (default: the accelerator if there is one)")


def run(options: Options, arguments: Namespace) -> tuple[Any, str] | None:
    """How many codes there are, from the first process."""
    from ..codes.shards import SUMMARY, encode_dataset
    from ..devices import find_device, join_processes, load_pipeline
    from ..files import check_output

    silence_libraries()
    check_output(options.output, options.dataset)
    state = join_processes(options.device)
    names = ("columns", "shard_size", "batch_size", "num_images", "streaming", "split", "image_column", "crop")
    count = encode_dataset(
        load_pipeline(options.model, find_device(options.device, state)),
        options.dataset,
        options.output,
        file_format=options.format,
        state=state,
        show_progress=state.is_main_process and arguments.show_progress,
        **{name: getattr(options, name) for name in names},
    )
    record = {"output": options.output, "count": count}
    return (record, f"{count:,} codes, {options.output / SUMMARY}") if state.is_main_process else None
