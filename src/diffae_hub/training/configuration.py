"""The command line of the training script and the experiment that it describes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..files import check_output, user_path
from .optimizers import LEARNING_RATE_SCHEDULES, OPTIMIZERS
from .presets import CROPS, PRESETS, TrainingPreset, preset_named


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ValueError(message)


# A checkpoint of 2 GB every few seconds, or a validation, would take a good part of a fast GPU's time.
_EVERY = "default: a hundredth of the training, but at least 100000"


def _whole_number(text: str) -> int:
    """An integer that may be written as 64e6 or 64_000_000."""
    number = float(text)
    if not number.is_integer():  # nor are infinity and NaN
        raise ValueError
    return int(number)


def _folder(text: str) -> Path:
    """A folder to write, with `~` for the home folder; an empty text, of a variable that is not set, is none."""
    if not text:
        raise ValueError
    return user_path(text)


# What argparse calls them in its messages.
_whole_number.__name__, _folder.__name__ = "int", "folder"


def parse_arguments(argv: list[str] | None, description: str | None = None) -> argparse.Namespace:
    """Parses the command line of `examples/train_two_phase.py`; ValueError, one line, if that fails."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    experiment = parser.add_argument_group("experiment (defaults: the preset's)")
    experiment.add_argument("--preset", required=True, help=f"one of {', '.join(sorted(PRESETS))}")
    experiment.add_argument(
        "--config", type=Path, help="JSON file of overrides, shaped like configuration.json's experiment"
    )
    experiment.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. decoder.dropout=0.2")
    experiment.add_argument("--prediction_type", choices=("epsilon", "sample", "v_prediction"))
    experiment.add_argument("--noise_schedule", choices=("shifted_cosine", "linear_beta", "inverted"))
    experiment.add_argument("--scaling_factor", type=float, help="S of the shifted cosine schedule")
    experiment.add_argument("--phase1_fraction", type=float, help="share of the examples with t = 1; 0 is one-phase")
    experiment.add_argument("--resolution", type=int, help="height and width of the images")
    experiment.add_argument("--latent_dim", type=int, help="width of the latent code")
    experiment.add_argument("--training_examples", type=_whole_number, help="e.g. 64000000 or 64e6")
    experiment.add_argument("--batch_size", type=int, help="global: over all processes and accumulation steps")
    experiment.add_argument("--learning_rate", type=float)
    experiment.add_argument("--lr_scheduler", choices=LEARNING_RATE_SCHEDULES)
    experiment.add_argument("--optimizer", choices=OPTIMIZERS)
    experiment.add_argument("--warmup_examples", type=_whole_number)
    experiment.add_argument("--max_grad_norm", type=float)
    experiment.add_argument("--ema_decay", type=float)
    experiment.add_argument("--ema_warmup", action=argparse.BooleanOptionalAction)
    experiment.add_argument("--horizontal_flip", action=argparse.BooleanOptionalAction)
    experiment.add_argument("--crop", choices=CROPS)
    experiment.add_argument("--seed", type=int, default=0)

    data = parser.add_argument_group("data")
    data.add_argument("--dataset", required=True, help="folder of images, parquet, `datasets` folder or Hub dataset")
    data.add_argument("--split", default="train")
    data.add_argument("--image_column", default="image")
    data.add_argument("--streaming", action="store_true", help="read while training, never all at once")
    data.add_argument("--shuffle_buffer", type=int, default=4096, help="images shuffled together when streaming")
    data.add_argument("--skip_bad_images", action="store_true", help="name and skip unreadable images; default: stop")
    data.add_argument("--num_workers", type=int, default=2, help="processes that read images")
    data.add_argument("--validation_dataset", help="as --dataset; its first images are reconstructed")
    data.add_argument("--validation_split", default="test")
    data.add_argument("--validation_images", type=int, default=64)
    data.add_argument("--validation_every", type=_whole_number, help=f"examples between validations; {_EVERY}")
    data.add_argument("--validation_steps", type=int, default=50, help="DDIM steps")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), default="no")
    machine.add_argument("--compile", action="store_true", help="torch.compile")
    machine.add_argument("--channels_last", action=argparse.BooleanOptionalAction, default=True)
    machine.add_argument("--gradient_checkpointing", action="store_true")
    machine.add_argument("--gradient_accumulation_steps", type=int, default=1)

    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", required=True, type=_folder)
    output.add_argument("--checkpoint_every", type=_whole_number, help=f"examples between checkpoints; {_EVERY}")
    output.add_argument("--keep_checkpoints", type=int, default=2)
    output.add_argument(
        "--resume_from_checkpoint", help="'latest' (starts anew if there is none) or a checkpoint folder"
    )
    output.add_argument(
        "--log_every", type=_whole_number, default=5_000, help="examples between lines of metrics.jsonl"
    )
    output.add_argument("--report_to", choices=("none", "tensorboard", "wandb"), default="none")
    output.add_argument("--push_to_hub", action="store_true")
    output.add_argument("--hub_model_id", help="default: the name of output_dir")
    output.add_argument("--hub_private", action="store_true")
    output.add_argument("--hub_license", help="licence in the model card, e.g. cc-by-4.0; default: none is claimed")
    return parser.parse_args(argv)


def resolve_experiment(arguments: argparse.Namespace) -> TrainingPreset:
    """The preset, overridden by the JSON file, then by the named flags, then by --set.

    Fills in those defaults among the arguments that depend on it.

    Raises:
        ValueError: If a name or a value is not allowed. No data is read and no weights are allocated.
    """
    preset = preset_named(arguments.preset)
    if arguments.config:
        try:
            overrides = json.loads(arguments.config.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"--config must be a readable JSON file, got {arguments.config}: {error}") from error
        if not isinstance(overrides, dict):
            raise ValueError(f"--config must hold a JSON object, got {overrides!r}")
        overrides = overrides.get("experiment", overrides)
        if not isinstance(overrides, dict):
            raise ValueError(f"--config must hold a JSON object as its experiment, got {overrides!r}")
        preset = preset.with_overrides(overrides)

    given: dict[str, Any] = {"encoder": {}, "decoder": {}, "scheduler": {}}
    for name in ("prediction_type", "noise_schedule", "scaling_factor"):
        given["scheduler"][name] = getattr(arguments, name)
    for component in ("encoder", "decoder"):
        given[component] = {"sample_size": arguments.resolution, "latent_dim": arguments.latent_dim}
    for name in ("training_examples", "phase1_fraction", "batch_size", "learning_rate", "lr_scheduler",
                 "optimizer", "warmup_examples", "max_grad_norm", "ema_decay", "ema_warmup", "horizontal_flip",
                 "crop"):  # fmt: skip
        given[name] = getattr(arguments, name)
    for component in ("encoder", "decoder", "scheduler"):
        given[component] = {name: value for name, value in given[component].items() if value is not None}
    preset = preset.with_overrides({name: value for name, value in given.items() if value is not None})

    for assignment in arguments.set:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"--set must be KEY=VALUE, got {assignment!r}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text  # a word needs no quotes
        component, dot, name = path.partition(".")
        preset = preset.with_overrides({component: {name: value} if dot else value})
    preset.validate()
    for name in ("validation_every", "checkpoint_every"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, max(100_000, preset.training_examples // 100))
    return preset


def check_run(arguments: argparse.Namespace, preset: TrainingPreset, num_processes: int, device_type: str) -> None:
    """Checks what is not part of the experiment, before any data is read.

    Raises:
        ValueError: Names the flag.
    """
    for name, minimum in (
        ("gradient_accumulation_steps", 1), ("keep_checkpoints", 1), ("checkpoint_every", 1), ("validation_every", 1),
        ("validation_images", 1), ("log_every", 1), ("shuffle_buffer", 1), ("num_workers", 0), ("seed", 0),
    ):  # fmt: skip
        if getattr(arguments, name) is not None and getattr(arguments, name) < minimum:
            raise ValueError(f"--{name} must be at least {minimum}, got {getattr(arguments, name)}")
    if arguments.seed >= 2**63:
        raise ValueError(f"--seed must be below 2**63, got {arguments.seed}")
    if arguments.mixed_precision == "fp16" and device_type == "cpu":
        raise ValueError("--mixed_precision must be 'no' or 'bf16' on the CPU, got 'fp16'")
    compiler = os.environ.get("CXX", "g++")
    if arguments.compile and device_type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            f"--compile needs a C++ compiler on the CPU (g++, or the one that CXX names), got {compiler!r}, not found"
        )
    if preset.encoder["in_channels"] not in (1, 3):
        raise ValueError(f"in_channels must be 1 (grayscale) or 3 (RGB), got {preset.encoder['in_channels']}")
    if arguments.hub_license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", arguments.hub_license):
        raise ValueError(
            f"--hub_license must be an id like 'mit' or 'cc-by-4.0', in lower case, got {arguments.hub_license!r}"
        )
    parts = num_processes * arguments.gradient_accumulation_steps
    if preset.batch_size < parts:
        raise ValueError(
            f"--batch_size must be at least the number of processes times the accumulation steps, {parts}, "
            f"got {preset.batch_size}"
        )
    most = preset.scheduler["num_train_timesteps"]
    if not 1 <= arguments.validation_steps <= most:
        raise ValueError(f"--validation_steps must be between 1 and {most}, got {arguments.validation_steps}")
    package = {"tensorboard": "tensorboard", "wandb": "wandb"}.get(arguments.report_to)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ValueError(f"--report_to {package} needs the package: pip install {package}")
    check_output(arguments.output_dir, arguments.dataset, arguments.validation_dataset, argument="--output_dir")
