"""Commands that train and evaluate."""

import os
import signal
from argparse import Namespace
from dataclasses import MISSING, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..evaluation.options import EvaluationOptions
from ..flags import from_values, option
from ..training.latent import LatentOptions
from ..training.options import TrainingOptions
from .codes import load_for_codes


def train(options: TrainingOptions, arguments: Namespace) -> None:
    """Train a diffusion autoencoder, in two phases, or fine-tune one.

      diffae-hub train --preset small-64 --dataset path/to/images --output runs/mine
      diffae-hub train --pretrained-model cifar10-32-small --dataset path/to/images --output runs/mine

    For several GPUs use `accelerate launch -m diffae_hub.cli train ...`. With --resume-from-checkpoint latest, the
    command continues where it stopped, as if it had not been interrupted. With larger --training-examples, it
    continues beyond its end.
    """
    from ..training import loop

    try:
        stopped_by = loop.train(options)
    except ValueError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        raise SystemExit(2) from error
    if stopped_by in ("SIGINT", "SIGTERM") and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise SystemExit(128 + signal.Signals[stopped_by])  # a launcher would report a failure, with a traceback


@dataclass(frozen=True, kw_only=True)
class TrainLatentOptions(LatentOptions):
    codes: Path = option(MISSING, "folder written by `diffae-hub encode`", positional=True)
    output: Path = option(MISSING, "pipeline folder to write: the model with a latent code model")
    model: str = option("cifar10-32-small", "the model that made the codes")
    run_dir: Path | None = option(None, "folder of checkpoints and metrics.jsonl (default: beside the output)")


def train_latent(options: TrainLatentOptions, arguments: Namespace) -> tuple[Any, str] | None:
    """Train a latent code model, so that a pipeline can make new images.

      diffae-hub encode photos/ --output codes
      diffae-hub train-latent codes --output mine
      diffae-hub sample --model mine --output samples

    Run it again to continue where it stopped, or with more --training-examples to make it longer.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    from ..codes import load_codes
    from ..files import check_pipeline_output, new_folder, read_json_lines
    from ..training.latent import train_latent
    from ..training.run_folder import METRICS

    output = options.output.resolve()
    folder = options.run_dir or output.with_name(f"{output.name}-training")
    check_pipeline_output(options.output, options.codes, folder)
    pipeline = load_for_codes(options.model, options.codes)
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))])
    model, scheduler = train_latent(
        load_codes(options.codes)["latent_code"],
        from_values(LatentOptions, vars(options)),
        folder,
        accelerator,
    )
    if not accelerator.is_main_process:
        return None
    pipeline.latent_code_model, pipeline.latent_scheduler = model.cpu(), scheduler
    with new_folder(options.output) as partial:
        pipeline.save_pretrained(partial)
    records = read_json_lines(folder / METRICS)  # none if the run was killed between its first checkpoint and figures
    return {"output": options.output, **(records or [{}])[-1]}, str(options.output)


def evaluate(options: EvaluationOptions, arguments: Namespace) -> tuple[Any, str] | None:
    """Reconstruct a data set and measure it by the paper's protocol.

      diffae-hub evaluate cifar10-32-small --dataset photos/ --num-images 100 --output evaluation
      diffae-hub evaluate MODEL --dataset test.parquet --train-dataset train.parquet --baselines mean_image pca jpeg \\
          --path-length-pairs 200 --probe multiclass --label-columns label --output evaluation
      accelerate launch -m diffae_hub.cli evaluate MODEL ...          shares the sampling between several devices

    Writes OUTPUT/report.md, report.json and pictures. Run it again to continue where it stopped.
    """
    from ..evaluation import evaluate as steps

    figures = steps.evaluate(options, show_progress=arguments.show_progress, command=arguments.command_line)
    return (figures, (options.output / "report.md").read_text(encoding="utf-8")) if figures else None
