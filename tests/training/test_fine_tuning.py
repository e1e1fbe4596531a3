"""Runs that begin with a trained model, and runs that are continued beyond their end."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from diffae_hub import DiffusionAutoencoderPipeline, VPDDIMScheduler
from diffae_hub.training.options import TrainingOptions, resolve_experiment

from ..conftest import TINY
from .runner import arguments, records, run, states, write_images


@pytest.fixture
def model(tiny_pipeline: DiffusionAutoencoderPipeline, tmp_path: Path) -> Path:
    """A model with another noise schedule than the default."""
    tiny_pipeline.scheduler = VPDDIMScheduler(scaling_factor=2.0, prediction_type="sample")
    tiny_pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_networks_schedule_weights_and_averages_are_the_models(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", size=TINY["sample_size"])
    argv = [f"--pretrained-model={model}", f"--dataset={images}", f"--output={tmp_path / 'run'}", "--num-workers=0"]
    flags = ("--batch-size=16", "--training-examples=16", "--learning-rate=1e-12", "--warmup-examples=0")
    run([*argv, *flags])
    before, after = (DiffusionAutoencoderPipeline.from_pretrained(path) for path in (model, tmp_path / "run/pipeline"))
    for name in ("encoder", "decoder"):
        weights = getattr(after, name).state_dict()
        for key, value in getattr(before, name).state_dict().items():
            torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-9)
    assert (after.scheduler.config.scaling_factor, after.scheduler.config.prediction_type) == (2.0, "sample")
    assert {record["phase"] for record in records(tmp_path / "run")} == {2}


def test_the_networks_are_the_models_and_a_preset_may_give_the_recipe(model: Path) -> None:
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(model)
    options = {"preset": "small-64", "pretrained_model": str(model), "dataset": "x", "output": Path("y")}
    own = TrainingOptions(**options, set=("decoder.dropout=0.3", "phase1_fraction=0.5"))
    preset = resolve_experiment(own, pipeline)
    assert (preset.decoder["dropout"], preset.phase1_fraction, preset.optimizer) == (0.3, 0.5, "muon")
    assert preset.encoder["channel_multipliers"] == list(TINY["channel_multipliers"])
    with pytest.raises(ValueError, match=r"decoder\.layers_per_block"):
        resolve_experiment(TrainingOptions(**options, set=("decoder.layers_per_block=2",)), pipeline)


def test_the_timesteps_are_those_of_the_training_whatever_solver_is_saved(tiny_pipeline, tmp_path: Path) -> None:
    trained = VPDDIMScheduler(noise_schedule="linear_beta", prediction_type="epsilon", timestep_spacing="leading")
    tiny_pipeline.scheduler = DDIMScheduler.from_config(trained.config, timestep_spacing="trailing")
    preset = resolve_experiment(TrainingOptions(pretrained_model="x", dataset="x", output=Path("y")), tiny_pipeline)
    assert preset.scheduler["timestep_spacing"] == "leading"


def test_a_finished_run_is_prolonged(image_folder: Path, tmp_path: Path) -> None:
    """Phase 1 ends where it did at first, and the result equals that of one long run with the same phases."""
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, "--resume-from-checkpoint=latest", training_examples=128)
    run(argv)
    text = run([*argv, "--training-examples=256"])
    assert "at 128 examples" in text
    phases = [record["phase"] for record in records(folder)]
    assert phases == [1] * 2 + [2] * 14
    assert states(folder)[-1]["phase1_examples"] == 32
    twin = arguments(image_folder, tmp_path / "twin", training_examples=256)
    run([*twin, "--phase1-fraction=0.125"])
    first, second = (states(path)[-1]["model"] for path in (folder, tmp_path / "twin"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    figures = json.loads((folder / "pipeline" / "figures.json").read_text())
    assert figures["experiment"]["phase1_fraction"] == 0.125
    # A third time, for as long as the second: there is nothing left to do. Not shorter.
    run([*argv, "--training-examples=256"])
    text = run(argv, code=2)
    assert "training_examples" in text.splitlines()[-1]
