"""The presets against tables 6-8 of the paper and the measured official networks."""

import json
from dataclasses import asdict

import pytest
import torch

from diffae_hub.training.presets import PRESETS, preset_named


# Of tables 6 and 7, "Size (MB)" in units of 1.024e6 bytes of float32 parameters; measured, of the official networks; of
# the small ones beyond the paper.
@pytest.mark.parametrize(
    ("name", "decoder", "encoder", "tolerance"),
    [
        *(
            (name, decoder * 0.256e6, encoder * 0.256e6, 0.012)
            for name, decoder, encoder in (
                ("cifar10-32", 265, 224),
                ("celeba-64", 316, 224),
                ("bedroom-128", 427, 96),
                ("imagenet-32", 296, 224),
            )
        ),
        ("official-ffhq256", 138_341_891, 30_150_400, 0),
        *((f"official-{name}128", 103_871_619, 24_673_536, 0) for name in ("ffhq", "bedroom", "horse")),
        ("official-celeba64", 71_518_723, 19_320_512, 0),
        ("cifar10-32-small", 3.77e6, 3.40e6, 0.003),
        ("noto-emoji-64", 7.84e6, 1.95e6, 0.003),
        ("small-64", 12.19e6, 2.94e6, 0.003),
        ("small-128", 12.21e6, 2.95e6, 0.003),
        ("small-256", 17.83e6, 3.62e6, 0.003),
    ],
)
def test_sizes(name: str, decoder: float, encoder: float, tolerance: float) -> None:
    """Parameters are counted without allocating the networks."""
    with torch.device("meta"):
        models = PRESETS[name].build("decoder"), PRESETS[name].build("encoder")
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert counts == pytest.approx([decoder, encoder], rel=tolerance)


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("cifar10-32", (256, 64_000_000, 128_000)),
        ("celeba-64", (192, 32_000_000, 128_000)),
        ("bedroom-128", (96, 32_000_000, 5_120)),
        ("imagenet-32", (128, 64_000_000, 128_000)),
    ],
)
def test_table_8(name: str, lengths: tuple[int, int, int]) -> None:
    preset = PRESETS[name]
    assert (preset.batch_size, preset.training_examples, preset.warmup_examples) == lengths
    assert (preset.learning_rate, preset.ema_decay, preset.phase1_fraction) == (1e-4, 0.9999, 0.25)
    scheduler = preset.build("scheduler").config
    assert (scheduler.noise_schedule, scheduler.scaling_factor) == ("shifted_cosine", 4.0)
    assert scheduler.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_valid_and_json(name: str) -> None:
    """What is built has exactly the configuration of the preset."""
    preset = preset_named(name)
    preset.validate()
    plain = json.loads(json.dumps(asdict(preset)))
    assert json.loads(json.dumps(asdict(preset.with_overrides(plain)))) == plain
    for component in ("encoder", "decoder", "scheduler"):
        with torch.device("cpu" if component == "scheduler" else "meta"):
            saved = json.loads(preset.build(component).to_json_string())
        assert {key: value for key, value in saved.items() if not key.startswith("_")} == plain[component]


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
        ({"loss_weighting": "alpha"}, "loss_weighting"),
        ({"epochs": 5}, "epochs"),
        ({"decoder": {"width": 5}}, "width"),
        ({"decoder": {"latent_dim": 64}}, "latent_dim"),
        ({"encoder": {"sample_size": 64}}, "sample_size"),
        ({"decoder": {"out_channels": 1}}, "out_channels"),
        ({"decoder": {"dropout": 2}}, "dropout"),
        ({"encoder": {"in_channels": 4}, "decoder": {"in_channels": 4, "out_channels": 4}}, "in_channels"),
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
