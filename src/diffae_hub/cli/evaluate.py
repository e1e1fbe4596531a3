"""The command that measures."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ..evaluation.options import EvaluationOptions
from .quiet import silence_libraries


def evaluate(options: EvaluationOptions, arguments: Namespace) -> tuple[Any, str] | None:
    """Reconstruct a data set and measure it by the paper's protocol.

      diffae-hub evaluate cifar10-32-small --dataset photos/ --num-images 100 --output evaluation
      diffae-hub evaluate MODEL --dataset test.parquet --train-dataset train.parquet --baselines mean_image pca jpeg \\
          --path-length-pairs 200 --probe multiclass --label-columns label --output evaluation
      accelerate launch -m diffae_hub.cli evaluate MODEL ...          shares the sampling between several devices

    OUTPUT/report.md, report.json and pictures are written. Given again, the command continues where it stopped.
    """
    from ..evaluation import evaluate as steps

    silence_libraries()
    figures = steps.evaluate(options, show_progress=arguments.show_progress, command=arguments.command_line)
    return (figures, (options.output / "report.md").read_text()) if figures else None
