"""The training script: its arithmetic read off real runs' checkpoints, its options, its faults, its error messages."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.utils import counters

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.metrics.ssim import structural_similarity
from diffae_hub.training import run_folder
from diffae_hub.training.checkpoints import checkpoint_folders, load_checkpoint
from diffae_hub.training.presets import preset_named

from ..hub_server import _Handler, running_hub
from .runner import SCRIPT, SECONDS, TINY_EXPERIMENT, Interruption, arguments, launch, load_script, run, write_images

CHANNELS = ("encoder.in_channels", "decoder.in_channels", "decoder.out_channels")
WITHOUT_DROPOUT = {"decoder": {**TINY_EXPERIMENT["decoder"], "dropout": 0.0}, "encoder": TINY_EXPERIMENT["encoder"]}


def states(folder: Path) -> list[dict]:
    return [load_checkpoint(checkpoint) for checkpoint in checkpoint_folders(folder)]


@pytest.fixture(scope="module")
def every_step(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps that keeps a checkpoint of each. Phase 1 ends after step 2, the warm-up after step 4."""
    folder = tmp_path_factory.mktemp("every_step") / "run"
    flags = ("--checkpoint_every=16", "--keep_checkpoints=100", "--report_to=tensorboard")
    validation = (f"--validation_dataset={image_folder}", "--validation_every=32", "--validation_steps=2")
    code, text = run(arguments(image_folder, folder, *flags, *validation, training_examples=128, ema_decay=0.5))
    assert code == 0, text
    return folder


def test_averaged_weights_follow_the_formula(every_step: Path) -> None:
    """shadow_n = d shadow_{n-1} + (1 - d) weights_n, d = min(0.5, (1 + n) / (10 + n)); in float64 from the weights."""
    checkpoints = states(every_step)
    assert len(checkpoints) == 8
    names = list(checkpoints[0]["model"])
    preset = preset_named("cifar10-32").with_overrides(TINY_EXPERIMENT)
    torch.manual_seed(0)
    initial = {
        f"{component}.{name}": value
        for component, model in (("encoder", preset.build_encoder()), ("decoder", preset.build_decoder()))
        for name, value in model.state_dict().items()
    }
    shadow = [initial[name].double() for name in names]
    for step, state in enumerate(checkpoints, start=1):
        weights = [state["model"][name].double() for name in names]
        decay = min(0.5, (1 + step) / (10 + step))
        shadow = [decay * s + (1 - decay) * w for s, w in zip(shadow, weights, strict=True)]
        for ours, theirs in zip(shadow, state["ema"]["shadow_params"], strict=True):
            torch.testing.assert_close(theirs.double(), ours, rtol=1e-5, atol=1e-7)


def test_warm_up_rate_at_each_step(every_step: Path) -> None:
    rates = [state["optimizer"]["param_groups"][0]["lr"] for state in states(every_step)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3], rel=1e-12)


def test_optimizer_is_adam_and_carries_on_across_the_phases(every_step: Path) -> None:
    for step, state in enumerate(states(every_step), start=1):
        group = state["optimizer"]["param_groups"][0]
        assert (group["betas"], group["weight_decay"], group["amsgrad"]) == ([0.9, 0.999], 0, False)
        assert {int(s["step"]) for s in state["optimizer"]["state"].values()} == {step}
        assert state["ema"]["optimization_step"] == step


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


def test_records_and_tracker(every_step: Path) -> None:
    records = [json.loads(line) for line in (every_step / "metrics.jsonl").read_text().splitlines()]
    losses = {record["examples"]: record["loss"] for record in records if "loss" in record}
    assert list(losses) == list(range(16, 129, 16))
    assert [record["phase"] for record in records if "loss" in record] == [1, 1, 2, 2, 2, 2, 2, 2]
    validations = {record["examples"]: set(record) for record in records if "loss" not in record}
    assert list(validations) == [32, 64, 96, 128]
    assert {"psnr_one_step", "ssim_one_step"} <= validations[32]
    assert {"psnr_stochastic", "ssim_stochastic", "psnr_inversion", "ssim_inversion"} <= validations[128]
    # A grid of 3 rows (originals, stochastic, inverted) and 8 columns, 2 pixels apart; 2 rows in phase 1.
    assert Image.open(every_step / "validation" / "0000000128.png").size == (8 * 10 - 2, 3 * 10 - 2)
    assert Image.open(every_step / "validation" / "0000000032.png").size == (8 * 10 - 2, 2 * 10 - 2)

    events = EventAccumulator(str(every_step / "logs" / "two_phase"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert {event.step: pytest.approx(event.value, rel=1e-6) for event in events.Scalars("loss")} == losses
    assert [event.step for event in events.Scalars("psnr_stochastic")] == [64, 96, 128]
    assert [event.step for event in events.Images("reconstructions")] == [32, 64, 96, 128]


def test_validation_is_of_the_averaged_weights(every_step: Path, image_folder: Path) -> None:
    """The last one's figures and pictures, made again with the saved pipeline, and not with the last weights."""
    paths = sorted(image_folder.iterdir())
    pixels = np.stack([np.asarray(Image.open(path), dtype=np.float64) for path in paths])
    originals = torch.from_numpy(pixels).float()[:, None] / 255
    records = [json.loads(line) for line in (every_step / "metrics.jsonl").read_text().splitlines()]
    (record,) = (r for r in records if r["examples"] == 128 and "loss" not in r)
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
            images = pipeline(
                originals * 2 - 1, mode=mode, num_inference_steps=2, generator=generator, output_type="pt"
            ).images
            errors = (images.double().numpy()[:, 0] - pixels / 255) ** 2
            psnr = float(np.mean(-10 * np.log10(errors.mean(axis=(1, 2)))))
            ssim = float(structural_similarity(images, originals).mean())
            assert (record[f"psnr_{mode}"] == pytest.approx(psnr, rel=1e-5)) == averaged
            assert (record[f"ssim_{mode}"] == pytest.approx(ssim, rel=1e-4)) == averaged
            if averaged:
                for column in range(8):
                    place = np.s_[10 * row : 10 * row + 8, 10 * column : 10 * column + 8]
                    np.testing.assert_allclose(grid[place], 255 * images[column, 0].numpy(), atol=0.51)
    np.testing.assert_array_equal(grid[:8, 70:78], pixels[7])


def test_going_back_to_an_older_checkpoint(image_folder: Path, tmp_path: Path) -> None:
    """What was recorded beyond it is recorded anew, in TensorBoard too, and `latest` is not the abandoned future's."""
    folder = tmp_path / "run"
    flags = ("--report_to=tensorboard", "--keep_checkpoints=9", "--resume_from_checkpoint=latest")
    argv = arguments(image_folder, folder, *flags, training_examples=160)
    code, text = run(argv, interruption=Interruption(after=32, calls=1))  # before the first checkpoint
    assert code == -signal.SIGKILL, text
    code, text = run(argv)
    assert code == 0, text
    first, second, third = checkpoint_folders(folder)
    code, text = run(
        [*argv, f"--resume_from_checkpoint={first}"], interruption=Interruption(96, 1, number=signal.SIGTERM)
    )
    assert code == 0, text
    assert f"resumed from {first} at 64 examples" in text
    assert f"set aside: {folder / 'abandoned-checkpoint-160'}" in text
    assert not second.exists()
    assert not third.exists()
    stopped = checkpoint_folders(folder)[-1]
    code, text = run(argv)
    assert code == 0, text
    assert f"resumed from {stopped} at" in text
    # The progress bar: examples, time left, examples a second, loss and phase.
    assert re.search(r"160/160 \[\d+:\d+<\d+:\d+, +[\d.]+img/s, loss=[\d.]+, phase=2\]", text), text
    assert [int(path.name.removeprefix("checkpoint-")) for path in checkpoint_folders(folder)][-2:] == [128, 160]
    events = EventAccumulator(str(folder / "logs" / "two_phase"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(16, 161, 16))
    records = [json.loads(line)["examples"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert records == list(range(16, 161, 16))


def test_a_folder_in_use(image_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """The second run waits, then refuses, and leaves the folder to the first."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.1)
    argv = arguments(image_folder, tmp_path / "run", training_examples=16)
    with run_folder.own_run_folder(tmp_path / "run"):
        AcceleratorState._reset_state(reset_partial_state=True)
        assert load_script().main(argv) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert errors == [
            f"train_two_phase.py: output_dir must not be another run's that goes on, got {tmp_path / 'run'}"
        ]
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert not (tmp_path / "run").exists()
    code, text = run(argv)
    assert code == 0, text


def test_a_folder_below_the_home_folder(image_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    argv = [*arguments(image_folder, tmp_path / "unused", training_examples=16), "--output_dir=~/run"]
    assert load_script().parse_arguments(argv).output_dir == tmp_path / "run"
    argv[-1] = "--output_dir=~no-such-user/run"
    assert load_script().parse_arguments(argv).output_dir == Path("~no-such-user/run")


def test_a_folder_that_was_waited_for(tmp_path: Path) -> None:
    """Its first owner removes it; the second makes it again. Folders that were there before stay."""
    gone, there = tmp_path / "gone", tmp_path / "there"
    there.mkdir()
    for folder in (gone, there):
        first = subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE)
        assert first.stdout.readline() == b"owned\n"
        with run_folder.own_run_folder(folder):
            assert folder.is_dir()
        assert first.wait(SECONDS) == 0
    assert not gone.exists()
    assert list(there.iterdir()) == []


OWNER = """
import sys, time
from pathlib import Path
from diffae_hub.training.run_folder import own_run_folder
with own_run_folder(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(1)
"""


@pytest.mark.parametrize("kind", ["the current folder", "a link"])
def test_the_error_that_matters_is_shown(
    image_folder: Path, tmp_path: Path, kind: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the folder of a run that is refused cannot be removed."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "inner").mkdir()
    output = tmp_path / "link"
    output.symlink_to(tmp_path / "inner")
    monkeypatch.chdir(tmp_path / "inner")
    argv = arguments(tmp_path / "missing", tmp_path / "run")
    argv += [f"--output_dir={'.' if kind == 'the current folder' else output}"]
    assert load_script().main(argv) == 2
    assert "dataset must be a folder" in capsys.readouterr().err.splitlines()[-1]


def test_checkpoints_that_appear_while_a_run_waits(image_folder: Path, tmp_path: Path, monkeypatch) -> None:
    """A run that is to start anew waits for another in its folder, and does not mix its checkpoints with that one's."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, training_examples=16)
    script = load_script()

    @contextmanager
    def after_another(run_folder: Path) -> Iterator[None]:
        code, text = run(argv)
        assert code == 0, text
        with own(run_folder):
            yield

    own = script.own_run_folder
    monkeypatch.setattr(script, "own_run_folder", after_another)
    assert script.main([*argv, "--seed=1"]) == 2
    assert len(checkpoint_folders(folder)) == 1
    assert json.loads((folder / "configuration.json").read_text())["run"]["seed"] == 0


def test_configuration_is_printed_and_saved(image_folder: Path, tmp_path: Path) -> None:
    extra = ("--set=decoder.dropout=0.25", "--learning_rate=0.002", "--prediction_type=sample", "--scaling_factor=2")
    code, text = run(arguments(image_folder, tmp_path / "run", *extra, training_examples=16))
    assert code == 0, text
    saved = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert saved["experiment"]["decoder"]["dropout"] == 0.25
    assert saved["experiment"]["decoder"]["base_channels"] == 8  # the JSON file's
    assert saved["experiment"]["learning_rate"] == 0.002
    assert saved["experiment"]["scheduler"] == {
        "num_train_timesteps": 1000,
        "noise_schedule": "shifted_cosine",
        "scaling_factor": 2.0,
        "prediction_type": "sample",
        "timestep_spacing": "uniform",
        "clip_sample": False,
    }
    assert saved["experiment"]["encoder"]["latent_head"] == "pool"  # the class's default
    assert saved["experiment"]["ema_decay"] == 0.9999  # the preset's
    data = saved.pop("data")
    assert data["num_images"] == 40
    assert f"training on 40 images in {image_folder}\n" in text
    assert json.dumps(saved, indent=2) in text
    # The saved file is itself an override file that gives the same experiment, whatever the preset.
    script = load_script()
    again = [
        "--preset=imagenet-32",
        f"--config={tmp_path / 'run' / 'configuration.json'}",
        "--dataset=x",
        "--output_dir=y",
    ]
    experiment = script.resolve_experiment(script.parse_arguments(again)).to_dict()
    assert json.loads(json.dumps(experiment)) == saved["experiment"]


def test_accumulation_and_two_processes_equal_one(image_folder: Path, tmp_path: Path) -> None:
    """A batch of 15 as a whole, in accumulated parts of 5, 5 and 5, and as 7 and 8 in two processes.

    After four steps the optimizer's averages are those of the gradients, and the weights are compared as well.
    """
    common = {"training_examples": 60, "batch_size": 15, "max_grad_norm": 1e9, "warmup_examples": 0, **WITHOUT_DROPOUT}
    whole, parts, processes = (tmp_path / name for name in ("whole", "parts", "processes"))
    for folder, flags in ((whole, ()), (parts, ("--gradient_accumulation_steps=3",))):
        code, text = run(arguments(image_folder, folder, *flags, **common))
        assert code == 0, text
    code, text = launch(arguments(image_folder, processes, **common))
    assert code == 0, text
    assert json.loads((processes / "configuration.json").read_text())["num_processes"] == 2

    expected = states(whole)[-1]
    assert float(max(s["exp_avg"].abs().max() for s in expected["optimizer"]["state"].values())) > 1e-3
    for folder in (parts, processes):
        state = states(folder)[-1]
        for index, average in expected["optimizer"]["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                ours, theirs = state["optimizer"]["state"][index][name], average[name]
                scale = float(theirs.abs().max())
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * scale + 1e-9)
        records = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1]) for f in (folder, whole)]
        assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-5)


def test_options_of_the_machine(image_folder: Path, tmp_path: Path) -> None:
    """Gradient checkpointing and the memory format change nothing but rounding; bf16 stays near; all of them run."""
    ends = {}
    for name, flags in {
        "plain": ("--no-channels_last",),
        "checkpointing": ("--gradient_checkpointing",),
        "bf16": ("--mixed_precision=bf16",),
    }.items():
        code, text = run(arguments(image_folder, tmp_path / name, *flags, training_examples=64, **WITHOUT_DROPOUT))
        assert code == 0, text
        ends[name] = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
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
        assert load_script().main(argv) == 0
        (ends[name],) = states(tmp_path / name)
        DiffusionAutoencoderPipeline.from_pretrained(tmp_path / name / "pipeline")
    assert len(counters["graph_break"]) == 0
    assert counters["stats"]["unique_graphs"] == 1
    for name, weight in ends["eager"]["model"].items():
        torch.testing.assert_close(ends["compiled"]["model"][name], weight, rtol=1e-4, atol=1e-6)


def test_compiling_without_a_compiler(image_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("CXX", "no-such-compiler")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert load_script().main(arguments(image_folder, tmp_path / "run", "--compile")) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert (
        "--compile needs a C++ compiler on the CPU (g++, or the one that CXX names), got 'no-such-compiler'"
        in errors[0]
    )


@pytest.mark.parametrize("noise_schedule", ["linear_beta", "inverted"])
def test_one_phase_noise_prediction_runs(image_folder: Path, tmp_path: Path, noise_schedule: str) -> None:
    flags = ("--prediction_type=epsilon", f"--noise_schedule={noise_schedule}", "--phase1_fraction=0")
    code, text = run(arguments(image_folder, tmp_path / "run", *flags, training_examples=32))
    assert code == 0, text
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {record["phase"] for record in records} == {2}
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.scheduler.config.noise_schedule == noise_schedule


def test_diverging_loss_stops_the_run(image_folder: Path, tmp_path: Path) -> None:
    """Step, loss and last good checkpoint are named, and no checkpoint holds weights that are not finite."""
    divergent = ("--learning_rate=1e25", "--max_grad_norm=1e30", "--checkpoint_every=16")
    code, text = run(arguments(image_folder, tmp_path / "run", *divergent, warmup_examples=0, training_examples=4096))
    assert code == 1, text
    message = text.splitlines()[-1]
    assert re.search(r"^train_two_phase\.py: the loss was (nan|inf) at step \d+ \(\d+ examples\)", message), message
    assert re.search(r"the last good checkpoint is .*run/checkpoint-\d+$", message), message
    # So high a rate makes the first step's weights infinite, before a loss shows it.
    code, text = run(arguments(image_folder, tmp_path / "inf", *divergent, "--learning_rate=1e39", warmup_examples=0))
    assert code == 1, text
    message = "a weight was not finite after 16 examples; the last good checkpoint is none"
    assert text.splitlines()[-1] == f"train_two_phase.py: {message}"
    assert "Traceback" not in text
    for state in states(tmp_path / "run"):
        assert all(bool(value.isfinite().all()) for value in state["model"].values())


def test_unreadable_image_stops_or_is_skipped(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", count=12)
    (folder / "007.png").write_bytes(b"broken")
    code, text = run(arguments(folder, tmp_path / "stops", training_examples=32))
    assert code == 1
    assert "007.png" in text.splitlines()[-1]
    assert "--skip-bad-images" in text.splitlines()[-1]
    assert "Traceback" not in text
    for name, streaming in (("skips", ()), ("streams", ("--streaming",))):  # 4 epochs
        flags = ("--skip_bad_images", *streaming)
        code, text = run(arguments(folder, tmp_path / name, *flags, training_examples=48))
        assert code == 0, text
        assert text.count("skipped an unreadable image (1 so far)") == 1
        assert text.count("007.png") == 1
        assert "\n1 unreadable images were skipped" in text


def test_unreadable_image_in_one_of_two_processes(tmp_path: Path) -> None:
    """The process that meets it says so, the other ends too, and neither prints a traceback of its own."""
    folder = write_images(tmp_path / "images")
    (folder / "007.png").write_bytes(b"broken")
    code, text = launch(arguments(folder, tmp_path / "run", training_examples=48))
    assert code == 1, text
    messages = re.findall(r"train_two_phase\.py: [^\n]*", text)
    assert sum("007.png" in message for message in messages) == 1, text
    assert "[rank" not in text


@pytest.mark.parametrize("streaming", [(), ("--streaming",)], ids=["random access", "streaming"])
def test_nothing_readable(tmp_path: Path, streaming: tuple[str, ...]) -> None:
    folder = write_images(tmp_path / "images", count=3)
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    code, text = run(arguments(folder, tmp_path / "run", "--skip_bad_images", "--num_workers=1", *streaming))
    assert code == 1, text
    assert "image" in text.splitlines()[-1]
    assert "can be read; the first: " in text.splitlines()[-1]
    assert "Traceback" not in text


def test_a_crop_that_is_not_for_these_images(image_folder: Path, tmp_path: Path) -> None:
    flags = ("--crop=d2c", "--skip_bad_images", "--num_workers=1")
    code, text = run(arguments(image_folder, tmp_path / "run", *flags))
    assert code == 2, text
    assert "train_two_phase.py: --crop must be 'center' or 'random'" in text.splitlines()[-1]
    assert "Traceback" not in text


def test_card_of_a_run(image_folder: Path, tmp_path: Path) -> None:
    """All of it phase 1, so that the figures are those of one step."""
    flags = ("--phase1_fraction=1", "--hub_license=cc-by-4.0", f"--validation_dataset={image_folder}")
    code, text = run(arguments(image_folder, tmp_path / "run", *flags, training_examples=32))
    assert code == 0, text
    card = (tmp_path / "run" / "pipeline" / "README.md").read_text()
    assert "license: cc-by-4.0\n" in card
    assert "40 held-out images, one step from t = 1, averaged" in card
    assert "num_inference_steps=1)" in card
    assert "50 DDIM steps" not in card
    assert "num_inference_steps=50" not in card


class RefusingHandler(_Handler):
    """Creates repositories, but takes no commits."""

    def do_POST(self) -> None:
        if "/commit/" not in self.path:
            return super().do_POST()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None


def test_failed_upload_names_the_command_that_repeats_it(image_folder: Path, tmp_path: Path) -> None:
    argv = arguments(image_folder, tmp_path / "run", "--push_to_hub", "--hub_model_id=tiny", training_examples=16)
    with running_hub() as hub:
        hub.RequestHandlerClass = RefusingHandler
        environment = {**hub.environment(str(tmp_path / "home")), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        result = subprocess.run(
            [sys.executable, str(SCRIPT), *argv], env={**os.environ, **environment}, capture_output=True, text=True
        )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    pipeline = tmp_path / "run" / "pipeline"
    assert f"`diffae-hub push {pipeline} tester/tiny` does it" in result.stderr.splitlines()[-1]
    assert (pipeline / "model_index.json").exists()


def test_streaming_resumes_to_the_same_weights(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ("--streaming", "--shuffle_buffer=7", "--keep_checkpoints=20", "--checkpoint_every=48")
    code, text = run(arguments(folder, whole, *flags, training_examples=144))
    assert code == 0, text
    # The state that a run which was killed after its first checkpoint leaves behind.
    broken.mkdir()
    (whole / "checkpoint-48").rename(broken / "checkpoint-48")
    code, text = run(arguments(folder, broken, *flags, "--resume_from_checkpoint=latest", training_examples=144))
    assert code == 0, text
    assert "at 48 examples" in text
    first, second = states(whole)[-1], states(broken)[-1]
    assert first["stream_positions"] == second["stream_positions"]
    assert first["stream_positions"][0]["epoch"] == 3  # 144 of 40
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])


# Runs the script; after 48 examples the second process gets SIGTERM, twice, as from a scheduler and from torchrun, the
# first only while it writes the checkpoint.
SIGNALLED = """
import importlib.util, os, signal, sys
specification = importlib.util.spec_from_file_location("train_two_phase", {script!r})
script = importlib.util.module_from_spec(specification)
specification.loader.exec_module(script)
from diffae_hub.training import trainer
rate, save = trainer.learning_rate_at, script.save_checkpoint

def signalled_rate(examples_seen, *rest):
    for _ in range(2 if examples_seen == 48 and os.environ["RANK"] == "1" else 0):
        os.kill(os.getpid(), signal.SIGTERM)
    return rate(examples_seen, *rest)

def signalled_save(*state):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    return save(*state)

trainer.learning_rate_at, script.save_checkpoint = signalled_rate, signalled_save
sys.exit(script.main())
"""


def test_two_streaming_processes_are_stopped_and_resumed(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", count=41)  # 21 and 20 of them
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ("--streaming", "--shuffle_buffer=7", "--checkpoint_every=1000", "--resume_from_checkpoint=latest")
    code, text = launch(arguments(folder, whole, *flags, training_examples=96))
    assert code == 0, text

    signalled = tmp_path / "signalled.py"
    signalled.write_text(SIGNALLED.format(script=str(SCRIPT)))
    argv = arguments(folder, broken, *flags, training_examples=96)
    code, text = launch(argv, signalled)
    assert code == 0, text
    assert "stopped by SIGTERM at 48 examples" in text
    (state,) = states(broken)
    assert len(state["stream_positions"]) == 2
    assert state["stream_positions"][0] != state["stream_positions"][1]

    before = (broken / "configuration.json").read_bytes()
    code, text = run(argv)
    assert code == 2, text
    assert "a streaming run must resume with as many processes as it had, 2, got 1" in text.splitlines()[-1]
    assert (broken / "configuration.json").read_bytes() == before

    code, text = launch(argv)
    assert code == 0, text
    assert "at 48 examples" in text
    first, second = states(whole)[-1], states(broken)[-1]
    assert first["stream_positions"] == second["stream_positions"]
    for name, weight in first["model"].items():
        torch.testing.assert_close(second["model"][name], weight, rtol=1e-5, atol=1e-7)


# Runs the script; what a line of ours does in the third step.
DISTURBED = """
import importlib.util, os, signal, sys
specification = importlib.util.spec_from_file_location("train_two_phase", {script!r})
script = importlib.util.module_from_spec(specification)
specification.loader.exec_module(script)
from diffae_hub.training import trainer
loss, steps = trainer.denoising_loss, []

def disturbed(*inputs):
    steps.append(None)
    if len(steps) == 3:
        {what}
    return loss(*inputs)

trainer.denoising_loss = disturbed
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell runs the tests in the background
sys.exit(script.main())
"""
DISTURBANCES = {
    "an error that nobody foresaw": ("raise RuntimeError('out of memory')", "RuntimeError: out of memory", 1),
    "Ctrl-C twice": ("[os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]", "KeyboardInterrupt", -signal.SIGINT),
}


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_the_loaders_processes_end_with_the_run(image_folder: Path, tmp_path: Path, disturbance: str) -> None:
    """They ignore SIGTERM, the signal by which Python's exit would end them before it waits for them."""
    what, message, code = DISTURBANCES[disturbance]
    driver = tmp_path / "driver.py"
    driver.write_text(DISTURBED.format(script=str(SCRIPT), what=what))
    argv = [*arguments(image_folder, tmp_path / "run"), "--num_workers=1"]
    process = subprocess.run(
        [sys.executable, str(driver), *argv],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert message in process.stderr
    assert process.returncode == code


def test_a_validation_that_was_missed_is_made_up_for(image_folder: Path, tmp_path: Path) -> None:
    """Killed after the last checkpoint, before the validation: the resumed run has the figures all the same."""
    flags = (f"--validation_dataset={image_folder}", "--validation_steps=2", "--resume_from_checkpoint=latest")
    argv = arguments(image_folder, tmp_path / "run", *flags, training_examples=64)
    code, text = run(argv)
    assert code == 0, text
    assert f"validation on the first 40 of 40 images in {image_folder}" in text
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text().splitlines()
    assert "psnr_inversion" in whole[-1]
    metrics.write_text("\n".join(whole[:-1]) + "\n")
    code, text = run(argv)
    assert code == 0, text
    assert json.loads(metrics.read_text().splitlines()[-1]) == pytest.approx(json.loads(whole[-1]), rel=1e-6)
    code, text = run(argv)
    assert code == 0, text
    assert len(metrics.read_text().splitlines()) == len(whole), "only once"


BAD_COMMAND_LINES = [
    (["--preset=cifar"], "preset must be one of"),
    (["--training_examples=inf"], "argument --training_examples: invalid int value: 'inf'"),
    (["--output_dir="], "argument --output_dir: invalid folder value: ''"),
    (["--seed=9223372036854775808"], "--seed must be below 2**63, got 9223372036854775808"),
    (["--batch_size=many"], "argument --batch_size: invalid int value: 'many'"),
    (["--batch_size=0"], "batch_size must be an integer of at least 1, got 0"),
    (["--gradient_accumulation_steps=17"], "--batch_size must be at least the number of processes times"),
    (["--phase1_fraction=2"], "phase1_fraction must be a number in [0, 1], got 2.0"),
    (["--prediction_type=epsilon"], "phase1_fraction must be 0 with prediction_type 'epsilon'"),
    (["--prediction_type=noise"], "argument --prediction_type: invalid choice: 'noise'"),
    (["--scaling_factor=-1"], "scaling_factor must be a finite number above 0, got -1.0"),
    (["--set=decoder.dropout"], "--set must be KEY=VALUE, got 'decoder.dropout'"),
    (["--set=decoder.dropout=2"], "in [0, 1), got 2"),
    (["--set=epochs=2"], "overrides must be among"),
    (["--latent_dim=0"], "latent_dim must be an integer of at least 1, got 0"),
    (["--config=nowhere.json"], "--config must be a readable JSON file, got nowhere.json"),
    (["--seed=-1"], "--seed must be at least 0, got -1"),
    (["--validation_steps=0"], "--validation_steps must be between 1 and 1000, got 0"),
    (["--training_examples=1.5"], "argument --training_examples: invalid int value: '1.5'"),
    (["--keep_checkpoints=0"], "--keep_checkpoints must be at least 1, got 0"),
    (["--mixed_precision=fp16"], "--mixed_precision must be 'no' or 'bf16' on the CPU, got 'fp16'"),
    (["--hub_license=My own"], "--hub_license must be an id like 'mit' or 'cc-by-4.0', in lower case, got 'My own'"),
    ([f"--set={part}={4}" for part in CHANNELS], "in_channels must be 1 (grayscale) or 3 (RGB), got 4"),
    (["--unknown"], "unrecognized arguments: --unknown"),
    (["--resume_from_checkpoint=nowhere"], "must be 'latest' or a checkpoint's folder, got nowhere"),
    (["--dataset=nowhere"], "dataset 'nowhere' is no local path and the Hub cannot be reached"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_COMMAND_LINES, ids=[" ".join(f) for f, _ in BAD_COMMAND_LINES])
def test_bad_command_lines(
    image_folder: Path, tmp_path: Path, capsys, monkeypatch, flags: list[str], message: str
) -> None:
    """Exit code 2, one line on stderr, no traceback."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision of another test in this process
    assert load_script().main(arguments(image_folder, tmp_path / "run", *flags)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("train_two_phase.py: ")
    assert message in errors[0]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_bad_experiment_is_refused_before_data_is_read(tmp_path: Path, capsys) -> None:
    argv = arguments(tmp_path / "no such folder", tmp_path / "run", "--prediction_type=epsilon")
    assert load_script().main(argv) == 2
    assert "phase1_fraction must be 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_defaults_that_depend_on_the_experiment(tmp_path: Path) -> None:
    script = load_script()
    for flags, every in ((["--training_examples=64e6"], 640_000), (["--training_examples=560_000"], 100_000)):
        parsed = script.parse_arguments(["--preset=cifar10-32", "--dataset=x", f"--output_dir={tmp_path}", *flags])
        script.resolve_experiment(parsed)
        assert parsed.checkpoint_every == parsed.validation_every == every


def test_an_output_among_the_data_is_refused(image_folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    argv = [a for a in arguments(image_folder, image_folder.parent / "run") if not a.startswith("--output_dir")]
    assert load_script().main([*argv, f"--output_dir={image_folder / 'run'}"]) == 2
    assert f"--output_dir must lie outside the folder of the data, {image_folder}" in capsys.readouterr().err
    assert not (image_folder / "run").exists()


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed(image_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert load_script().main(arguments(image_folder, tmp_path / "run", "--report_to=wandb")) == 2
    assert "--report_to wandb needs the package: pip install wandb" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"experiment": 3}', "[]"])
def test_a_config_of_another_shape(tmp_path: Path, capsys, content: str) -> None:
    config = tmp_path / "config.json"
    config.write_text(content)
    argv = ["--preset=cifar10-32", f"--config={config}", "--dataset=x", f"--output_dir={tmp_path / 'run'}"]
    assert load_script().main(argv) == 2
    assert "--config must hold a JSON object" in capsys.readouterr().err


def test_help(capsys) -> None:
    with pytest.raises(SystemExit) as exit_information:
        load_script().main(["--help"])
    assert exit_information.value.code == 0
    assert "--phase1_fraction" in capsys.readouterr().out


def test_images_differ(image_folder: Path) -> None:
    """The fixture's images are not constant, or the tests above would show little."""
    pixels = [np.asarray(Image.open(path)) for path in sorted(image_folder.iterdir())[:5]]
    assert all(p.std() > 10 for p in pixels)
