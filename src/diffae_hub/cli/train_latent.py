"""Train a latent code model, with which a pipeline makes new images.

  diffae-hub encode photos/ --output codes
  diffae-hub train-latent codes --output mine
  diffae-hub sample --model mine --output samples

Given again, the command continues where it stopped.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from ..training.latent import LatentOptions
from .flags import from_arguments, option
from .shared import silence_libraries


@dataclass(frozen=True, kw_only=True)
class Options(LatentOptions):
    """What is trained on, how, and what is written."""

    codes: Path = option(MISSING, "folder of `diffae-hub encode`", positional=True)
    output: Path = option(MISSING, "pipeline folder to write: the model with a latent code model")
    model: str = option("cifar10-32-small", "the model that made the codes")
    run_dir: Path | None = option(None, "folder of checkpoints and metrics.jsonl (default: beside the output)")


def run(options: Options, arguments: Namespace) -> tuple[Any, str] | None:
    """Saves the pipeline with the latent code model; its folder and the last figures, from the first process."""
    import torch
    from accelerate import Accelerator

    from ..codes.fingerprints import check_encoder
    from ..codes.shards import codes_summary, load_codes
    from ..devices import load_pipeline
    from ..files import new_folder
    from ..training.latent import train_latent
    from ..training.run_folder import read_metrics

    silence_libraries()
    pipeline = load_pipeline(options.model, torch.device("cpu"))
    check_encoder(pipeline, codes_summary(options.codes))
    accelerator = Accelerator()
    quiet = arguments.json or not accelerator.is_main_process
    folder = options.run_dir or options.output.with_name(f"{options.output.name}-training")
    model, scheduler = train_latent(
        load_codes(options.codes)["latent_code"],
        from_arguments(LatentOptions, options),
        folder,
        accelerator,
        (lambda line: None) if quiet else lambda line: print(line, file=sys.stderr, flush=True),
    )
    if not accelerator.is_main_process:
        return None
    pipeline.latent_code_model, pipeline.latent_scheduler = model.cpu(), scheduler
    with new_folder(options.output) as partial:
        pipeline.save_pretrained(partial)
    return {"output": options.output, **read_metrics(folder)[-1]}, str(options.output)
