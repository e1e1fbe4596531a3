"""What commands share: the arguments of those that sample, and loading the model."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .flags import add_flags, option

_EXACT = 1e-6  # the tolerance of `--exact`: about what float32 can do


@dataclass(kw_only=True)
class _Sampling:
    model: str = option("cifar10-32-small", "bundled model (see `diffae-hub models`), pipeline folder or Hub id")
    mode: Literal["stochastic", "inversion"] = option(
        None,
        "stochastic: decode from random noise, so that a picture shows what the latent code alone holds; inversion: "
        "decode from the noise that the image itself leads to, nearly exact",
    )
    exact: bool = option(False, "inversion that evaluates the network until each step is exact, with --solver ddim")
    steps: int = option(50, "1 to 1000")
    solver: Literal["ddim", "dpm"] | None = option(
        None, "ddim: what inversion inverts; dpm: as good with fewer steps from random noise (default: the model's)"
    )
    seed: int = option(0, "seed of random noise x_T")
    output: Path = option(dataclasses.MISSING, "folder for the pictures")
    device: str | None = option(None, "cpu, cuda, mps ... (default: cuda if there is one, else cpu)")
    json: bool = option(False, "print one JSON document instead of text")


def add_model_arguments(parser: argparse.ArgumentParser, mode: str) -> None:
    """The arguments of commands that sample; `mode` is the default of `--mode`."""
    add_flags(parser, _Sampling, mode=mode)


def exact_tolerance(arguments: argparse.Namespace) -> float | None:
    """Checks `--seed` and `--exact`, which chooses mode and solver; returns the tolerance of inversion."""
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"--seed must be between 0 and 2**63 - 1, got {arguments.seed}")
    if not arguments.exact:
        return None
    if arguments.solver == "dpm":
        raise ValueError("--solver must be ddim with --exact, got dpm")
    arguments.mode, arguments.solver = "inversion", "ddim"
    return _EXACT


def load_pipeline(arguments: argparse.Namespace):  # noqa: ANN202 - the class is imported only here
    """The pipeline of `--model` on `--device`, with the solver of `--solver`."""
    import torch

    from .. import VPDDIMScheduler, VPDPMSolverMultistepScheduler, devices

    silence_diffusers()
    device = devices.torch_device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipeline = devices.load_pipeline(arguments.model, device)
    if arguments.solver is not None:
        solver = {"ddim": VPDDIMScheduler, "dpm": VPDPMSolverMultistepScheduler}[arguments.solver]
        pipeline.scheduler = solver.from_config(pipeline.scheduler.config)
    pipeline.scheduler.set_timesteps(arguments.steps)  # fails on a bad number before any picture is worked on
    pipeline.set_progress_bar_config(disable=arguments.json or not sys.stderr.isatty(), leave=False)
    return pipeline


def silence_diffusers() -> None:
    """No progress bars and warnings of diffusers."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def silence_libraries() -> None:
    """No progress bars and warnings of other libraries."""
    import datasets

    silence_diffusers()
    datasets.disable_progress_bars()
