"""Train a diffusion autoencoder, in two phases, or fine-tune one.

  diffae-hub train --preset small-64 --dataset path/to/images --output runs/mine
  diffae-hub train --pretrained-model cifar10-32-small --dataset path/to/images --output runs/mine

Several GPUs: `accelerate launch -m diffae_hub.cli train ...`. Given again with --resume-from-checkpoint latest, the
command goes on where it stopped, as if it had not been interrupted; with larger --training-examples, beyond its end.
"""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass

from ..training.options import TrainingOptions
from .flags import from_arguments, option


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Those of the training, and overrides of its experiment."""

    set: tuple[str, ...] = option((), "KEY=VALUE, e.g. decoder.dropout=0.2; may be repeated", append=True)


def run(options: Options, arguments: Namespace) -> None:
    """Trains; what goes wrong before the first step is said by one process alone."""
    from ..training.loop import train

    try:
        train(from_arguments(TrainingOptions, options), options.set)
    except ValueError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        raise SystemExit(2) from error
