"""What a run is told, declared once: the dataclass is the flags, the JSON of the run and the library's call."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..files import check_output
from .presets import COMPONENTS, PRESETS, TrainingPreset, component_arguments, preset_named

if TYPE_CHECKING:
    from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline

# A checkpoint of 2 GB every few seconds, or a validation, would take a good part of a fast GPU's time.
_EVERY = "default: a hundredth of the training, but at least 100000"
_EXPERIMENT = "experiment (defaults: the preset's)"


def _option(group: str, default: Any, help: str, minimum: int | None = None, aliases: Sequence[str] = ()) -> Any:
    metadata = {"help": help, "group": group, "minimum": minimum, "aliases": aliases}
    return dataclasses.field(default=default, metadata=metadata)


_types = typing.get_type_hints(TrainingPreset)
# The preset's plain fields, each None unless it is given.
_Overrides = dataclasses.make_dataclass(
    "_Overrides",
    [
        (field.name, _types[field.name] | None, _option(_EXPERIMENT, None, field.metadata["help"]))
        for field in dataclasses.fields(TrainingPreset)
        if "help" in field.metadata
    ],
    frozen=True,
    kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(_Overrides):
    """The options of a training run; their help texts say what they mean.

    Raises:
        ValueError: If a number is too small; the message names it.
    """

    preset: str | None = _option(_EXPERIMENT, None, f"one of {', '.join(sorted(PRESETS))}")
    pretrained_model: str | None = _option(
        _EXPERIMENT,
        None,
        "fine-tune this bundled model, folder or Hub id; needs no preset, and has one phase by default",
    )
    config: Path | None = _option(
        _EXPERIMENT, None, "JSON file of overrides, shaped like configuration.json's experiment"
    )
    prediction_type: Literal["epsilon", "sample", "v_prediction"] | None = _option(_EXPERIMENT, None, "of the decoder")
    noise_schedule: Literal["shifted_cosine", "linear_beta", "inverted"] | None = _option(
        _EXPERIMENT, None, "noise schedule"
    )
    scaling_factor: float | None = _option(_EXPERIMENT, None, "S of the shifted cosine schedule")
    resolution: int | None = _option(_EXPERIMENT, None, "height and width of the images", 1)
    latent_dim: int | None = _option(_EXPERIMENT, None, "width of the latent code", 1)
    seed: int = _option(_EXPERIMENT, 0, "of the initial weights, the order of the data and every draw", 0)

    dataset: str = _option("data", MISSING, "folder of images, parquet, `datasets` folder or Hub dataset")
    split: str = _option("data", "train", "split of the data set")
    image_column: str = _option("data", "image", "column that holds the images")
    streaming: bool = _option("data", False, "read while training, never all at once")
    shuffle_buffer: int = _option("data", 4096, "images shuffled together when streaming", 1)
    skip_bad_images: bool = _option("data", False, "name and skip unreadable images; default: stop")
    num_workers: int = _option("data", 2, "processes that read images", 0)
    allow_changed_data: bool = _option("data", False, "resume though the data set's files are not as they were")
    validation_dataset: str | None = _option("data", None, "as --dataset; its first images are reconstructed")
    validation_split: str = _option("data", "test", "split of the validation data")
    validation_images: int = _option("data", 64, "number of validation images", 1)
    validation_every: int | None = _option("data", None, f"examples between validations; {_EVERY}", 1)
    validation_steps: int = _option("data", 50, "DDIM steps of a validation", 1)

    mixed_precision: Literal["no", "bf16", "fp16"] = _option("machine", "no", "precision of the networks' arithmetic")
    compile: bool = _option("machine", False, "torch.compile")
    channels_last: bool = _option("machine", True, "keep channels innermost in memory")
    gradient_checkpointing: bool = _option("machine", False, "compute activations again instead of keeping them")
    gradient_accumulation_steps: int = _option("machine", 1, "parts in which a batch goes through the networks", 1)

    output: Path = _option("output", MISSING, "folder of the run", aliases=("--output-dir",))
    checkpoint_every: int | None = _option("output", None, f"examples between checkpoints; {_EVERY}", 1)
    keep_checkpoints: int = _option("output", 2, "number of checkpoints to keep", 1)
    resume_from_checkpoint: str | None = _option(
        "output", None, "'latest' (starts anew if there is none) or a checkpoint's file"
    )
    log_every: int = _option("output", 5_000, "examples between lines of metrics.jsonl", 1)
    report_to: Literal["none", "tensorboard", "wandb"] = _option("output", "none", "where figures go besides")
    push_to_hub: bool = _option("output", False, "upload the pipeline at the end")
    hub_model_id: str | None = _option("output", None, "default: the name of the output folder")
    hub_private: bool = _option("output", False, "make a new repository private")
    hub_license: str | None = _option("output", None, "licence in the model card, e.g. cc-by-4.0; default: none")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, minimum = getattr(self, field.name), field.metadata["minimum"]
            if minimum is not None and value is not None and value < minimum:
                raise ValueError(f"{field.name} must be at least {minimum}, got {value}")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")

    def to_dict(self) -> dict[str, Any]:
        """What was given or has a default, for JSON."""
        values = dataclasses.asdict(self).items()
        return {name: str(value) if isinstance(value, Path) else value for name, value in values if value is not None}

    def for_experiment(self, preset: TrainingPreset) -> TrainingOptions:
        """With the defaults that depend on the experiment."""
        every = max(100_000, preset.training_examples // 100)
        return dataclasses.replace(
            self,
            validation_every=self.validation_every or every,
            checkpoint_every=self.checkpoint_every or every,
        )

    def check(self, preset: TrainingPreset, num_processes: int, device_type: str) -> None:
        """Checks what depends on the experiment and the machine, before any data is read.

        Raises:
            ValueError: Names the option.
        """
        if self.mixed_precision == "fp16" and device_type == "cpu":
            raise ValueError("mixed_precision must be 'no' or 'bf16' on the CPU, got 'fp16'")
        compiler = os.environ.get("CXX", "g++")
        if self.compile and device_type == "cpu" and shutil.which(compiler) is None:
            raise ValueError(f"compile needs a C++ compiler on the CPU (g++, or $CXX), got {compiler!r}, not found")
        if self.hub_license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.hub_license):
            raise ValueError(f"hub_license must be an id like 'mit' or 'cc-by-4.0', got {self.hub_license!r}")
        parts = num_processes * self.gradient_accumulation_steps
        if preset.batch_size < parts:
            raise ValueError(
                f"batch_size must be at least the number of processes times the accumulation steps, {parts}, "
                f"got {preset.batch_size}"
            )
        if self.validation_steps > preset.scheduler["num_train_timesteps"]:
            raise ValueError(
                f"validation_steps must be at most {preset.scheduler['num_train_timesteps']}, "
                f"got {self.validation_steps}"
            )
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(f"report_to {self.report_to} needs the package: pip install {self.report_to}")
        check_output(self.output, self.dataset, self.validation_dataset)


def resolve_experiment(
    options: TrainingOptions, assignments: Sequence[str] = (), pretrained: DiffusionAutoencoderPipeline | None = None
) -> TrainingPreset:
    """The preset, overridden by the JSON file, then by the options, then by assignments.

    Args:
        options: Of the run.
        assignments: Texts `KEY=VALUE` or `COMPONENT.KEY=VALUE`, values in JSON or plain words.
        pretrained: Pipeline to go on from: the networks and the noise schedule are its own.

    Raises:
        ValueError: If a name or a value is not allowed. No data is read and no weights are allocated.
    """
    if options.preset is None and pretrained is None:
        raise ValueError("preset or pretrained_model must be given")
    if options.preset is not None:
        preset = preset_named(options.preset)
    else:
        preset = TrainingPreset({}, {}, training_examples=1_000_000, warmup_examples=10_000)
    if pretrained is not None:
        configs = _configurations(pretrained)
        preset = preset.with_overrides({**configs, "phase1_fraction": 0.0})
    if options.config is not None:
        preset = preset.with_overrides(_read_overrides(options.config))

    if options.resolution is not None:
        preset = preset.at_resolution(options.resolution)
    latent_dim = {} if options.latent_dim is None else {"latent_dim": options.latent_dim}
    scheduler = {name: getattr(options, name) for name in ("prediction_type", "noise_schedule", "scaling_factor")}
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(_Overrides)}
    preset = preset.with_overrides(
        {
            "encoder": latent_dim,
            "decoder": latent_dim,
            "scheduler": {name: value for name, value in scheduler.items() if value is not None},
            **{name: value for name, value in given.items() if value is not None},
        }
    )
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"set must be KEY=VALUE, got {assignment!r}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text  # a word needs no quotes
        component, dot, name = path.partition(".")
        preset = preset.with_overrides({component: {name: value} if dot else value})
    preset.validate()
    if pretrained is not None:
        for component in ("encoder", "decoder"):
            for name, value in configs[component].items():
                if name != "dropout" and preset.to_dict()[component][name] != value:
                    raise ValueError(f"{component}.{name} must be the pretrained model's, {value!r}")
    return preset


def _configurations(pipeline: DiffusionAutoencoderPipeline) -> dict[str, dict[str, Any]]:
    saved = {name: json.loads(getattr(pipeline, name).to_json_string()) for name in COMPONENTS}
    return {name: {k: v for k, v in config.items() if k in component_arguments(name)} for name, config in saved.items()}


def _read_overrides(path: Path) -> dict[str, Any]:
    try:
        overrides = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"config must be a readable JSON file, got {path}: {error}") from error
    overrides = overrides.get("experiment", overrides) if isinstance(overrides, dict) else overrides
    if not isinstance(overrides, dict):
        raise ValueError(f"config must hold a JSON object of overrides, got {path} with {overrides!r}")
    return overrides
