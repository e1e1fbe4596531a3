"""`diffae-hub train-latent`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

from ..files import new_folder
from ..training.latent import LatentOptions, train_latent
from .flags import add_flags, from_arguments, option
from .shared import silence_libraries


@dataclass(frozen=True)
class RunOptions:
    """What is trained on, and what is written."""

    codes: Path = option(MISSING, "folder of `diffae-hub encode`", positional=True)
    output: Path = option(MISSING, "pipeline folder to write: the model with a latent code model")
    model: str = option("cifar10-32-small", "the model that made the codes")
    run_dir: Path | None = option(None, "folder of checkpoints and metrics.jsonl (default: beside the output)")


def train_latent_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub train-latent`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """Train a latent code model, with which a pipeline makes new images.

  diffae-hub encode photos/ --output codes
  diffae-hub train-latent codes --output mine
  diffae-hub sample --model mine --output samples

Given again, the command continues where it stopped."""
    add_flags(parser, RunOptions)
    add_flags(parser, LatentOptions)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run_train_latent(arguments: argparse.Namespace) -> int:
    """Trains, and saves the pipeline with the latent code model."""
    import torch
    from accelerate import Accelerator

    from ..codes.fingerprints import check_encoder
    from ..codes.shards import codes_summary, load_codes
    from ..devices import load_pipeline
    from ..training.run_folder import read_metrics

    silence_libraries()
    run = from_arguments(RunOptions, arguments)
    pipeline = load_pipeline(run.model, torch.device("cpu"))
    check_encoder(pipeline, codes_summary(run.codes))
    accelerator = Accelerator()
    quiet = arguments.json or not accelerator.is_main_process
    folder = run.run_dir or run.output.with_name(f"{run.output.name}-training")
    model, scheduler = train_latent(
        load_codes(run.codes)["latent_code"],
        from_arguments(LatentOptions, arguments),
        folder,
        accelerator,
        (lambda line: None) if quiet else lambda line: print(line, file=sys.stderr, flush=True),
    )
    if accelerator.is_main_process:
        pipeline.latent_code_model, pipeline.latent_scheduler = model.cpu(), scheduler
        with new_folder(run.output) as partial:
            pipeline.save_pretrained(partial)
        figures = read_metrics(folder)[-1]
        print(json.dumps({"output": str(run.output), **figures}) if arguments.json else run.output)
    return 0
