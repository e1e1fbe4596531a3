"""Training configurations: tables 6-8 of the paper, the official networks, the bundled model. One dataclass each."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..data.transform import CROPS
from ..models.conditioned_unet_2d import ConditionedUNet2DModel
from ..models.semantic_encoder import SemanticEncoderModel
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler
from .optimizers import LEARNING_RATE_SCHEDULES, OPTIMIZERS

_COMPONENTS = {"encoder": SemanticEncoderModel, "decoder": ConditionedUNet2DModel, "scheduler": VPDDIMScheduler}


def _defaults(component: str) -> dict[str, Any]:
    """Every argument of a component's class with its default."""
    parameters = inspect.signature(_COMPONENTS[component].__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


@dataclass(frozen=True)
class TrainingPreset:
    """Networks, noise schedule and training length of one experiment.

    Args:
        encoder: Arguments of [`SemanticEncoderModel`]. As in the next two, defaults fill in missing arguments,
            so that the preset holds them all.
        decoder: Arguments of [`ConditionedUNet2DModel`].
        scheduler: Arguments of [`VPDDIMScheduler`].
        batch_size: Global batch, over all processes and accumulation steps.
        training_examples: Length of the training, in examples.
        warmup_examples: Length of the learning-rate warm-up, in examples.
        phase1_fraction: Share of the training with t fixed at 1, in [0, 1]; 0 is one-phase training.
        learning_rate: The rate after the warm-up.
        lr_scheduler: What the rate does then: "constant" (the paper), "linear", "cosine" or "polynomial", to about 0.
        optimizer: "adam" (the paper), "adamw" or "muon".
        max_grad_norm: The gradient of a step is scaled down to this norm.
        ema_decay: Decay of the averaged weights, per optimizer step, in [0, 1).
        ema_warmup: Whether the decay of step n is at most (1 + n) / (10 + n).
        horizontal_flip: Whether images are flipped with probability 1/2.
        crop: How an image becomes square: "center", "random", or "d2c", the official networks' crop of CelebA.

    Raises:
        ValueError: If a value is out of range; the message names it.
    """

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    scheduler: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 128
    training_examples: int = 64_000_000
    warmup_examples: int = 128_000
    phase1_fraction: float = 0.25
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    optimizer: str = "adam"
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    horizontal_flip: bool = False
    crop: str = "center"

    def __post_init__(self) -> None:
        for component in _COMPONENTS:
            resolved = {**_defaults(component), **getattr(self, component)}
            object.__setattr__(self, component, resolved)  # the class is frozen
        for name, minimum in (("batch_size", 1), ("training_examples", 1), ("warmup_examples", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
        for name, allowed, holds in (
            ("phase1_fraction", "in [0, 1]", lambda value: 0 <= value <= 1),
            ("learning_rate", "finite and above 0", lambda value: 0 < value < math.inf),
            ("max_grad_norm", "above 0", lambda value: value > 0),
            ("ema_decay", "in [0, 1)", lambda value: 0 <= value < 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not holds(value):
                raise ValueError(f"{name} must be a number {allowed}, got {value!r}")
        for name in ("ema_warmup", "horizontal_flip"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name, choices in (
            ("crop", CROPS),
            ("optimizer", OPTIMIZERS),
            ("lr_scheduler", LEARNING_RATE_SCHEDULES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")

    def validate(self) -> None:
        """Checks the networks' and the scheduler's arguments, and that they fit, without allocating any weights.

        Raises:
            ValueError: Names the argument. Noise prediction with a first phase is refused: at t = 1 its target is its
                own input, so that nothing is learned.
        """
        for component in _COMPONENTS:
            known = sorted(_defaults(component))
            unknown = sorted(set(getattr(self, component)) - set(known))
            if unknown:
                raise ValueError(f"{component} must have arguments among {known}, got {unknown}")
        try:
            scheduler = self.build_scheduler()
            with torch.device("meta"):
                encoder, decoder = self.build_encoder(), self.build_decoder()
        except TypeError as error:
            raise ValueError(f"encoder, decoder and scheduler must have arguments of their types: {error}") from error
        for name in ("sample_size", "latent_dim", "in_channels"):
            values = getattr(encoder.config, name), getattr(decoder.config, name)
            if values[0] != values[1]:
                raise ValueError(f"{name} must be the same for encoder and decoder, got {values[0]} and {values[1]}")
        if decoder.config.out_channels != decoder.config.in_channels:
            raise ValueError(
                f"out_channels must equal in_channels, {decoder.config.in_channels}, got {decoder.config.out_channels}"
            )
        if scheduler.config.prediction_type == "epsilon" and self.phase1_fraction > 0:
            raise ValueError(
                "phase1_fraction must be 0 with prediction_type 'epsilon' (at t = 1 the target is the input), "
                f"got {self.phase1_fraction}"
            )

    def with_overrides(self, overrides: Mapping[str, Any]) -> TrainingPreset:
        """A copy with other values; those of `encoder`, `decoder` and `scheduler` are merged key by key.

        Raises:
            ValueError: If a key is unknown or a value is out of range.
        """
        known = [field.name for field in dataclasses.fields(self)]
        values = {}
        for name, value in overrides.items():
            if name not in known:
                raise ValueError(f"overrides must be among {known}, got {name!r}")
            if name in _COMPONENTS:
                if not isinstance(value, Mapping):
                    raise ValueError(f"{name} must be an object of arguments, got {value!r}")
                value = {**getattr(self, name), **value}
            # JSON's 64e6 is a float.
            whole = isinstance(getattr(self, name), int) and isinstance(value, float) and value.is_integer()
            values[name] = int(value) if whole else value
        return dataclasses.replace(self, **values)

    def build_encoder(self) -> SemanticEncoderModel:
        """A new encoder with random weights."""
        return SemanticEncoderModel(**self.encoder)

    def build_decoder(self) -> ConditionedUNet2DModel:
        """A new decoder with random weights."""
        return ConditionedUNet2DModel(**self.decoder)

    def build_scheduler(self) -> VPDDIMScheduler:
        """The noise schedule and sampler."""
        return VPDDIMScheduler(**self.scheduler)

    def to_dict(self) -> dict[str, Any]:
        """As plain containers, for JSON."""
        return dataclasses.asdict(self)


def _paper_decoder(**overrides: Any) -> dict[str, Any]:
    return {"time_embed_dim": 512, "latent_scale_shift": True, **overrides}


# Tables 6 and 7 give the networks of the paper. Where they leave something open (embedding width, MLP on the latent
# code, attention of CelebA's encoder) the choice is the one whose parameter count matches the tables' "Size".
_ENCODER_32 = {
    "base_channels": 128,
    "channel_multipliers": (1, 2, 4, 8),
    "layers_per_block": 2,
    "attention_resolutions": (16, 8, 4),
}
_OFFICIAL_SCHEDULER = {
    "noise_schedule": "linear_beta",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "clip_sample": True,
}
_OFFICIAL_TRAINING = {
    "scheduler": _OFFICIAL_SCHEDULER,
    "phase1_fraction": 0.0,
    "warmup_examples": 0,
    "horizontal_flip": True,
}

PRESETS: dict[str, TrainingPreset] = {
    # The bundled model: small enough to be trained on one CPU core in two hours. It uses the two options beyond the
    # paper, because at this size and budget they reconstruct far better (the figures are in its model card).
    "cifar10-32-small": TrainingPreset(
        encoder={
            "sample_size": 32,
            "base_channels": 16,
            "channel_multipliers": (1, 2, 6),
            "layers_per_block": 1,
            "attention_resolutions": (),
            "norm_num_groups": 8,
            "latent_head": "flatten",
        },
        decoder={
            "sample_size": 32,
            "base_channels": 16,
            "channel_multipliers": (1, 2, 4),
            "layers_per_block": 1,
            "attention_resolutions": (),
            "norm_num_groups": 8,
            "dropout": 0.0,
            "time_embed_dim": 256,
            "latent_scale_shift": True,
            "latent_spatial_size": 8,
        },
        batch_size=64,
        training_examples=560_000,
        warmup_examples=10_000,
        learning_rate=1e-3,
        ema_decay=0.9995,
    ),
    "cifar10-32": TrainingPreset(
        encoder={"sample_size": 32, **_ENCODER_32},
        decoder=_paper_decoder(
            sample_size=32,
            base_channels=256,
            channel_multipliers=(1, 1, 1),
            layers_per_block=3,
            attention_resolutions=(16, 8),
            dropout=0.2,
            time_embed_dim=1024,
            latent_mlp_layers=2,
        ),
        batch_size=256,
        training_examples=64_000_000,
    ),
    "celeba-64": TrainingPreset(
        encoder={"sample_size": 64, **_ENCODER_32, "attention_resolutions": (32, 16, 8, 4)},
        decoder=_paper_decoder(
            sample_size=64,
            base_channels=64,
            channel_multipliers=(1, 2, 4, 8),
            attention_resolutions=(32, 16, 8),
            dropout=0.1,
        ),
        batch_size=192,
        training_examples=32_000_000,
        horizontal_flip=True,
        crop="d2c",
    ),
    "bedroom-128": TrainingPreset(
        encoder={"sample_size": 128, "base_channels": 128, "channel_multipliers": (1, 1, 2, 3, 4, 4)},
        decoder=_paper_decoder(sample_size=128, base_channels=128, channel_multipliers=(1, 1, 2, 3, 4), dropout=0.1),
        batch_size=96,
        training_examples=32_000_000,
        warmup_examples=5_120,
    ),
    "imagenet-32": TrainingPreset(
        encoder={"sample_size": 32, **_ENCODER_32},
        decoder=_paper_decoder(
            sample_size=32,
            base_channels=128,
            channel_multipliers=(1, 2, 2, 2),
            layers_per_block=3,
            attention_resolutions=(16, 8),
            dropout=0.3,
            time_embed_dim=1024,
            latent_mlp_layers=2,
        ),
        batch_size=128,
        training_examples=64_000_000,
    ),
    "official-ffhq256": TrainingPreset(
        encoder={"sample_size": 256, "channel_multipliers": (1, 1, 2, 2, 4, 4, 4)},
        decoder={"sample_size": 256, "channel_multipliers": (1, 1, 2, 2, 4, 4)},
        batch_size=64,
        training_examples=200_000_000,
        **_OFFICIAL_TRAINING,
    ),
    **{
        f"official-{name}": TrainingPreset(
            encoder={"sample_size": 128, "channel_multipliers": (1, 1, 2, 3, 4, 4)},
            decoder={"sample_size": 128, "channel_multipliers": (1, 1, 2, 3, 4)},
            batch_size=128,
            training_examples=training_examples,
            **_OFFICIAL_TRAINING,
        )
        for name, training_examples in (
            ("ffhq128", 130_000_000),
            ("bedroom128", 120_000_000),
            ("horse128", 130_000_000),
        )
    },
    "official-celeba64": TrainingPreset(
        encoder={"sample_size": 64, "base_channels": 64, "channel_multipliers": (1, 2, 4, 8, 8)},
        decoder={"sample_size": 64, "base_channels": 64, "channel_multipliers": (1, 2, 4, 8)},
        batch_size=128,
        training_examples=72_000_000,
        crop="d2c",
        **_OFFICIAL_TRAINING,
    ),
}


def preset_named(name: str) -> TrainingPreset:
    """The preset of that name.

    Raises:
        ValueError: If there is none; the message lists those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]
