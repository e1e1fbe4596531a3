"""The presets against tables 6-8 of the paper and the measured official networks."""

from __future__ import annotations

import json

import pytest
import torch

from diffae_hub.training.presets import PRESETS, preset_named

from .runner import parsed


def parameter_counts(name: str) -> tuple[int, int]:
    """(decoder, encoder), counted without allocating them."""
    with torch.device("meta"):
        models = PRESETS[name].build_decoder(), PRESETS[name].build_encoder()
    return tuple(sum(p.numel() for p in model.parameters()) for model in models)


# Tables 6 and 7, "Size (MB)", in units of 1.024e6 bytes of float32 parameters.
@pytest.mark.parametrize(
    ("name", "decoder_size", "encoder_size"),
    [("cifar10-32", 265, 224), ("celeba-64", 316, 224), ("bedroom-128", 427, 96), ("imagenet-32", 296, 224)],
)
def test_sizes_of_tables_6_and_7(name: str, decoder_size: float, encoder_size: float) -> None:
    decoder, encoder = (4 * count / 1.024e6 for count in parameter_counts(name))
    assert decoder == pytest.approx(decoder_size, rel=0.008)
    assert encoder == pytest.approx(encoder_size, rel=0.012)


@pytest.mark.parametrize(
    ("name", "decoder", "encoder"),
    [
        ("official-ffhq256", 138_341_891, 30_150_400),
        ("official-ffhq128", 103_871_619, 24_673_536),
        ("official-bedroom128", 103_871_619, 24_673_536),
        ("official-horse128", 103_871_619, 24_673_536),
        ("official-celeba64", 71_518_723, 19_320_512),
    ],
)
def test_official_networks(name: str, decoder: int, encoder: int) -> None:
    assert parameter_counts(name) == (decoder, encoder)


@pytest.mark.parametrize(
    ("name", "batch_size", "training_examples", "warmup_examples"),
    [
        ("cifar10-32", 256, 64_000_000, 128_000),
        ("celeba-64", 192, 32_000_000, 128_000),
        ("bedroom-128", 96, 32_000_000, 5_120),
        ("imagenet-32", 128, 64_000_000, 128_000),
    ],
)
def test_table_8(name: str, batch_size: int, training_examples: int, warmup_examples: int) -> None:
    preset = PRESETS[name]
    assert preset.batch_size == batch_size
    assert preset.training_examples == training_examples
    assert preset.warmup_examples == warmup_examples
    assert (preset.learning_rate, preset.ema_decay, preset.phase1_fraction) == (1e-4, 0.9999, 0.25)
    scheduler = preset.build_scheduler().config
    assert (scheduler.noise_schedule, scheduler.scaling_factor) == ("shifted_cosine", 4.0)
    assert scheduler.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_valid_and_json(name: str) -> None:
    """And what is built has the configuration that the preset says, and none beside it."""
    preset = preset_named(name)
    preset.validate()
    plain = json.loads(json.dumps(preset.to_dict()))
    assert json.loads(json.dumps(preset.with_overrides(plain).to_dict())) == plain
    for component in ("encoder", "decoder", "scheduler"):
        with torch.device("cpu" if component == "scheduler" else "meta"):
            saved = json.loads(getattr(preset, f"build_{component}")().to_json_string())
        assert {key: value for key, value in saved.items() if not key.startswith("_")} == plain[component]


# Table 1: three predictions on SC-4. Table 2: x and v, linear-beta and SC-1, 2, 4, 8. Both of 32M examples, one phase.
# Table 3: SC-4 in one phase, t = 1 only, and two phases with SC-2, 4, 8 and 16.
@pytest.mark.parametrize(
    ("flags", "scheduler", "fraction"),
    [
        ("--prediction_type epsilon --phase1_fraction 0", ("epsilon", "shifted_cosine", 4), 0),
        *(
            (f"--prediction_type {kind} --scaling_factor {s} --phase1_fraction 0", (kind, "shifted_cosine", s), 0)
            for kind in ("sample", "v_prediction")
            for s in (1, 2, 4, 8)
        ),
        *(
            (f"--prediction_type {kind} --noise_schedule linear_beta --phase1_fraction 0", (kind, "linear_beta", 4), 0)
            for kind in ("epsilon", "sample", "v_prediction")
        ),
        *((f"--scaling_factor {s}", ("v_prediction", "shifted_cosine", s), 0.25) for s in (2, 4, 8, 16)),
        ("--phase1_fraction 1", ("v_prediction", "shifted_cosine", 4), 1),
    ],
)
def test_rows_of_tables_1_to_3(flags: str, scheduler: tuple[str, str, float], fraction: float) -> None:
    argv = ["--preset=cifar10-32", "--dataset=x", "--output_dir=y", "--training_examples=32000000", *flags.split()]
    _, preset = parsed(argv)
    config = preset.build_scheduler().config
    assert (config.prediction_type, config.noise_schedule, config.scaling_factor) == scheduler
    assert preset.training_examples == 32_000_000
    assert preset.phase1_fraction == fraction


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"warmup_examples": -1}, "warmup_examples"),
        ({"phase1_fraction": 1.1}, "phase1_fraction"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"max_grad_norm": -1}, "max_grad_norm"),
        ({"ema_decay": 1}, "ema_decay"),
        ({"horizontal_flip": "yes"}, "horizontal_flip"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"epochs": 5}, "epochs"),
        ({"decoder": {"width": 5}}, "width"),
        ({"decoder": {"latent_dim": 64}}, "latent_dim"),
        ({"encoder": {"sample_size": 64}}, "sample_size"),
        ({"decoder": {"out_channels": 1}}, "out_channels"),
        ({"scheduler": {"noise_schedule": "cosine"}}, "noise_schedule"),
        ({"scheduler": {"prediction_type": "epsilon"}}, "phase1_fraction"),
    ],
)
def test_bad_values_are_named(overrides: dict, name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        preset_named("cifar10-32").with_overrides(overrides).validate()


def test_whole_numbers_may_be_written_as_json_writes_large_ones() -> None:
    preset = preset_named("cifar10-32").with_overrides(json.loads('{"training_examples": 64e6, "learning_rate": 1.0}'))
    assert (type(preset.training_examples), preset.training_examples) == (int, 64_000_000)
    assert type(preset.learning_rate) is float


# The small ones beyond the paper, in millions.
@pytest.mark.parametrize(
    ("name", "decoder", "encoder"),
    [
        ("cifar10-32-small", 3.77, 3.40),
        ("noto-emoji-64", 7.84, 1.95),
        ("small-64", 12.19, 2.94),
        ("small-128", 12.21, 2.95),
        ("small-256", 17.83, 3.62),
    ],
)
def test_small_networks(name: str, decoder: float, encoder: float) -> None:
    assert [round(count / 1e6, 2) for count in parameter_counts(name)] == [decoder, encoder]
