"""`diffae-hub train`."""

from __future__ import annotations

import argparse
import os
import sys

from safetensors import SafetensorError

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
    """Trains; the exit code is 0, 2 for a command line that cannot be run, 1 for a run that broke off."""
    from ..data.errors import UnfitImage
    from ..training.checkpoints import checkpoint_files
    from ..training.loop import train

    try:
        train(from_arguments(TrainingOptions, arguments), arguments.set)
        return 0
    except UnfitImage:  # each machine has its own data
        raise
    except ValueError:  # all processes refuse it, and one says so
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        return 2
    except (RuntimeError, OSError, SafetensorError) as error:  # the last: a full disk
        if sys.flags.dev_mode:
            raise
        last = next(reversed(checkpoint_files(arguments.output)), "none")
        message = f"{error}; the last good checkpoint is {last}"
        if os.environ.get("WORLD_SIZE", "1") != "1" and "by peer" in str(error):
            message = "another process ended, and this one with it"
    print(f"diffae-hub: {' '.join(message.split())}", file=sys.stderr)
    return 1
