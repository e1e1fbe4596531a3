"""Whole runs: their arithmetic read off real runs' checkpoints, their options, their files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.utils import counters

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.cli.main import main
from diffae_hub.metrics.ssim import structural_similarity
from diffae_hub.training.presets import preset_named

from .runner import TINY_EXPERIMENT, WITHOUT_DROPOUT, arguments, parsed, records, run, states


@pytest.fixture(scope="module")
def every_step(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps that keeps a checkpoint of each. Phase 1 ends after step 2, the warm-up after step 4."""
    folder = tmp_path_factory.mktemp("every_step") / "run"
    flags = ("--checkpoint-every=16", "--keep-checkpoints=100", "--report-to=tensorboard")
    validation = (f"--validation-dataset={image_folder}", "--validation-every=32", "--validation-steps=2")
    code, text = run(arguments(image_folder, folder, *flags, *validation, training_examples=128, ema_decay=0.5))
    assert code == 0, text
    return folder


def test_averaged_weights_follow_the_formula(every_step: Path) -> None:
    """shadow_n = d shadow_{n-1} + (1 - d) weights_n, d = min(0.5, (1 + n) / (10 + n)); in float64 from the weights."""
    checkpoints = states(every_step)
    assert len(checkpoints) == 8
    preset = preset_named("cifar10-32").with_overrides(TINY_EXPERIMENT)
    torch.manual_seed(0)
    initial = {
        f"{component}.{name}": value
        for component, model in (("encoder", preset.build_encoder()), ("decoder", preset.build_decoder()))
        for name, value in model.state_dict().items()
    }
    shadow = [initial[name].double() for name in checkpoints[0]["model"]]
    for step, state in enumerate(checkpoints, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        shadow = [decay * s + (1 - decay) * w for s, w in zip(shadow, state["model"].values(), strict=True)]
        for ours, theirs in zip(shadow, state["ema"]["shadow_params"], strict=True):
            torch.testing.assert_close(theirs.double(), ours, rtol=1e-5, atol=1e-7)


def test_adam_and_its_warm_up_carry_on_across_the_phases(every_step: Path) -> None:
    rates = [2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]
    for step, (rate, state) in enumerate(zip(rates, states(every_step), strict=True), start=1):
        group = state["optimizer"]["param_groups"][0]
        assert group["lr"] == pytest.approx(rate, rel=1e-12)
        assert (group["betas"], group["weight_decay"], group["amsgrad"]) == ((0.9, 0.999), 0, False)
        assert {int(s["step"]) for s in state["optimizer"]["state"].values()} == {step}
        assert state["ema"]["optimization_step"] == step
        assert state["phase1_examples"] == 32


def test_gradient_is_clipped_to_its_norm(image_folder: Path, tmp_path: Path) -> None:
    """After one step Adam's first average is 0.1 times the gradient, whose norm clipping has brought to 0.01."""
    code, text = run(arguments(image_folder, tmp_path / "run", training_examples=16, max_grad_norm=0.01))
    assert code == 0, text
    averages = [state["exp_avg"] for state in states(tmp_path / "run")[-1]["optimizer"]["state"].values()]
    norm = float(torch.stack([(10 * average.double()).square().sum() for average in averages]).sum().sqrt())
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_pipeline_has_the_averaged_weights(every_step: Path) -> None:
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(every_step / "pipeline")
    state = states(every_step)[-1]
    averaged = dict(zip(state["model"], state["ema"]["shadow_params"], strict=True))
    for component in ("encoder", "decoder"):
        for name, value in getattr(pipeline, component).state_dict().items():
            assert torch.equal(value, averaged[f"{component}.{name}"]), name


def test_records_pictures_and_tracker(every_step: Path) -> None:
    losses = {record["examples"]: record["loss"] for record in records(every_step) if "loss" in record}
    assert list(losses) == list(range(16, 129, 16))
    assert [record["phase"] for record in records(every_step) if "loss" in record] == [1, 1, 2, 2, 2, 2, 2, 2]
    validations = {record["examples"]: set(record) for record in records(every_step) if "loss" not in record}
    assert list(validations) == [32, 64, 96, 128]
    assert {"psnr_one_step", "ssim_one_step"} <= validations[32]
    assert {"psnr_stochastic", "ssim_stochastic", "psnr_inversion", "ssim_inversion"} <= validations[128]
    # A grid of 3 rows (originals, stochastic, inverted) and 8 columns, 2 pixels apart; 2 rows in phase 1.
    assert Image.open(every_step / "validation" / "0000000128.png").size == (8 * 10 - 2, 3 * 10 - 2)
    assert Image.open(every_step / "validation" / "0000000032.png").size == (8 * 10 - 2, 2 * 10 - 2)
    assert Image.open(every_step / "training.png").size == (800, 350)

    events = EventAccumulator(str(every_step / "logs" / "two_phase"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert {event.step: pytest.approx(event.value, rel=1e-6) for event in events.Scalars("loss")} == losses
    assert [event.step for event in events.Scalars("psnr_stochastic")] == [64, 96, 128]
    assert [event.step for event in events.Images("reconstructions")] == [32, 64, 96, 128]


def test_validation_is_of_the_averaged_weights(every_step: Path, image_folder: Path) -> None:
    """The last one's figures and pictures, made again with the saved pipeline, and not with the last weights."""
    pixels = np.stack([np.asarray(Image.open(path), dtype=np.float64) for path in sorted(image_folder.iterdir())])
    assert all(picture.std() > 10 for picture in pixels[:5]), "constant images would show little"
    originals = torch.from_numpy(pixels).float()[:, None] / 255
    (record,) = (r for r in records(every_step) if r["examples"] == 128 and "loss" not in r)
    grid = np.asarray(Image.open(every_step / "validation" / "0000000128.png"), dtype=np.float64)
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(every_step / "pipeline")
    weights = states(every_step)[-1]["model"]
    for averaged in (True, False):
        if not averaged:
            for name in ("encoder", "decoder"):
                part = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
                getattr(pipeline, name).load_state_dict(part)
        for row, mode in enumerate(("stochastic", "inversion"), start=1):
            generator = torch.Generator().manual_seed(0)
            images = pipeline(originals, mode=mode, num_inference_steps=2, generator=generator, output_type="pt").images
            errors = (images.double().numpy()[:, 0] - pixels / 255) ** 2
            psnr = float(np.mean(-10 * np.log10(errors.mean(axis=(1, 2)))))
            ssim = float(structural_similarity(images, originals).mean())
            assert (record[f"psnr_{mode}"] == pytest.approx(psnr, rel=1e-5)) == averaged
            if averaged:  # the SSIM of an inversion is 1 to four digits with any weights
                assert record[f"ssim_{mode}"] == pytest.approx(ssim, rel=1e-4)
            for column in range(8 if averaged else 0):
                place = np.s_[10 * row : 10 * row + 8, 10 * column : 10 * column + 8]
                np.testing.assert_allclose(grid[place], 255 * images[column, 0].numpy(), atol=0.51)
    np.testing.assert_array_equal(grid[:8, 70:78], pixels[7])


def test_configuration_is_printed_and_saved(image_folder: Path, tmp_path: Path) -> None:
    extra = ("--set=decoder.dropout=0.25", "--learning_rate=0.002", "--prediction-type=sample", "--scaling-factor=2")
    code, text = run(arguments(image_folder, tmp_path / "run", *extra, training_examples=16))
    assert code == 0, text
    saved = json.loads((tmp_path / "run" / "configuration.json").read_text())
    experiment = saved["experiment"]
    assert experiment["decoder"]["dropout"] == 0.25
    assert experiment["decoder"]["base_channels"] == 8  # the JSON file's
    assert experiment["learning_rate"] == 0.002
    assert experiment["scheduler"] == {
        "num_train_timesteps": 1000,
        "noise_schedule": "shifted_cosine",
        "scaling_factor": 2.0,
        "prediction_type": "sample",
        "timestep_spacing": "uniform",
        "clip_sample": False,
    }
    assert experiment["encoder"]["latent_head"] == "pool"  # the class's default
    assert experiment["ema_decay"] == 0.9999  # the preset's
    assert saved["run"]["output"] == str(tmp_path / "run")
    assert saved.pop("data")["num_images"] == 40
    assert json.dumps(saved, indent=2) in text
    # The saved file is itself an override file that gives the same experiment, whatever the preset.
    config = tmp_path / "run" / "configuration.json"
    _, again = parsed(["--preset=imagenet-32", f"--config={config}", "--dataset=x", "--output=y"])
    assert json.loads(json.dumps(again.to_dict())) == experiment


def test_options_of_the_machine(image_folder: Path, tmp_path: Path) -> None:
    """Gradient checkpointing and the memory format change nothing but rounding; bf16 stays near; all of them run."""
    ends = {}
    for name, flags in {
        "plain": ("--no-channels-last",),
        "checkpointing": ("--gradient-checkpointing",),
        "bf16": ("--mixed-precision=bf16",),
    }.items():
        code, text = run(arguments(image_folder, tmp_path / name, *flags, training_examples=64, **WITHOUT_DROPOUT))
        assert code == 0, text
        ends[name] = records(tmp_path / name)[-1]["loss"]
        assert {value.dtype for value in states(tmp_path / name)[-1]["model"].values()} == {torch.float32}
    assert ends["checkpointing"] == pytest.approx(ends["plain"], rel=1e-4)
    assert ends["bf16"] == pytest.approx(ends["plain"], rel=2e-2)
    assert ends["bf16"] != ends["plain"]


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
def test_compiled_run(image_folder: Path, tmp_path: Path, monkeypatch) -> None:
    """--compile changes nothing but rounding, through both phases and in the saved names; it takes most of a minute."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.compiler.reset()  # of other tests in this process
    counters.clear()
    networks = {  # as small as can be: each kernel goes through the C++ compiler
        part: {**TINY_EXPERIMENT[part], "channel_multipliers": [1], "dropout": 0.0} for part in ("encoder", "decoder")
    }
    ends = {}
    for name, flags in {"eager": (), "compiled": ("--compile",)}.items():
        argv = arguments(image_folder, tmp_path / name, *flags, training_examples=64, **networks)
        assert main(["train", *argv]) == 0
        (ends[name],) = states(tmp_path / name)
        DiffusionAutoencoderPipeline.from_pretrained(tmp_path / name / "pipeline")
    assert len(counters["graph_break"]) == 0
    assert counters["stats"]["unique_graphs"] == 1
    for name, weight in ends["eager"]["model"].items():
        torch.testing.assert_close(ends["compiled"]["model"][name], weight, rtol=1e-4, atol=1e-6)


def test_one_phase_noise_prediction_runs(image_folder: Path, tmp_path: Path) -> None:
    flags = ("--prediction-type=epsilon", "--noise-schedule=inverted", "--phase1-fraction=0")
    code, text = run(arguments(image_folder, tmp_path / "run", *flags, training_examples=32))
    assert code == 0, text
    assert {record["phase"] for record in records(tmp_path / "run")} == {2}
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.scheduler.config.noise_schedule == "inverted"


def test_diverging_loss_stops_the_run(image_folder: Path, tmp_path: Path) -> None:
    """Step and last good checkpoint are named, and no checkpoint holds weights that are not finite."""
    divergent = ("--learning-rate=1e25", "--max-grad-norm=1e30", "--checkpoint-every=16")
    code, text = run(arguments(image_folder, tmp_path / "run", *divergent, warmup_examples=0, training_examples=4096))
    assert code == 1, text
    assert "at step " in text.splitlines()[-1]
    assert str(tmp_path / "run" / "checkpoint-") in text.splitlines()[-1]
    # So high a rate makes the first step's weights infinite, before a loss shows it.
    code, more = run(arguments(image_folder, tmp_path / "inf", *divergent, "--learning-rate=1e39", warmup_examples=0))
    assert code == 1, more
    assert "checkpoint is none" in more.splitlines()[-1]
    assert "Traceback" not in text + more
    for state in states(tmp_path / "run"):
        assert all(bool(value.isfinite().all()) for value in state["model"].values())


def test_card_of_a_run(image_folder: Path, tmp_path: Path) -> None:
    """All of it phase 1, so that the figures are those of one step."""
    flags = ("--phase1-fraction=1", "--hub-license=cc-by-4.0", f"--validation-dataset={image_folder}")
    code, text = run(arguments(image_folder, tmp_path / "run", *flags, training_examples=32))
    assert code == 0, text
    card = (tmp_path / "run" / "pipeline" / "README.md").read_text()
    assert "license: cc-by-4.0\n" in card
    assert "num_inference_steps=1)" in card
    assert "50 DDIM steps" not in card
