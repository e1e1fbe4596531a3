"""Whole runs: arithmetic, as read from checkpoints, options and files."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.utils import counters

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.cli.main import main
from diffae_hub.metrics.ssim import structural_similarity
from diffae_hub.training import loop
from diffae_hub.training.validation import load_validation_images

from ..conftest import write_classes
from .runner import WITHOUT_DROPOUT, arguments, parsed, records, run, states, write_images


def test_pipeline_has_the_averaged_weights(every_step: Path) -> None:
    state = states(every_step)[-1]
    for name, averages in (("pipeline", state["ema"]), ("pipeline-ema-0.25", state["more_ema"][0])):
        pipeline = DiffusionAutoencoderPipeline.from_pretrained(every_step / name)
        averaged = dict(zip(state["model"], averages["shadow_params"], strict=True))
        for component in ("encoder", "decoder"):
            for key, value in getattr(pipeline, component).state_dict().items():
                assert torch.equal(value, averaged[f"{component}.{key}"]), key
    of_the_run = DiffusionAutoencoderPipeline.from_pretrained(every_step)  # its folder stands for its pipeline
    own_averages = dict(zip(state["model"], state["ema"]["shadow_params"], strict=True))
    assert torch.equal(of_the_run.encoder.head.weight, own_averages["encoder.head.weight"])


def hurry() -> None:
    loop._CHECKPOINT_SECONDS = -1.0


def test_a_checkpoint_of_time(image_folder: Path, tmp_path: Path) -> None:
    """The clock acts as if half an hour passed at each step."""
    argv = arguments(image_folder, tmp_path / "run", "--keep-checkpoints=9", training_examples=48)
    run([word for word in argv if not word.startswith("--checkpoint-every")], hurry)
    assert [state["examples_seen"] for state in states(tmp_path / "run")] == [16, 32, 48]


def test_records_pictures_and_tracker(every_step: Path) -> None:
    losses = {record["examples"]: record["loss"] for record in records(every_step) if "loss" in record}
    assert list(losses) == list(range(16, 129, 16))
    assert [record["phase"] for record in records(every_step) if "loss" in record] == [1, 1, 2, 2, 2, 2, 2, 2]
    validations = {record["examples"]: set(record) for record in records(every_step) if "loss" not in record}
    assert list(validations) == [32, 64, 96, 128]
    assert {"psnr_one_step", "ssim_one_step"} <= validations[32]
    assert {"psnr_stochastic", "ssim_stochastic", "psnr_inversion", "ssim_inversion"} <= validations[128]
    # 3 rows (originals, stochastic, inverted; in phase 1 two) and 8 columns of pictures of 256 pixels, 8 apart.
    assert Image.open(every_step / "validation" / "0000000128.png").size == (8 * 264 - 8, 3 * 264 - 8)
    assert Image.open(every_step / "validation" / "0000000032.png").size == (8 * 264 - 8, 2 * 264 - 8)
    assert Image.open(every_step / "training.png").size == (1200, 350)

    card = (every_step / "pipeline" / "README.md").read_text()
    assert "license: cc-by-4.0\n" in card and "2 DDIM steps" in card
    events = EventAccumulator(str(every_step / "logs" / "two_phase"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert {event.step: pytest.approx(event.value, rel=1e-6) for event in events.Scalars("loss")} == losses
    assert [event.step for event in events.Scalars("psnr_stochastic")] == [64, 96, 128]
    assert [event.step for event in events.Images("reconstructions")] == [32, 64, 96, 128]


def test_validation_images_are_of_all_classes(tmp_path: Path, capsys) -> None:
    photos = write_classes(tmp_path / "photos", 6, size=8, dark=60, light=190)
    argv = [f"--validation-dataset={photos}", "--validation-images=4"]
    options, preset = parsed(arguments(photos, tmp_path / "run", *argv))
    images = load_validation_images(options, preset)
    assert (images.mean(dim=(1, 2, 3)) > 0).tolist() == [False, False, True, True]
    assert "WARNING" in capsys.readouterr().err  # that they are the training data


def test_validation_is_of_the_averaged_weights(every_step: Path, image_folder: Path) -> None:
    pixels = np.stack([np.asarray(Image.open(path), dtype=np.float64) for path in sorted(image_folder.iterdir())])
    originals = torch.from_numpy(pixels).float()[:, None] / 255
    (record,) = (r for r in records(every_step) if r["examples"] == 128 and "loss" not in r)
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(every_step / "pipeline")
    for mode in ("stochastic", "inversion"):
        generator = torch.Generator().manual_seed(0)
        images = pipeline(originals, mode=mode, num_inference_steps=2, generator=generator, output_type="pt").images
        errors = (images.double().numpy()[:, 0] - pixels / 255) ** 2
        psnr = float(np.mean(-10 * np.log10(errors.mean(axis=(1, 2)))))
        assert record[f"psnr_{mode}"] == pytest.approx(psnr, rel=1e-5)
        assert record[f"ssim_{mode}"] == pytest.approx(float(structural_similarity(images, originals).mean()), rel=1e-4)


def test_configuration_is_printed_and_saved(image_folder: Path, tmp_path: Path) -> None:
    """The run has one phase and predicts noise."""
    extra = ("--set=decoder.dropout=0.25", "--learning_rate=0.002", "--noise-schedule=inverted", "--phase1-fraction=0")
    extra += ("--prediction-type=epsilon",)
    text = run(arguments(image_folder, tmp_path / "run", *extra, training_examples=16))
    saved = json.loads((tmp_path / "run" / "configuration.json").read_text())
    experiment = saved["experiment"]
    assert experiment["decoder"]["dropout"] == 0.25
    assert experiment["decoder"]["base_channels"] == 8  # the JSON file's
    assert experiment["learning_rate"] == 0.002
    assert {record["phase"] for record in records(tmp_path / "run")} == {2}
    config = DiffusionAutoencoderPipeline.from_pretrained(tmp_path / "run" / "pipeline").scheduler.config
    assert (config.prediction_type, config.noise_schedule) == ("epsilon", "inverted")
    assert experiment["encoder"]["latent_head"] == "pool"  # the class's default
    assert experiment["ema_decay"] == 0.9999  # the preset's
    assert saved["run"]["output"] == str(tmp_path / "run")
    assert saved.pop("data")["num_images"] == 40
    assert json.dumps(saved, indent=2) in text
    # The saved file is itself an override file that gives the same experiment, whatever the preset.
    config = tmp_path / "run" / "configuration.json"
    _, again = parsed(["--preset=imagenet-32", f"--config={config}", "--dataset=x", "--output=y"])
    assert json.loads(json.dumps(asdict(again))) == experiment


def test_options_of_the_machine(image_folder: Path, tmp_path: Path) -> None:
    """Gradient checkpointing and the memory format only change rounding; bf16 stays close."""
    ends = {}
    for flag in ("--no-channels-last", "--gradient-checkpointing", "--mixed-precision=bf16"):
        run(arguments(image_folder, tmp_path / flag, flag, training_examples=32, **WITHOUT_DROPOUT))
        ends[flag] = records(tmp_path / flag)[-1]["loss"]
        assert {value.dtype for value in states(tmp_path / flag)[-1]["model"].values()} == {torch.float32}
    plain, checkpointing, bf16 = ends.values()
    assert checkpointing == pytest.approx(plain, rel=1e-4)
    assert bf16 == pytest.approx(plain, rel=2e-2)
    assert bf16 != plain


def test_compiled_run(image_folder: Path, tmp_path: Path, monkeypatch, on_cpu: None) -> None:
    """--compile only changes rounding, in both phases, and not the names of weights; there is one graph.

    It runs without torch's own code generation, which takes minutes.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()  # of other tests in this process
    counters.clear()
    networks = {part: {**network, "channel_multipliers": [1]} for part, network in WITHOUT_DROPOUT.items()}
    ends = {}
    for name, flags in {"eager": (), "compiled": ("--compile",)}.items():
        argv = arguments(image_folder, tmp_path / name, *flags, training_examples=64, **networks)
        assert main(["train", *argv]) == 0
        (ends[name],) = states(tmp_path / name)
    assert len(counters["graph_break"]) == 0
    assert counters["stats"]["unique_graphs"] == 1
    for name, weight in ends["eager"]["model"].items():
        torch.testing.assert_close(ends["compiled"]["model"][name], weight, rtol=1e-4, atol=1e-6)


def test_diverging_loss_stops_the_run(image_folder: Path, tmp_path: Path) -> None:
    """The error names the step and the last good checkpoint, and all checkpoints have finite weights."""
    divergent = ("--learning-rate=1e25", "--max-grad-norm=1e30", "--checkpoint-every=16")
    text = run(arguments(image_folder, tmp_path / "run", *divergent, warmup_examples=0, training_examples=4096), code=1)
    assert "at step " in text.splitlines()[-1]
    assert str(tmp_path / "run" / "checkpoint-") in text.splitlines()[-1]
    # So high a rate makes the first step's weights infinite, before a loss shows it.
    more = run(arguments(image_folder, tmp_path / "inf", *divergent, "--learning-rate=1e39", warmup_examples=0), code=1)
    assert "checkpoint is none" in more.splitlines()[-1]
    for state in states(tmp_path / "run"):
        assert all(bool(value.isfinite().all()) for value in state["model"].values())


def test_unreadable_image_is_skipped(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", count=12)
    (folder / "007.png").write_bytes(b"broken")
    for name, streaming in (("skips", ()), ("streams", ("--streaming",))):  # 4 epochs
        flags = ("--skip-bad-images", *streaming)
        text = run(arguments(folder, tmp_path / name, *flags, training_examples=48))
        assert text.count("007.png") == 1
        assert "\n1 unreadable images were skipped" in text
