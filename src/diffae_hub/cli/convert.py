"""`diffae-hub convert`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub convert`."""
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="official autoencoder checkpoint (last.ckpt)")
    parser.add_argument("output", type=Path, metavar="OUT_DIR", help="pipeline folder to write")
    parser.add_argument("--latent-checkpoint", type=Path, metavar="CKPT", help="checkpoint of the latent code model")
    parser.add_argument(
        "--latent-stats",
        type=Path,
        metavar="FILE",
        help="latent.pkl, for the mean and deviation of the codes, where the other checkpoints lack them",
    )
    parser.add_argument("--classifier-checkpoint", type=Path, metavar="CKPT", help="checkpoint of the classifier")
    parser.add_argument("--no-ema", action="store_true", help="take the last weights instead of the averaged ones")
    parser.add_argument(
        "--ema-classifier",
        action="store_true",
        help="take the averaged classifier; official editing uses the last one (default)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="size of the training images (default: from the checkpoint's x_T, or such that attention is at 16 pixels)",
    )
    parser.add_argument(
        "--num-attention-heads", type=int, default=1, metavar="N", help="heads of attention (default: %(default)s)"
    )
    parser.add_argument(
        "--encoder-layers-per-block",
        type=int,
        metavar="N",
        help="residual blocks per encoder level (default: inferred)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a pipeline folder that is there already")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run_convert(arguments: argparse.Namespace) -> int:
    """Converts an official checkpoint; prints what the pipeline consists of."""
    from ..conversion.convert import convert_official_checkpoint

    report = convert_official_checkpoint(
        arguments.checkpoint,
        arguments.output,
        latent_checkpoint=arguments.latent_checkpoint,
        latent_stats=arguments.latent_stats,
        classifier_checkpoint=arguments.classifier_checkpoint,
        ema=not arguments.no_ema,
        ema_classifier=arguments.ema_classifier,
        image_size=arguments.image_size,
        num_attention_heads=arguments.num_attention_heads,
        encoder_layers_per_block=arguments.encoder_layers_per_block,
        overwrite=arguments.overwrite,
    )
    for warning in report.warnings:
        print(f"diffae-hub: warning: {warning}", file=sys.stderr)
    if arguments.json:
        document = {
            "folder": str(report.folder),
            "parameters": report.parameters,
            "configurations": report.configurations,
            "warnings": report.warnings,
        }
        print(json.dumps(document, indent=2))
        return 0
    encoder, decoder = report.configurations["encoder"], report.configurations["decoder"]
    print(
        f"{decoder['sample_size']} pixels, codes of {decoder['latent_dim']}, {decoder['base_channels']} base channels, "
        f"multipliers {_join(decoder['channel_multipliers'])} (decoder) and {_join(encoder['channel_multipliers'])} "
        f"(encoder), attention at {_join(decoder['attention_resolutions'])}"
    )
    for name, parameters in report.parameters.items():
        print(f"  {name}: {parameters:,} parameters")
    print(report.folder)
    return 0


def _join(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))
