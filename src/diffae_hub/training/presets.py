"""Training configurations: tables 6-8 of the paper, the official networks, small networks beyond the paper."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..data.transform import CROPS
from ..models.conditioned_unet_2d import ConditionedUNet2DModel
from ..models.semantic_encoder import SemanticEncoderModel
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler
from .optimizers import LEARNING_RATE_SCHEDULES, OPTIMIZERS

COMPONENTS = {"encoder": SemanticEncoderModel, "decoder": ConditionedUNet2DModel, "scheduler": VPDDIMScheduler}


@dataclass(frozen=True)
class TrainingPreset:
    """Networks, noise schedule and training of one experiment; `TrainingOptions` explains the plain fields.

    `encoder`, `decoder` and `scheduler` are arguments of the classes in `COMPONENTS`. Defaults fill in missing ones, so
    that the preset holds them all. A value that is out of range is a ValueError that names it.
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
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    horizontal_flip: bool = False
    crop: str = "center"

    def __post_init__(self) -> None:
        for name, kind in COMPONENTS.items():
            arguments = {key: argument.default for key, argument in inspect.signature(kind).parameters.items()}
            object.__setattr__(self, name, {**arguments, **getattr(self, name)})  # the class is frozen
        for name, fits, allowed in (
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("training_examples", self.training_examples >= 1, "at least 1"),
            ("warmup_examples", self.warmup_examples >= 0, "at least 0"),
            ("phase1_fraction", 0 <= self.phase1_fraction <= 1, "in [0, 1]"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "finite and above 0"),
            ("lr_scheduler", self.lr_scheduler in LEARNING_RATE_SCHEDULES, f"one of {LEARNING_RATE_SCHEDULES}"),
            ("optimizer", self.optimizer in OPTIMIZERS, f"one of {OPTIMIZERS}"),
            ("max_grad_norm", self.max_grad_norm > 0, "above 0"),
            ("ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)"),
            ("ema_warmup", self.ema_warmup in (True, False), "true or false"),
            ("horizontal_flip", self.horizontal_flip in (True, False), "true or false"),
            ("crop", self.crop in CROPS, f"one of {CROPS}"),
        ):
            if not fits:
                raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}")

    def validate(self) -> None:
        """Checks that networks and scheduler can be built and fit, without allocating any weights."""
        prediction_type = self.build_scheduler().config.prediction_type
        with torch.device("meta"):
            encoder, decoder = self.build_encoder().config, self.build_decoder().config
        for name in ("sample_size", "latent_dim", "in_channels"):
            if encoder[name] != decoder[name]:
                raise ValueError(
                    f"{name} must be the same for encoder and decoder, got {encoder[name]} and {decoder[name]}"
                )
        if decoder.in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 (grayscale) or 3 (RGB), got {decoder.in_channels}")
        if decoder.out_channels != decoder.in_channels:
            raise ValueError(f"out_channels must equal in_channels, {decoder.in_channels}, got {decoder.out_channels}")
        if prediction_type == "epsilon" and self.phase1_fraction > 0:  # at t = 1 the target is the input
            raise ValueError(f"phase1_fraction must be 0 with prediction_type 'epsilon', got {self.phase1_fraction}")

    def with_overrides(self, overrides: Mapping[str, Any]) -> TrainingPreset:
        """A copy with other values; those of `encoder`, `decoder` and `scheduler` are merged key by key."""
        values = dict(overrides)
        for name, value in overrides.items():
            if name in COMPONENTS:
                values[name] = {**getattr(self, name), **value}
            elif isinstance(value, float) and value.is_integer() and isinstance(getattr(self, name), int):
                values[name] = int(value)  # JSON's 64e6 is a float
        return dataclasses.replace(self, **values)

    def at_resolution(self, resolution: int) -> TrainingPreset:
        """A copy for images of another size. The feature map that the latent code is projected to grows with it."""
        decoder: dict[str, Any] = {"sample_size": resolution}
        before, spatial = self.decoder["sample_size"], self.decoder["latent_spatial_size"]
        if spatial is not None:
            if resolution * spatial % before:
                raise ValueError(f"resolution must be a multiple of {before // spatial}, got {resolution}")
            decoder["latent_spatial_size"] = resolution * spatial // before
        return self.with_overrides({"encoder": {"sample_size": resolution}, "decoder": decoder})

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


def _small(
    sample_size: int,
    patch_size: int,
    base_channels: int,
    channel_multipliers: tuple[int, ...],
    latent_spatial_size: int,
    encoder_multipliers: tuple[int, ...] | None = None,
    **training: Any,
) -> TrainingPreset:
    """Networks beyond the paper: at small sizes and budgets they reconstruct far better than its pooled code."""
    common = {
        "sample_size": sample_size,
        "patch_size": patch_size,
        "base_channels": base_channels,
        "channel_multipliers": channel_multipliers,
        "layers_per_block": 1,
        "attention_resolutions": (),
        "norm_num_groups": 8,
    }
    latent = {"latent_scale_shift": True, "latent_spatial_size": latent_spatial_size}
    return TrainingPreset(
        encoder={**common, "channel_multipliers": encoder_multipliers or channel_multipliers, "latent_head": "flatten"},
        decoder={**common, **latent, "dropout": 0.0, "time_embed_dim": 256},
        batch_size=64,
        learning_rate=1e-3,
        ema_decay=0.9995,
        **training,
    )


# A recipe that reached the paper's recipe's quality with a fifth of the examples in a pilot on CIFAR-10.
_MUON = {"optimizer": "muon", "lr_scheduler": "cosine", "warmup_examples": 5_000}

# Tables 6 and 7 give the networks of the paper. Where they leave something open (embedding width, MLP on the latent
# code, attention of CelebA's encoder) the choice is the one whose parameter count matches the tables' "Size".
_ENCODER_32 = {
    "base_channels": 128,
    "channel_multipliers": (1, 2, 4, 8),
    "layers_per_block": 2,
    "attention_resolutions": (16, 8, 4),
}
_DECODER_32 = {
    "layers_per_block": 3,
    "attention_resolutions": (16, 8),
    "time_embed_dim": 1024,
    "latent_mlp_layers": 2,
}


def _paper(sample_size: int, encoder: dict[str, Any], decoder: dict[str, Any], **training: Any) -> TrainingPreset:
    size, common = {"sample_size": sample_size}, {"time_embed_dim": 512, "latent_scale_shift": True}
    return TrainingPreset({**size, **encoder}, {**size, **common, **decoder}, **training)


def _official(
    sample_size: int, channel_multipliers: tuple[int, ...], base_channels: int = 128, **training: Any
) -> TrainingPreset:
    """The networks of the official code, whose encoder has one stage more, and its training of one phase."""
    common = {"sample_size": sample_size, "base_channels": base_channels}
    return TrainingPreset(
        encoder={**common, "channel_multipliers": (*channel_multipliers, channel_multipliers[-1])},
        decoder={**common, "channel_multipliers": channel_multipliers},
        scheduler={
            "noise_schedule": "linear_beta",
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "clip_sample": True,
        },
        phase1_fraction=0.0,
        warmup_examples=0,
        horizontal_flip=True,
        **training,
    )


PRESETS: dict[str, TrainingPreset] = {
    "cifar10-32-small": _small(  # the bundled model: one CPU core in two hours
        32, 1, 16, (1, 2, 4), 8, encoder_multipliers=(1, 2, 6), training_examples=560_000, warmup_examples=10_000
    ),
    "noto-emoji-64": _small(64, 2, 24, (1, 2, 4, 6), 4, training_examples=120_000, **_MUON),
    "small-64": _small(64, 2, 32, (1, 2, 4, 6), 4, training_examples=2_000_000, **_MUON),
    "small-128": _small(128, 4, 32, (1, 2, 4, 6), 4, training_examples=2_000_000, **_MUON),
    "small-256": _small(256, 4, 32, (1, 2, 4, 6, 6), 4, training_examples=2_000_000, **_MUON),
    "cifar10-32": _paper(
        32,
        _ENCODER_32,
        {**_DECODER_32, "base_channels": 256, "channel_multipliers": (1, 1, 1), "dropout": 0.2},
        batch_size=256,
    ),
    "celeba-64": _paper(
        64,
        {**_ENCODER_32, "attention_resolutions": (32, 16, 8, 4)},
        {
            "base_channels": 64,
            "channel_multipliers": (1, 2, 4, 8),
            "attention_resolutions": (32, 16, 8),
            "dropout": 0.1,
        },
        batch_size=192,
        training_examples=32_000_000,
        horizontal_flip=True,
        crop="d2c",
    ),
    "bedroom-128": _paper(
        128,
        {"base_channels": 128, "channel_multipliers": (1, 1, 2, 3, 4, 4)},
        {"base_channels": 128, "channel_multipliers": (1, 1, 2, 3, 4), "dropout": 0.1},
        batch_size=96,
        training_examples=32_000_000,
        warmup_examples=5_120,
    ),
    "imagenet-32": _paper(
        32,
        _ENCODER_32,
        {**_DECODER_32, "base_channels": 128, "channel_multipliers": (1, 2, 2, 2), "dropout": 0.3},
    ),
    "official-ffhq256": _official(256, (1, 1, 2, 2, 4, 4), batch_size=64, training_examples=200_000_000),
    "official-ffhq128": _official(128, (1, 1, 2, 3, 4), training_examples=130_000_000),
    "official-bedroom128": _official(128, (1, 1, 2, 3, 4), training_examples=120_000_000),
    "official-horse128": _official(128, (1, 1, 2, 3, 4), training_examples=130_000_000),
    "official-celeba64": _official(64, (1, 2, 4, 8), base_channels=64, training_examples=72_000_000, crop="d2c"),
}


def preset_named(name: str) -> TrainingPreset:
    """The preset of that name; the message of the ValueError lists those there are."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]
