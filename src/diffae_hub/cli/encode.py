"""`diffae-hub encode`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from .flags import add_flags, from_arguments, option
from .shared import silence_libraries


@dataclass(frozen=True)
class EncodeOptions:
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


def encode_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub encode`."""
    parser.description = """Write the latent codes of a data set, in shards.

  diffae-hub encode train.parquet --split train --model cifar10-32-small --columns label --output codes

Given again, the command continues where it stopped. `accelerate launch -m diffae_hub.cli encode ...` shares the work.
`diffae_hub.load_codes` reads them."""
    add_flags(parser, EncodeOptions)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run_encode(arguments: argparse.Namespace) -> int:
    """Encodes a data set."""
    from ..codes.shards import SUMMARY, encode_dataset
    from ..devices import find_device, join_processes, load_pipeline
    from ..files import check_output

    silence_libraries()
    given = dict(vars(from_arguments(EncodeOptions, arguments)))
    model, device, source, output = (given.pop(name) for name in ("model", "device", "dataset", "output"))
    check_output(output, source)
    state = join_processes(device)
    count = encode_dataset(
        load_pipeline(model, find_device(device, state)),
        source,
        output,
        file_format=given.pop("format"),
        state=state,
        show_progress=state.is_main_process and not arguments.json and sys.stderr.isatty(),
        **given,
    )
    if state.is_main_process:
        record = {"output": str(output), "count": count}
        print(json.dumps(record) if arguments.json else f"{count:,} codes, {output / SUMMARY}")
    return 0
