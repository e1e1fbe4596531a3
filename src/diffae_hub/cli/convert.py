"""`diffae-hub convert`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from .flags import add_flags, from_arguments, option


@dataclass
class ConvertOptions:
    """The arguments of `convert_official_checkpoint`."""

    checkpoint: Path = option(dataclasses.MISSING, "official autoencoder checkpoint (last.ckpt)", positional=True)
    output: Path = option(dataclasses.MISSING, "pipeline folder to write", positional=True)
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


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub convert`."""
    add_flags(parser, ConvertOptions)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run_convert(arguments: argparse.Namespace) -> int:
    """Converts an official checkpoint; prints what the pipeline consists of."""
    from ..conversion.convert import convert_official_checkpoint

    report = convert_official_checkpoint(**vars(from_arguments(ConvertOptions, arguments)))
    for warning in report.warnings:
        print(f"diffae-hub: warning: {warning}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report), indent=2, default=str))
        return 0
    decoder = report.configurations["decoder"]
    print(f"{decoder['sample_size']} pixels, codes of {decoder['latent_dim']}")
    for name, parameters in report.parameters.items():
        print(f"  {name}: {parameters:,} parameters")
    print(report.folder)
    return 0
