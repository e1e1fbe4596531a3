"""What commands share: the arguments of those that sample, and loading the model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_EXACT = 1e-6  # the tolerance of `--exact`: about what float32 can do


def add_model_arguments(parser: argparse.ArgumentParser, mode: str) -> None:
    """The arguments of commands that sample; `mode` is the default of `--mode`."""
    parser.add_argument(
        "--model",
        default="cifar10-32-small",
        metavar="NAME_OR_PATH",
        help="bundled model (see `diffae-hub models`), pipeline folder or Hub id (default: %(default)s)",
    )
    parser.add_argument(
        "--mode",
        choices=("stochastic", "inversion"),
        default=mode,
        help="stochastic: decode from random noise, so that a picture shows what the latent code alone holds; "
        "inversion: decode from the noise that the image itself leads to, nearly exact (default: %(default)s)",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="inversion that evaluates the network at each step until it is exact, with --solver ddim",
    )
    parser.add_argument("--steps", type=int, default=50, help="1 to 1000 (default: %(default)s)")
    parser.add_argument(
        "--solver",
        choices=("ddim", "dpm"),
        help="ddim: what inversion inverts; dpm: as good with fewer steps from random noise (default: the model's)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of random noise x_T (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--device", help="cpu, cuda, mps ... (default: cuda if there is one, else cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


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
    """The pipeline of `--model` on `--device`."""
    import torch

    from .. import DiffusionAutoencoderPipeline

    silence_diffusers()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be a device of this machine, got {device!r}") from error
    if target.type == "meta":  # holds no values
        raise ValueError("--device must be a device of this machine, got 'meta'")
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(arguments.model).to(target)
    for network in (pipeline.encoder, pipeline.decoder):
        network.to(memory_format=torch.channels_last)  # faster; changes rounding only
    if arguments.solver is not None:
        from .. import VPDDIMScheduler, VPDPMSolverMultistepScheduler

        solver = {"ddim": VPDDIMScheduler, "dpm": VPDPMSolverMultistepScheduler}[arguments.solver]
        pipeline.scheduler = solver.from_config(pipeline.scheduler.config)
    # Fail on a bad number of steps before any picture is worked on.
    pipeline.scheduler.set_timesteps(arguments.steps)
    pipeline.set_progress_bar_config(disable=arguments.json or not sys.stderr.isatty(), leave=False)
    return pipeline


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of commands that read a data set."""
    parser.add_argument("--split", default="test", help="(default: %(default)s)")
    parser.add_argument("--image-column", default="image", help="(default: %(default)s)")
    parser.add_argument("--crop", choices=("center", "d2c"), default="center", help="d2c: the usual crop of CelebA")
    parser.add_argument("--device", help="cpu, cuda ... (default: the accelerator if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


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
