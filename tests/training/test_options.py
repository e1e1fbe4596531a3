"""Command lines of `diffae-hub train`: what is refused, and what the defaults are."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from diffae_hub.cli.main import main

from .runner import SCRIPT, arguments, parsed

CHANNELS = ("encoder.in_channels", "decoder.in_channels", "decoder.out_channels")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision of another test in this process


BAD_COMMAND_LINES = [  # flags, and the word that the message must have
    ("--preset=cifar", "preset"),
    ("--training-examples=inf", "--training-examples"),
    ("--training-examples=1.5", "--training-examples"),
    ("--output=", "--output"),
    ("--seed=9223372036854775808", "seed"),
    ("--seed=-1", "seed"),
    ("--batch-size=many", "--batch-size"),
    ("--batch_size=0", "batch_size"),
    ("--gradient-accumulation-steps=17", "batch_size"),
    ("--phase1-fraction=2", "phase1_fraction"),
    ("--prediction-type=epsilon", "phase1_fraction"),
    ("--prediction-type=noise", "--prediction-type"),
    ("--scaling-factor=-1", "scaling_factor"),
    ("--set=decoder.dropout", "set"),
    ("--set=decoder.dropout=2", "dropout"),
    ("--set=epochs=2", "epochs"),
    ("--latent-dim=0", "latent_dim"),
    ("--config=nowhere.json", "config"),
    ("--validation-steps=0", "validation_steps"),
    ("--validation-steps=1001", "validation_steps"),
    ("--keep-checkpoints=0", "keep_checkpoints"),
    ("--mixed-precision=fp16", "mixed_precision"),
    ("--hub-license=My", "hub_license"),
    (" ".join(f"--set={part}=4" for part in CHANNELS), "in_channels"),
    ("--unknown", "--unknown"),
    ("--resume-from-checkpoint=nowhere", "resume_from_checkpoint"),
    ("--dataset=nowhere", "dataset"),
    ("--pretrained-model=nowhere", "nowhere"),
]


@pytest.mark.parametrize(("flags", "word"), BAD_COMMAND_LINES, ids=[flags for flags, _ in BAD_COMMAND_LINES])
def test_bad_command_lines(image_folder: Path, tmp_path: Path, capsys, flags: str, word: str) -> None:
    """Exit code 2, one line on stderr, no traceback, nothing trained."""
    assert main(["train", *arguments(image_folder, tmp_path / "run", *flags.split())]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert word in line
    assert not (tmp_path / "run").exists()


def test_neither_preset_nor_model(tmp_path: Path, capsys) -> None:
    assert main(["train", "--dataset=x", f"--output={tmp_path}"]) == 2
    assert "pretrained_model" in capsys.readouterr().err


def test_a_bad_experiment_is_refused_before_data_is_read(tmp_path: Path, capsys) -> None:
    argv = arguments(tmp_path / "no such folder", tmp_path / "run", "--prediction-type=epsilon")
    assert main(["train", *argv]) == 2
    assert "phase1_fraction" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_defaults_that_depend_on_the_experiment(tmp_path: Path) -> None:
    for flag, every in (("--training-examples=64e6", 640_000), ("--training_examples=560_000", 100_000)):
        options, preset = parsed(["--preset=cifar10-32", "--dataset=x", f"--output={tmp_path}", flag])
        options = options.for_experiment(preset)
        assert options.checkpoint_every == options.validation_every == every


def test_one_flag_scales_a_small_preset() -> None:
    for resolution, size in ((32, 8), (64, 16), (48, 12)):
        argv = ["--preset=cifar10-32-small", "--dataset=x", "--output=y", f"--resolution={resolution}"]
        _, preset = parsed(argv)
        assert preset.encoder["sample_size"] == preset.decoder["sample_size"] == resolution
        assert preset.decoder["latent_spatial_size"] == size
    with pytest.raises(ValueError, match="resolution"):
        parsed(["--preset=cifar10-32-small", "--dataset=x", "--output=y", "--resolution=30"])


def test_an_output_among_the_data_is_refused(image_folder: Path, capsys) -> None:
    argv = [*arguments(image_folder, image_folder.parent / "run"), f"--output={image_folder / 'run'}"]
    assert main(["train", *argv]) == 2
    assert str(image_folder) in capsys.readouterr().err
    assert not (image_folder / "run").exists()


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed(image_folder: Path, tmp_path: Path, capsys) -> None:
    assert main(["train", *arguments(image_folder, tmp_path / "run", "--report-to=wandb")]) == 2
    assert "wandb" in capsys.readouterr().err


def test_compiling_without_a_compiler(image_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["train", *arguments(image_folder, tmp_path / "run", "--compile")]) == 2
    assert "no-such-compiler" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"experiment": 3}', "[]", "{"])
def test_a_config_of_another_shape(tmp_path: Path, capsys, content: str) -> None:
    config = tmp_path / "config.json"
    config.write_text(content)
    argv = ["--preset=cifar10-32", f"--config={config}", "--dataset=x", f"--output={tmp_path / 'run'}"]
    assert main(["train", *argv]) == 2
    assert "config" in capsys.readouterr().err


def test_flags_have_the_presets_choices_and_help(capsys) -> None:
    with pytest.raises(SystemExit) as exit_information:
        main(["train", "--help"])
    assert exit_information.value.code == 0
    text = capsys.readouterr().out
    for part in ("--phase1-fraction", "{adam,adamw,muon}", "{center,random,d2c}", "--no-ema-warmup", "small-64"):
        assert part in text


def test_the_example_teaches_in_few_lines() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 60


def test_a_run_is_json(tmp_path: Path) -> None:
    options, _ = parsed(["--preset=cifar10-32", "--dataset=x", f"--output={tmp_path}", "--learning-rate=1e-3"])
    values = json.loads(json.dumps(options.to_dict()))
    assert (values["learning_rate"], values["output"]) == (1e-3, str(tmp_path))
    assert "batch_size" not in values
