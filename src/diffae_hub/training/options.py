"""Options of a training run, declared once: for the flags, the run's JSON file and calls from Python."""

import dataclasses
import importlib.util
import json
import os
import shutil
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from ..data.transform import CROPS
from ..files import check_output, read_json
from ..flags import check_values, option
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from ..schedulers.compatibility import trained_scheduler
from .objective import LOSS_WEIGHTINGS
from .optimizers import LEARNING_RATE_SCHEDULES, OPTIMIZERS
from .presets import COMPONENTS, PRESETS, TrainingPreset, preset_named

# On a fast GPU, shorter intervals would spend much of the time on checkpoints of 2 GB and on validations.
_EVERY = "default: a hundredth of the training, but at least 100000"
_EXPERIMENT = "experiment (by default as in the preset, or as in the pretrained model)"
_experiment = partial(option, None, group=_EXPERIMENT)
_data, _machine, _output = (partial(option, group=group) for group in ("data", "machine", "output"))


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of a training run, which their help texts explain."""

    preset: str | None = _experiment(f"one of {', '.join(sorted(PRESETS))}")
    pretrained_model: str | None = _experiment(
        "fine-tune this bundled model, folder or Hub id, by default in one phase"
    )
    config: Path | None = _experiment("JSON file of overrides, with the keys of `experiment` in configuration.json")
    prediction_type: Literal["epsilon", "sample", "v_prediction"] | None = _experiment("what the decoder predicts")
    noise_schedule: Literal["shifted_cosine", "linear_beta", "inverted"] | None = _experiment("noise schedule")
    scaling_factor: float | None = _experiment("S of the shifted cosine schedule")
    resolution: int | None = _experiment("height and width of the images", minimum=1)
    latent_dim: int | None = _experiment("width of the latent code", minimum=1)
    batch_size: int | None = _experiment("examples per step, over all processes and accumulation steps")
    training_examples: int | None = _experiment("length of the training, e.g. 64000000 or 64e6")
    warmup_examples: int | None = _experiment("length of the learning rate's linear warm-up, in examples")
    phase1_fraction: float | None = _experiment("share of the examples with t = 1, in [0, 1]; 0 is one-phase training")
    learning_rate: float | None = _experiment("learning rate after the warm-up")
    lr_scheduler: Literal[*LEARNING_RATE_SCHEDULES] | None = _experiment("constant (the paper); the others end near 0")
    optimizer: Literal[*OPTIMIZERS] | None = _experiment("the paper uses adam")
    loss_weighting: Literal[*LOSS_WEIGHTINGS] | None = _experiment(
        "none (the paper), or sigma: less weight for low noise, for better images from the code alone"
    )
    max_grad_norm: float | None = _experiment("clip the gradient to this norm")
    ema_decay: float | None = _experiment("decay of the averaged weights per optimizer step, in [0, 1)")
    ema_warmup: bool | None = _experiment("limit the decay at step n to (1 + n) / (10 + n)")
    horizontal_flip: bool | None = _experiment("flip images with probability 1/2")
    crop: Literal[*CROPS] | None = _experiment("crop to a square; d2c: the official networks' crop of CelebA")
    set: tuple[str, ...] = option((), "override as KEY=VALUE, e.g. decoder.dropout=0.2; may be repeated", append=True)
    seed: int = option(0, "seed of the initial weights, the data order and all draws", group=_EXPERIMENT, minimum=0)

    dataset: str = _data(MISSING, "folder of images, parquet, `datasets` folder or Hub dataset")
    split: str = _data("train", "split of the data set")
    image_column: str = _data("image", "column that holds the images")
    streaming: bool = _data(False, "read the data while training, never all at once")
    shuffle_buffer: int = _data(4096, "images shuffled together when streaming", minimum=1)
    skip_bad_images: bool = _data(False, "report and skip unreadable images (default: stop)")
    num_workers: int = _data(2, "processes that read images", minimum=0)
    allow_changed_data: bool = _data(False, "resume even if the files of the data set have changed")
    validation_dataset: str | None = _data(None, "like --dataset; some of its images are reconstructed")
    validation_split: str = _data("test", "split of the validation data")
    validation_images: int = _data(64, "number of validation images", minimum=1)
    validation_every: int | None = _data(None, f"examples between validations; {_EVERY}", minimum=1)
    validation_steps: int = _data(50, "DDIM steps of a validation", minimum=2)

    mixed_precision: Literal["no", "bf16", "fp16"] | None = _machine(
        None, "precision of the networks' arithmetic (default: as accelerate is configured, else no)"
    )
    compile: bool = _machine(False, "use torch.compile")
    channels_last: bool = _machine(True, "keep channels innermost in memory")
    gradient_checkpointing: bool = _machine(False, "recompute activations to save memory")
    gradient_accumulation_steps: int = _machine(1, "number of parts in which a batch is processed", minimum=1)

    output: Path = _output(MISSING, "folder of the run")
    more_ema_decays: tuple[float, ...] = _output((), "decays of further averages, each saved as pipeline-ema-DECAY")
    checkpoint_every: int | None = _output(
        None, f"examples between checkpoints; {_EVERY}, and in one process every half hour", minimum=1
    )
    keep_checkpoints: int = _output(2, "number of checkpoints to keep", minimum=1)
    resume_from_checkpoint: str | None = _output(None, "'latest' (starts anew if there is none) or a checkpoint file")
    log_every: int = _output(5_000, "examples between lines of metrics.jsonl", minimum=1)
    report_to: Literal["none", "tensorboard", "wandb"] = _output("none", "tracker that also gets the figures")
    push_to_hub: bool = _output(False, "upload the pipeline at the end")
    hub_model_id: str | None = _output(None, "name or owner/name (default: the name of the output folder)")
    hub_private: bool = _output(False, "make a new repository private")
    hub_license: str | None = _output(None, "licence in the model card, e.g. cc-by-4.0; default: none")

    def __post_init__(self) -> None:
        check_values(self)
        for decay in self.more_ema_decays:
            if not 0 <= decay < 1 or self.more_ema_decays.count(decay) > 1:
                raise ValueError(f"more_ema_decays must be in [0, 1) and differ, got {self.more_ema_decays}")
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(f"report_to {self.report_to} needs the package: pip install {self.report_to}")
        if self.hub_model_id is not None and not self.push_to_hub:
            raise ValueError("hub_model_id needs push_to_hub (--push-to-hub)")

    def to_dict(self) -> dict[str, Any]:
        """Returns the options that were given or have a default, for JSON."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def check(self, preset: TrainingPreset, accelerator: Accelerator) -> None:
        """Checks what depends on the experiment and the machine, before any data is read."""
        on_cpu = accelerator.device.type == "cpu"
        if accelerator.mixed_precision == "fp16" and on_cpu:
            raise ValueError("mixed_precision must be 'no' or 'bf16' on the CPU, got 'fp16'")
        compiler = os.environ.get("CXX", "g++")
        if self.compile and on_cpu and shutil.which(compiler) is None:
            raise ValueError(f"compile needs a C++ compiler on the CPU (g++ or $CXX), got {compiler!r}, not found")
        parts = accelerator.num_processes * self.gradient_accumulation_steps
        if preset.batch_size < parts:
            raise ValueError(
                f"batch_size must be at least the number of processes times the accumulation steps, {parts}, "
                f"got {preset.batch_size}"
            )
        try:
            preset.build("scheduler").set_timesteps(self.validation_steps)
        except ValueError as error:
            raise ValueError(f"validation_steps: {error}") from error
        check_output(self.output, self.dataset, self.validation_dataset)


def resolve_experiment(
    options: TrainingOptions, pretrained: DiffusionAutoencoderPipeline | None = None
) -> TrainingPreset:
    """Returns the preset with the overrides of the JSON file, then of the options, then of `set`.

    Items of `set` are `KEY=VALUE` or `COMPONENT.KEY=VALUE`, with values in JSON or plain words. With `pretrained`, the
    networks and the noise schedule are those of that pipeline.
    """
    if options.preset is not None:
        preset = preset_named(options.preset)
    elif pretrained is not None:
        preset = TrainingPreset({}, {}, training_examples=1_000_000, warmup_examples=10_000)
    else:
        raise ValueError("preset or pretrained_model must be given")
    if pretrained is not None:
        own = {}
        for component in COMPONENTS:
            part = getattr(pretrained, component)
            config = (trained_scheduler(part) if component == "scheduler" else part).config
            own[component] = {name: value for name, value in config.items() if name in getattr(preset, component)}
        preset = preset.with_overrides({**own, "phase1_fraction": 0.0})
    if options.config is not None:
        overrides = read_json(options.config)
        preset = preset.with_overrides(overrides.get("experiment", overrides))
    if options.resolution is not None:
        preset = preset.at_resolution(options.resolution)
    given = options.to_dict()
    overrides = {field.name: given[field.name] for field in dataclasses.fields(preset) if field.name in given}
    for component in COMPONENTS:  # e.g. latent_dim, which encoder and decoder share
        overrides[component] = {name: given[name] for name in getattr(preset, component) if name in given}
    preset = preset.with_overrides(overrides)
    for assignment in options.set:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"set must be KEY=VALUE, got {assignment!r}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text  # a word needs no quotes
        component, dot, name = path.partition(".")
        preset = preset.with_overrides({component: {name: value} if dot else value})
    try:
        preset.validate()
    except TypeError as error:
        raise ValueError(f"encoder, decoder and scheduler must have arguments of the right types: {error}") from error
    if pretrained is not None:
        for component in ("encoder", "decoder"):
            for name, value in own[component].items():
                if name != "dropout" and getattr(preset, component)[name] != value:
                    raise ValueError(f"{component}.{name} must be {value!r}, as in the pretrained model")
    return preset
