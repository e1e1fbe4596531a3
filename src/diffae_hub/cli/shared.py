"""What commands share: the arguments of those that sample, the model, and the pictures they write."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from .flags import option

_EXACT = 1e-6  # the tolerance of `--exact`: about what float32 can do
MODE_HELP = (
    "stochastic: decode from random noise, so that a picture shows what the latent code alone holds; inversion: "
    "decode from the noise that the image itself leads to, nearly exact"
)


@dataclass(kw_only=True)
class Sampling:
    """Arguments of commands that decode from random noise."""

    model: str = option("cifar10-32-small", "bundled model (see `diffae-hub models`), pipeline folder or Hub id")
    steps: int | None = option(
        None, "1 to 1000 (default: 10; 50 for ddim from random noise, and for official checkpoints)"
    )
    solver: Literal["ddim", "dpm"] | None = option(
        None,
        "ddim: what inversion inverts, and the paper's; dpm: needs a fifth of the steps from random noise "
        "(default: the one that fits the mode; ddim for official checkpoints)",
    )
    seed: int = option(0, "seed of random noise x_T")
    output: Path = option(MISSING, "folder for the pictures")
    device: str | None = option(None, "cpu, cuda, mps ... (default: cuda if there is one, else cpu)")


@dataclass(kw_only=True)
class Inversion(Sampling):
    """Arguments of commands that can also decode from the noise of images."""

    images: tuple[Path, ...] = option(MISSING, "image files", positional=True)
    mode: Literal["stochastic", "inversion"] = option("inversion", MODE_HELP)
    exact: bool = option(False, "inversion that evaluates the network until each step is exact, with --solver ddim")


def load_for_sampling(options: Sampling, arguments: Namespace):  # noqa: ANN201 - the class is imported only here
    """The pipeline of `--model` on `--device`, with a solver, and what its methods are called with.

    Fills in `--solver` and `--steps`; `--exact` chooses mode and solver.
    """
    import torch

    from .. import devices
    from ..schedulers.compatibility import trained_scheduler, with_solver

    if not 0 <= options.seed < 2**63:
        raise ValueError(f"--seed must be between 0 and 2**63 - 1, got {options.seed}")
    can_invert = isinstance(options, Inversion)
    if can_invert and options.exact:
        if options.solver == "dpm":
            raise ValueError("--solver must be ddim with --exact, got dpm")
        options.mode, options.solver = "inversion", "ddim"
    silence_diffusers()
    device = devices.torch_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipeline = devices.load_pipeline(options.model, device)
    trained = trained_scheduler(pipeline.scheduler)
    is_official, inverts = trained.config.timestep_spacing == "leading", can_invert and options.mode == "inversion"
    options.solver = options.solver or ("ddim" if is_official or inverts else "dpm")
    if options.steps is None:
        options.steps = 50 if is_official or (options.solver == "ddim" and not inverts) else 10
    pipeline.scheduler = with_solver(trained, options.solver)
    pipeline.scheduler.set_timesteps(options.steps)  # fails on a bad number before any picture is worked on
    pipeline.set_progress_bar_config(disable=not arguments.show_progress, leave=False)
    settings = {
        "num_inference_steps": options.steps,
        "generator": torch.Generator().manual_seed(options.seed),
        "output_type": "pt",
    }
    if can_invert:
        settings |= {"mode": options.mode, "tolerance": _EXACT if options.exact else None}
    return pipeline, settings


def write_pictures(folder: Path, names: Iterable[str], images: Any) -> list[Path]:
    """Writes images (C, H, W) in [0, 1] as PNG files of these names, without their ending; returns the paths."""
    from ..files import write_png
    from ..images import to_pil

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in names]
    for path, image in zip(paths, images, strict=True):
        write_png(path, to_pil(image))
    return paths


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
