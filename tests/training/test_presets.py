"""The presets against tables 6-8 of the paper and the measured official networks."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from diffae_hub.training.presets import PRESETS, preset_named


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
    preset = preset_named(name)
    preset.validate()
    restored = preset.with_overrides(json.loads(json.dumps(preset.to_dict())))
    restored.validate()
    assert json.loads(json.dumps(restored.to_dict())) == json.loads(json.dumps(preset.to_dict()))


def test_the_experiments_of_the_paper() -> None:
    """Preechakul et al., Hudson et al. and one-phase SC-4 differ from the two-phase preset by these overrides only."""
    two_phase = preset_named("cifar10-32")
    baseline = two_phase.with_overrides(
        {"phase1_fraction": 0.0, "scheduler": {"prediction_type": "epsilon", "noise_schedule": "linear_beta"}}
    )
    hudson = baseline.with_overrides({"scheduler": {"noise_schedule": "inverted"}})
    one_phase = two_phase.with_overrides({"phase1_fraction": 0})
    for preset in (baseline, hudson, one_phase):
        preset.validate()
        assert preset.encoder == two_phase.encoder
        assert preset.decoder == two_phase.decoder
    assert hudson.build_scheduler().config.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be an integer of at least 1, got 1.5"),
        ({"training_examples": True}, "training_examples must be an integer"),
        ({"warmup_examples": -1}, "warmup_examples must be an integer of at least 0, got -1"),
        ({"phase1_fraction": 1.1}, r"phase1_fraction must be a number in \[0, 1\], got 1.1"),
        ({"phase1_fraction": float("nan")}, "phase1_fraction must be a number"),
        ({"learning_rate": 0}, "learning_rate must be a number finite and above 0, got 0"),
        ({"learning_rate": "fast"}, "learning_rate must be a number finite and above 0, got 'fast'"),
        ({"max_grad_norm": -1}, "max_grad_norm must be a number above 0, got -1"),
        ({"ema_decay": 1}, r"ema_decay must be a number in \[0, 1\), got 1"),
        ({"horizontal_flip": "yes"}, "horizontal_flip must be true or false, got 'yes'"),
        ({"crop": "middle"}, "crop must be one of"),
        ({"epochs": 5}, "overrides must be among .* got 'epochs'"),
        ({"decoder": 5}, "decoder must be an object of arguments, got 5"),
        ({"decoder": {"width": 5}}, r"decoder must have arguments among .* got \['width'\]"),
        ({"decoder": {"base_channels": "wide"}}, "base_channels must be an integer of at least 1, got 'wide'"),
        ({"decoder": {"latent_dim": 64}}, "latent_dim must be the same for encoder and decoder, got 512 and 64"),
        ({"encoder": {"sample_size": 64}}, "sample_size must be the same for encoder and decoder, got 64 and 32"),
        ({"decoder": {"out_channels": 1}}, "out_channels must equal in_channels, 3, got 1"),
        ({"scheduler": {"noise_schedule": "cosine"}}, "noise_schedule must be one of"),
        ({"scheduler": {"scaling_factor": 0}}, "scaling_factor must be a finite number above 0, got 0"),
        ({"scheduler": {"prediction_type": "epsilon"}}, "phase1_fraction must be 0 with prediction_type 'epsilon'"),
    ],
)
def test_bad_values_are_named(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset_named("cifar10-32").with_overrides(overrides).validate()


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match=r"preset must be one of \[.*'cifar10-32'.*\], got 'cifar'"):
        preset_named("cifar")


def test_presets_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["cifar10-32"].batch_size = 1
