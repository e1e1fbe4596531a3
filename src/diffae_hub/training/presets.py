"""Training configurations: tables 6-8 of the paper, the official networks, and small ones beyond the paper."""

import dataclasses
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ..data.transform import CROPS
from ..models.conditioned_unet_2d import ConditionedUNet2DModel
from ..models.semantic_encoder import SemanticEncoderModel
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler
from .objective import LOSS_WEIGHTINGS
from .optimizers import LEARNING_RATE_SCHEDULES, OPTIMIZERS

COMPONENTS = {"encoder": SemanticEncoderModel, "decoder": ConditionedUNet2DModel, "scheduler": VPDDIMScheduler}


@dataclass(frozen=True)
class TrainingPreset:
    """Networks, noise schedule and training of one experiment; `TrainingOptions` explains the plain fields.

    `encoder`, `decoder` and `scheduler` are arguments of the classes in `COMPONENTS`. Missing ones get their
    defaults, so that the preset holds all of them. Raises ValueError for a value that is out of range.
    """

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    scheduler: dict[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = 128
    training_examples: int = 64_000_000
    warmup_examples: int = 128_000
    phase1_fraction: float = 0.25
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    optimizer: str = "adam"
    loss_weighting: str = "none"
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    horizontal_flip: bool = False
    crop: str = "center"

    def __post_init__(self) -> None:
        for name, kind in COMPONENTS.items():
            arguments = {key: argument.default for key, argument in inspect.signature(kind).parameters.items()}
            object.__setattr__(self, name, {**arguments, **getattr(self, name)})  # the class is frozen
        for field in dataclasses.fields(self)[len(COMPONENTS) :]:
            value, kind = getattr(self, field.name), type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"{field.name} must be of type {kind.__name__}, got {value!r}")
        for name, fits, allowed in (
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("training_examples", self.training_examples >= 1, "at least 1"),
            ("warmup_examples", self.warmup_examples >= 0, "at least 0"),
            ("phase1_fraction", 0 <= self.phase1_fraction <= 1, "in [0, 1]"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "finite and above 0"),
            ("lr_scheduler", self.lr_scheduler in LEARNING_RATE_SCHEDULES, f"one of {LEARNING_RATE_SCHEDULES}"),
            ("optimizer", self.optimizer in OPTIMIZERS, f"one of {OPTIMIZERS}"),
            ("loss_weighting", self.loss_weighting in LOSS_WEIGHTINGS, f"one of {LOSS_WEIGHTINGS}"),
            ("max_grad_norm", self.max_grad_norm > 0, "above 0"),
            ("ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)"),
            ("crop", self.crop in CROPS, f"one of {CROPS}"),
        ):
            if not fits:
                raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}")

    def validate(self) -> None:
        """Checks that networks and scheduler can be built and fit together, without allocating weights."""
        prediction_type = self.build("scheduler").config.prediction_type
        with torch.device("meta"):
            encoder, decoder = self.build("encoder").config, self.build("decoder").config
        for name in ("sample_size", "latent_dim", "in_channels"):
            if encoder[name] != decoder[name]:
                raise ValueError(f"{name} of the encoder must be the decoder's {decoder[name]}, got {encoder[name]}")
        if decoder.in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 (grayscale) or 3 (RGB), got {decoder.in_channels}")
        if decoder.out_channels != decoder.in_channels:
            raise ValueError(f"out_channels must equal in_channels, {decoder.in_channels}, got {decoder.out_channels}")
        if prediction_type == "epsilon" and self.phase1_fraction > 0:  # at t = 1 the target is the input
            raise ValueError(f"phase1_fraction must be 0 with prediction_type 'epsilon', got {self.phase1_fraction}")

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """Returns a copy with other values; those of `encoder`, `decoder` and `scheduler` are merged key by key."""
        values, names = dict(overrides), [field.name for field in dataclasses.fields(self)]
        for name, value in overrides.items():
            if name not in names:
                raise ValueError(f"{name} must be one of {names}")
            if name in COMPONENTS:
                if not isinstance(value, Mapping):
                    raise ValueError(f"{name} must be set by arguments, as in {name}.NAME=VALUE, got {value!r}")
                values[name] = {**getattr(self, name), **value}
            elif isinstance(value, float) and value.is_integer() and isinstance(getattr(self, name), int):
                values[name] = int(value)  # JSON's 64e6 is a float
        return dataclasses.replace(self, **values)

    def at_resolution(self, resolution: int) -> Self:
        """Returns a copy for images of another size. The feature map of the latent code grows with it."""
        decoder: dict[str, Any] = {"sample_size": resolution}
        before, spatial = self.decoder["sample_size"], self.decoder["latent_spatial_size"]
        if spatial is not None:
            if resolution * spatial % before:
                raise ValueError(f"resolution must be a multiple of {before // spatial}, got {resolution}")
            decoder["latent_spatial_size"] = resolution * spatial // before
        return self.with_overrides({"encoder": {"sample_size": resolution}, "decoder": decoder})

    def build(self, component: str) -> Any:
        """Builds the "encoder" or "decoder", with random weights, or the "scheduler"."""
        return COMPONENTS[component](**getattr(self, component))


# The file holds only what differs from the defaults above. "cifar10-32", "celeba-64", "bedroom-128" and "imagenet-32"
# have the networks of tables 6 and 7. What the tables leave open (embedding width, MLP on the latent code, attention of
# CelebA's encoder) is chosen to match the parameter counts of "Size". "official-..." have the official code's networks.
# The others go beyond the paper: at small sizes and budgets they reconstruct far better than its pooled code.
PRESETS: dict[str, TrainingPreset] = {
    name: TrainingPreset(**values)
    for name, values in json.loads(Path(__file__).with_name("presets.json").read_text()).items()
}


def preset_named(name: str) -> TrainingPreset:
    """Returns the preset of that name, or raises ValueError with the names of all presets."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]
