"""Command lines of `diffae-hub train`: what is refused, and what the defaults are."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from .runner import arguments, parsed

BAD_COMMAND_LINES = [  # flags, and the word that the message must have
    ("--preset=cifar", "preset"),
    ("--training-examples=1.5", "--training-examples"),
    ("--output=", "--output"),
    ("--seed=-1", "seed"),
    ("--more-ema-decays=1", "more_ema_decays"),
    ("--compile", "no-such-compiler"),
    ("--gradient-accumulation-steps=17", "batch_size"),
    ("--prediction-type=epsilon --dataset=nowhere", "phase1_fraction"),  # before any data is read
    ("--prediction-type=noise", "--prediction-type"),
    ("--scaling-factor=-1", "scaling_factor"),
    ("--set=batch_size=8.5", "batch_size"),
    ("--set=learning_rate=null", "learning_rate"),
    ("--set=horizontal_flip=1", "horizontal_flip"),
    ("--hub-model-id=me/x", "hub_model_id"),
    ("--set=decoder.dropout", "set"),
    ("--set=decoder=5", "decoder"),
    ("--set=decoder.base_channels=[1]", "decoder"),
    ("--config=nowhere.json", "nowhere.json"),
    ("--validation-steps=1001", "validation_steps"),
    ("--validation-steps=60 --set=scheduler.timestep_spacing=leading", "validation_steps"),
    ("--keep-checkpoints=0", "keep_checkpoints"),
    ("--mixed-precision=fp16", "mixed_precision"),
    ("--resume-from-checkpoint=nowhere", "resume_from_checkpoint"),
    ("--dataset=nowhere", "dataset"),
    ("--pretrained-model=nowhere", "nowhere"),
    pytest.param(
        "--report-to=wandb", "wandb", marks=pytest.mark.skipif(bool(find_spec("wandb")), reason="it is there")
    ),
]


@pytest.mark.parametrize(("flags", "word"), BAD_COMMAND_LINES)
def test_bad_command_lines(
    image_folder: Path, tmp_path: Path, refusal, monkeypatch, on_cpu: None, flags: str, word: str
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert word in refusal("train", *arguments(image_folder, tmp_path / "run", *flags.split()))
    assert not (tmp_path / "run").exists()


def test_no_preset_and_an_output_among_the_data_are_refused(image_folder: Path, refusal, on_cpu: None) -> None:
    output = f"--output={image_folder / 'run'}"
    assert "pretrained_model" in refusal("train", "--dataset=x", output)
    assert str(image_folder) in refusal("train", *arguments(image_folder, image_folder.parent / "run"), output)
    assert not (image_folder / "run").exists()


def test_one_flag_scales_a_small_preset() -> None:
    argv = ["--preset=cifar10-32-small", "--dataset=x", "--output=y"]
    for resolution, size in ((32, 8), (64, 16), (48, 12)):
        _, preset = parsed([*argv, f"--resolution={resolution}"])
        assert preset.encoder["sample_size"] == preset.decoder["sample_size"] == resolution
        assert preset.decoder["latent_spatial_size"] == size
    with pytest.raises(ValueError, match="resolution"):
        parsed([*argv, "--resolution=30"])
    for name in ("small-64", "small-128", "small-256"):
        _, preset = parsed([f"--preset={name}", *argv[1:], "--resolution=192"])
        assert preset.build("decoder").config.sample_size == 192


def test_large_numbers_and_a_folder_below_the_home_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for flag in ("--output", "--output-dir", "--output_dir"):
        options, preset = parsed(["--preset=cifar10-32", "--dataset=x", "--training_examples=32e6", f"{flag}=~/run"])
        assert options.output == tmp_path / "run"
        assert preset.training_examples == 32_000_000
