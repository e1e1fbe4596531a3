"""`diffae-hub encode`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .shared import add_data_arguments, silence_libraries


def encode_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub encode`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """Write the latent codes of a data set, in shards.

  diffae-hub encode train.parquet --split train --model cifar10-32-small --columns label --output codes

Given again, the command continues where it stopped. `accelerate launch -m diffae_hub.cli encode ...` shares the work.
`diffae_hub.codes.shards.load_codes` reads them."""
    parser.add_argument(
        "dataset", metavar="DATASET", help="folder of images, parquet, `datasets` folder or Hub data set"
    )
    parser.add_argument("--model", default="cifar10-32-small", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--columns", nargs="*", default=[], metavar="COLUMN", help="copied beside the codes")
    parser.add_argument("--format", choices=("parquet", "safetensors"), default="parquet")
    parser.add_argument("--shard-size", type=int, default=10_000, help="images per shard (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--num-images", type=int, help="the first so many (default: all)")
    parser.add_argument("--streaming", action="store_true", help="read the data set while encoding, never all at once")
    add_data_arguments(parser)


def run_encode(arguments: argparse.Namespace) -> int:
    """Encodes a data set."""
    from ..codes.shards import SUMMARY, dataset_rows, encode_dataset, finish_codes
    from ..data.transform import ImageTransform
    from ..devices import find_device, join_processes, load_for_evaluation, weights_fingerprint
    from ..files import check_new_or_continued, check_output

    silence_libraries()
    check_output(arguments.output, arguments.dataset)
    state = join_processes(arguments.device)
    with state.main_process_first():
        if state.is_main_process:
            check_new_or_continued(arguments.output, "codes")
    pipeline = load_for_evaluation(arguments.model, find_device(arguments.device, state), "float32")
    config = pipeline.encoder.config
    quiet = arguments.json or not sys.stderr.isatty() or not state.is_main_process
    count = encode_dataset(
        pipeline,
        dataset_rows(
            arguments.dataset,
            arguments.split,
            arguments.image_column,
            arguments.columns,
            arguments.streaming,
            arguments.num_images,
        ),
        arguments.output,
        settings={
            "model": arguments.model,
            "weights": weights_fingerprint(pipeline),
            "dataset": arguments.dataset,
            "split": arguments.split,
            "image_column": arguments.image_column,
            "crop": arguments.crop,
        },
        transform=ImageTransform(config.sample_size, config.in_channels, crop=arguments.crop),
        columns=arguments.columns,
        file_format=arguments.format,
        shard_size=arguments.shard_size,
        batch_size=arguments.batch_size,
        process_index=state.process_index,
        num_processes=state.num_processes,
        show_progress=not quiet,
    )
    state.wait_for_everyone()
    if not state.is_main_process:
        return 0
    summary = finish_codes(arguments.output, count)
    if arguments.json:
        print(json.dumps({"output": str(arguments.output), "count": summary["count"]}))
    else:
        print(f"{summary['count']:,} codes, {arguments.output / SUMMARY}")
    return 0
