"""Reconstruct a data set and measure it by the paper's protocol.

  diffae-hub evaluate cifar10-32-small --dataset photos/ --num-images 100 --output evaluation
  diffae-hub evaluate MODEL --dataset test.parquet --train-dataset train.parquet --baselines mean_image pca jpeg \\
      --path-length-pairs 200 --probe multiclass --label-columns label --output evaluation
  accelerate launch -m diffae_hub.cli evaluate MODEL ...          shares the sampling between several devices

OUTPUT/report.md, report.json and pictures are written. Given again, the command continues where it stopped.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ..evaluation.options import EvaluationOptions as Options
from .shared import silence_libraries

__all__ = ["Options", "run"]


def run(options: Options, arguments: Namespace) -> tuple[Any, str] | None:
    """The figures and the page, of the first process."""
    from ..evaluation.evaluate import evaluate

    silence_libraries()
    figures = evaluate(options, show_progress=arguments.show_progress, command=arguments.command_line)
    return (figures, (options.output / "report.md").read_text()) if figures else None
