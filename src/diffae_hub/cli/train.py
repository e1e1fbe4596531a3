"""`diffae-hub train`."""

from __future__ import annotations

import argparse
import os
import sys

from ..data.errors import TrainingError
from ..training.options import TrainingOptions
from .flags import add_flags, from_arguments


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub train`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """Train a diffusion autoencoder, in two phases, or fine-tune one.

  diffae-hub train --preset small-64 --dataset path/to/images --output runs/mine
  diffae-hub train --pretrained-model cifar10-32-small --dataset path/to/images --output runs/mine

Several GPUs: `accelerate launch -m diffae_hub.cli train ...`. Given again with --resume-from-checkpoint latest, the
command goes on where it stopped, as if it had not been interrupted; with larger --training-examples, beyond its end."""
    add_flags(parser, TrainingOptions)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. decoder.dropout=0.2")


def run_train(arguments: argparse.Namespace) -> int:
    """Trains; the exit code is 0, 2 for what went wrong before the first step, 1 for a run that broke off."""
    from ..training.loop import train

    try:
        train(from_arguments(TrainingOptions, arguments), arguments.set)
    except TrainingError as error:
        if sys.flags.dev_mode:
            raise
        print(f"diffae-hub: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except ValueError:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # all processes refuse it, and one says so
            raise
        return 2
    return 0
