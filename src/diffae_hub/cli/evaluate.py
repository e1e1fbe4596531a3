"""`diffae-hub evaluate`."""

from __future__ import annotations

import argparse
import json
import sys

from .flags import add_flags, from_arguments
from .shared import silence_libraries


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub evaluate`."""
    from ..evaluation.options import EvaluationOptions

    parser.description = """Reconstruct a data set and measure it by the paper's protocol.

  diffae-hub evaluate cifar10-32-small --dataset photos/ --num-images 100 --output evaluation
  diffae-hub evaluate MODEL --dataset test.parquet --train-dataset train.parquet --baselines mean_image pca jpeg \\
      --path-length-pairs 200 --probe multiclass --label-columns label --output evaluation
  accelerate launch -m diffae_hub.cli evaluate MODEL ...          shares the sampling between several devices

OUTPUT/report.md, report.json and pictures are written. Given again, the command continues where it stopped."""
    add_flags(parser, EvaluationOptions)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Evaluates, prints and saves the report."""
    from ..evaluation.evaluate import evaluate
    from ..evaluation.options import EvaluationOptions

    silence_libraries()
    options = from_arguments(EvaluationOptions, arguments)
    quiet = arguments.json or not sys.stderr.isatty()
    figures = evaluate(options, show_progress=not quiet, command=arguments.command_line)
    if figures:  # another process reports otherwise
        print(json.dumps(figures, indent=2) if arguments.json else (options.output / "report.md").read_text())
    return 0
