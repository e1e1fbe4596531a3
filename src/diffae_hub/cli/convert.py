"""Turn official checkpoints into a pipeline folder."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from .flags import option


@dataclass
class Options:
    """The arguments of `convert_official_checkpoint`."""

    checkpoint: Path = option(MISSING, "official autoencoder checkpoint (last.ckpt)", positional=True)
    output: Path = option(MISSING, "pipeline folder to write", positional=True)
    latent_checkpoint: Path | None = option(None, "checkpoint of the latent code model")
    latent_stats: Path | None = option(
        None, "latent.pkl, for mean and deviation of the codes where the other checkpoints lack them"
    )
    classifier_checkpoint: Path | None = option(None, "checkpoint of the classifier")
    ema: bool = option(True, "take the averaged weights, not the last ones")
    ema_classifier: bool = option(False, "take the averaged classifier; official editing uses the last one")
    image_size: int | None = option(
        None, "pixels of the training images (default: from x_T in the checkpoint, or such that attention is at 16)"
    )
    num_attention_heads: int = option(1, "heads of attention")
    encoder_layers_per_block: int | None = option(None, "residual blocks per encoder level (default: the decoder's)")
    overwrite: bool = option(False, "replace a pipeline folder that is there already")


def run(options: Options, arguments: Namespace) -> tuple[Any, str]:
    """What the pipeline consists of."""
    from ..conversion.convert import convert_official_checkpoint

    report = convert_official_checkpoint(**vars(options))
    for warning in report.warnings:
        print(f"diffae-hub: warning: {warning}", file=sys.stderr)
    decoder = report.configurations["decoder"]
    lines = [f"{decoder['sample_size']} pixels, codes of {decoder['latent_dim']}"]
    lines += [f"  {name}: {parameters:,} parameters" for name, parameters in report.parameters.items()]
    return dataclasses.asdict(report), "\n".join([*lines, str(report.folder)])
