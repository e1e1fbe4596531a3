"""Training configurations: tables 6-8 of the paper, the official networks, small networks beyond the paper."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..data.transform import CROPS
from ..models.conditioned_unet_2d import ConditionedUNet2DModel
from ..models.semantic_encoder import SemanticEncoderModel
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler
from .optimizers import LEARNING_RATE_SCHEDULES, OPTIMIZERS

COMPONENTS = {"encoder": SemanticEncoderModel, "decoder": ConditionedUNet2DModel, "scheduler": VPDDIMScheduler}


def component_arguments(component: str) -> dict[str, Any]:
    """Every argument of a component's class with its default."""
    parameters = inspect.signature(COMPONENTS[component].__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def _field(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainingPreset:
    """Networks, noise schedule and training length of one experiment. Fields with a help text are flags, too.

    Args:
        encoder: Arguments of [`SemanticEncoderModel`]. As in the next two, defaults fill in missing arguments,
            so that the preset holds them all.
        decoder: Arguments of [`ConditionedUNet2DModel`].
        scheduler: Arguments of [`VPDDIMScheduler`].

    Raises:
        ValueError: If a value is out of range; the message names it.
    """

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    scheduler: dict[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = _field(128, "global: over all processes and accumulation steps")
    training_examples: int = _field(64_000_000, "length of the training, e.g. 64000000 or 64e6")
    warmup_examples: int = _field(128_000, "length of the learning rate's linear warm-up, in examples")
    phase1_fraction: float = _field(0.25, "share of the examples with t = 1, in [0, 1]; 0 is one-phase training")
    learning_rate: float = _field(1e-4, "the rate after the warm-up")
    lr_scheduler: Literal[*LEARNING_RATE_SCHEDULES] = _field(
        "constant", "what the rate does then: constant (the paper), the others fall to about 0"
    )
    optimizer: Literal[*OPTIMIZERS] = _field("adam", "adam is the paper's")
    max_grad_norm: float = _field(1.0, "the gradient of a step is scaled down to this norm")
    ema_decay: float = _field(0.9999, "decay of the averaged weights per optimizer step, in [0, 1)")
    ema_warmup: bool = _field(True, "the decay of step n is at most (1 + n) / (10 + n)")
    horizontal_flip: bool = _field(False, "flip images with probability 1/2")
    crop: Literal[*CROPS] = _field("center", "how an image becomes square; d2c: the official networks' crop of CelebA")

    def __post_init__(self) -> None:
        for component in COMPONENTS:
            resolved = {**component_arguments(component), **getattr(self, component)}
            object.__setattr__(self, component, resolved)  # the class is frozen
        whole = {"batch_size": 1, "training_examples": 1, "warmup_examples": 0}
        for name, minimum in whole.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < minimum:
                raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
        for name, allowed, holds in (
            ("phase1_fraction", "a number in [0, 1]", lambda value: 0 <= value <= 1),
            ("learning_rate", "a number, finite and above 0", lambda value: 0 < value < math.inf),
            ("max_grad_norm", "a number above 0", lambda value: value > 0),
            ("ema_decay", "a number in [0, 1)", lambda value: 0 <= value < 1),
            ("ema_warmup", "true or false", lambda value: value in (True, False)),
            ("horizontal_flip", "true or false", lambda value: value in (True, False)),
            ("crop", f"one of {CROPS}", CROPS.__contains__),
            ("optimizer", f"one of {OPTIMIZERS}", OPTIMIZERS.__contains__),
            ("lr_scheduler", f"one of {LEARNING_RATE_SCHEDULES}", LEARNING_RATE_SCHEDULES.__contains__),
        ):
            value = getattr(self, name)
            try:
                fits = holds(value)
            except TypeError:
                fits = False
            if not fits:
                raise ValueError(f"{name} must be {allowed}, got {value!r}")

    def validate(self) -> None:
        """Checks the networks' and the scheduler's arguments, and that they fit, without allocating any weights.

        Raises:
            ValueError: Names the argument. Noise prediction with a first phase is refused: at t = 1 its target is its
                own input, so that nothing is learned.
        """
        for component in COMPONENTS:
            known = sorted(component_arguments(component))
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
        if decoder.config.in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 (grayscale) or 3 (RGB), got {decoder.config.in_channels}")
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
            if name in COMPONENTS:
                if not isinstance(value, Mapping):
                    raise ValueError(f"{name} must be an object of arguments, got {value!r}")
                value = {**getattr(self, name), **value}
            # JSON's 64e6 is a float.
            whole = isinstance(getattr(self, name), int) and isinstance(value, float) and value.is_integer()
            values[name] = int(value) if whole else value
        return dataclasses.replace(self, **values)

    def at_resolution(self, resolution: int) -> TrainingPreset:
        """A copy for images of another size. The feature map that the latent code is projected to grows with it."""
        networks = {component: {"sample_size": resolution} for component in ("encoder", "decoder")}
        if self.decoder["latent_spatial_size"] is not None:
            scaled = self.decoder["latent_spatial_size"] * resolution / self.decoder["sample_size"]
            if not scaled.is_integer() or scaled < 1:
                raise ValueError(
                    "resolution must be a multiple of "
                    f"{self.decoder['sample_size'] // self.decoder['latent_spatial_size']} with this preset, "
                    f"got {resolution}"
                )
            networks["decoder"]["latent_spatial_size"] = int(scaled)
        return self.with_overrides(networks)

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
    "cifar10-32-small": _small(  # the bundled model: one CPU core in two hours
        32, 1, 16, (1, 2, 4), 8, encoder_multipliers=(1, 2, 6), training_examples=560_000, warmup_examples=10_000
    ),
    "noto-emoji-64": _small(64, 2, 24, (1, 2, 4, 6), 4, training_examples=150_000, **_MUON),
    "small-64": _small(64, 2, 32, (1, 2, 4, 6), 4, training_examples=2_000_000, **_MUON),
    "small-128": _small(128, 4, 32, (1, 2, 4, 6), 4, training_examples=2_000_000, **_MUON),
    "small-256": _small(256, 4, 32, (1, 2, 4, 6, 6), 4, training_examples=2_000_000, **_MUON),
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
