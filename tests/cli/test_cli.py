"""The command line, run for real on tiny pipelines: files, figures, exit codes, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image, ImageOps
from safetensors import SafetensorError
from skimage.metrics import peak_signal_noise_ratio

from diffae_hub import (
    ConditionedUNet2DModel,
    DiffusionAutoencoderPipeline,
    SemanticEncoderModel,
    VPDDIMScheduler,
    list_models,
)
from diffae_hub.cli.main import main

from ..conftest import TINY, randomize


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_reconstruct_writes_pictures_and_true_figures(model: str, photo: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["reconstruct", photo, "--model", model, "--steps", "3", "--output", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (record,) = report["images"]
    assert (report["mode"], report["steps"], record["width"], record["height"]) == ("stochastic", 3, 16, 16)
    result = np.asarray(Image.open(record["reconstruction"])) / 255
    # What the model was given: the centre square, resized as Pillow does it.
    given = ImageOps.fit(Image.open(photo), (16, 16), Image.Resampling.LANCZOS)
    expected = peak_signal_noise_ratio(np.asarray(given) / 255, result, data_range=1)
    assert record["psnr_db"] == pytest.approx(expected, abs=0.3)
    assert Image.open(record["side_by_side"]).size == (3 * 256 + 2 * 8, 256)
    assert not list(out.glob(".*"))


def test_exact_reconstruction_equals_the_picture(model: str, photo: str, tmp_path: Path, capsys) -> None:
    arguments = ["reconstruct", photo, "--model", model, "--exact", "--steps", "20", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (record,) = report["images"]
    assert (report["mode"], record["values"], record["equal_values"]) == ("inversion", 768, 768)
    given = ImageOps.fit(Image.open(photo), (16, 16), Image.Resampling.LANCZOS)
    assert abs(np.asarray(Image.open(record["reconstruction"])).astype(int) - np.asarray(given)).max() == 0


def test_solvers(model: str, photo: str, tmp_path: Path, tiny_pipeline) -> None:
    """Each gives its picture, and after a solver of diffusers' the model's own schedule is walked."""
    other = tmp_path / "other"
    tiny_pipeline.scheduler = DPMSolverMultistepScheduler.from_config(tiny_pipeline.scheduler.config)
    tiny_pipeline.save_pretrained(other)
    pictures = {}
    for solver, folder in (("ddim", model), ("dpm", model), ("ddim", str(other))):
        out = tmp_path / f"{solver}-{Path(folder).name}"
        arguments = ["reconstruct", photo, "--model", folder, "--solver", solver, "--steps", "3"]
        assert main([*arguments, "--output", str(out)]) == 0
        pictures[out.name] = (out / "photo_stochastic.png").read_bytes()
    assert pictures["ddim-model"] == pictures["ddim-other"] != pictures["dpm-model"]


@pytest.mark.parametrize(
    ("flags", "timestep_spacing", "solver", "steps"),
    [
        ((), "uniform", "dpm", 10),
        (("--solver=ddim",), "uniform", "ddim", 50),
        (("--mode=inversion",), "uniform", "ddim", 10),
        (("--steps=3",), "uniform", "dpm", 3),
        ((), "leading", "ddim", 50),  # official checkpoints
    ],
)
def test_solver_and_steps_that_nobody_gave(
    flags: tuple[str, ...], timestep_spacing: str, solver: str, steps: int, photo, tmp_path, tiny_pipeline, capsys
) -> None:
    tiny_pipeline.scheduler = VPDDIMScheduler(noise_schedule="linear_beta", timestep_spacing=timestep_spacing)
    tiny_pipeline.save_pretrained(tmp_path / "model")
    words = ["reconstruct", photo, f"--model={tmp_path / 'model'}", *flags, f"--output={tmp_path / 'out'}", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["solver"], report["steps"]) == (solver, steps)


def test_tiles_follow_the_exif_orientation(model: str, tmp_path: Path, capsys) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be shown upright
    Image.new("RGB", (80, 40), "red").save(tmp_path / "upright.jpg", exif=exif)
    arguments = ["reconstruct", str(tmp_path / "upright.jpg"), "--model", model, "--tiles", "2", "--steps", "1"]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["images"]
    assert (record["width"], record["height"]) == (30, 60)


def test_exact_reconstruction_is_null_in_json(tiny_encoder, photo: str, tmp_path: Path, capsys) -> None:
    """A decoder of zeros that predicts x_0 gives mid-gray, 0.5, which 8-bit rounding makes 128/255."""
    Image.new("RGB", (16, 16), (128, 128, 128)).save(tmp_path / "gray.png")
    decoder = ConditionedUNet2DModel(**TINY)
    torch.nn.init.constant_(decoder.conv_out.bias, 1 / 255)
    torch.nn.init.zeros_(decoder.conv_out.weight)
    scheduler = VPDDIMScheduler(prediction_type="sample")
    DiffusionAutoencoderPipeline(tiny_encoder, decoder, scheduler).save_pretrained(tmp_path / "gray")
    arguments = ["reconstruct", str(tmp_path / "gray.png"), "--model", str(tmp_path / "gray"), "--steps", "1"]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--json"]) == 0
    text = capsys.readouterr().out
    assert "Infinity" not in text
    assert json.loads(text)["images"][0]["psnr_db"] is None
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert "PSNR inf dB" in capsys.readouterr().out


def test_one_channel_model_in_tiles(photo: str, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    gray = TINY | {"in_channels": 1}
    pipeline = DiffusionAutoencoderPipeline(
        randomize(SemanticEncoderModel(**gray)),
        randomize(ConditionedUNet2DModel(**gray, out_channels=1)),
        VPDDIMScheduler(),
    )
    pipeline.save_pretrained(tmp_path / "gray")
    arguments = ["reconstruct", photo, "--model", str(tmp_path / "gray"), "--mode", "inversion", "--steps", "40"]
    assert main([*arguments, "--tiles", "2", "--output", str(tmp_path / "out"), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["images"]
    assert record["tiles"] == 8
    result = Image.open(record["reconstruction"])
    assert (result.mode, result.size, Image.open(record["side_by_side"]).mode) == ("L", (48, 30), "L")
    given = Image.open(photo).convert("L").resize((48, 30), Image.Resampling.LANCZOS)
    expected = peak_signal_noise_ratio(np.asarray(given), np.asarray(result))
    assert record["psnr_db"] == pytest.approx(expected, abs=0.1)
    assert expected > 20


def test_same_seed_same_picture_and_equal_names_do_not_collide(model: str, photo: str, tmp_path: Path, capsys) -> None:
    other = tmp_path / "elsewhere" / "photo.png"
    other.parent.mkdir()
    other.write_bytes(Path(photo).read_bytes())
    arguments = ["reconstruct", photo, str(other), "--model", model, "--steps", "2", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["images"]
    assert first["reconstruction"] != second["reconstruction"]
    assert Path(first["reconstruction"]).read_bytes() == Path(second["reconstruction"]).read_bytes()


@pytest.mark.parametrize("grid", [False, True])
def test_interpolate(model: str, photo: str, tmp_path: Path, grid: bool, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["interpolate", *[photo] * 4, "--gif", "--steps", "2", "--model", model, "--output", str(out)]
    assert main([*arguments, "--frames", "2", "--grid"] if grid else [*arguments, "--frames", "7"]) == 0
    assert len(list(out.glob("frame_*.png"))) == (4 if grid else 7)
    assert Image.open(out / "frames.gif").n_frames >= 1  # equal frames become one
    if grid:
        assert Image.open(out / "grid.png").size == (2 * 256 + 8, 2 * 256 + 8)
    else:
        assert (out / "strip.png").is_file()
    assert main([*arguments, "--frames", "1000", "--grid"]) == 2
    assert "num_frames" in capsys.readouterr().err


def test_models_lists_the_bundled_model(capsys) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr().out.split() == list_models()
    assert "cifar10-32-small" in list_models()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("reconstruct PHOTO --model no-such-model --output OUT", "cifar10-32-small"),
        ("reconstruct missing.png --model MODEL --output OUT", "missing.png"),
        ("reconstruct PHOTO STRIPE TEXT --model MODEL --output OUT", "text.png"),
        ("reconstruct PHOTO --model MODEL --steps 0 --output OUT", "num_inference_steps"),
        ("reconstruct PHOTO --model MODEL --steps 2000 --output OUT", "2000"),
        ("reconstruct PHOTO --model MODEL --tiles 0 --output OUT", "--tiles"),
        ("reconstruct PHOTO --model MODEL --device abacus --output OUT", "device"),
        ("reconstruct PHOTO --model MODEL --device meta --output OUT", "device"),
        (f"reconstruct PHOTO --model MODEL --seed {2**63} --output OUT", "--seed"),
        ("reconstruct STRIPE --model MODEL --tiles 4 --output OUT", "--tiles"),
        ("reconstruct PHOTO --mode magic --output OUT", "--mode"),
        ("reconstruct PHOTO --model MODEL --exact --solver dpm --output OUT", "--solver"),
        ("variations PHOTO --model MODEL --exact --output OUT", "--exact"),
        ("sample --model MODEL --exact --output OUT", "--exact"),
        ("reconstruct PHOTO", "--output"),
        ("interpolate PHOTO PHOTO --frames 1 --model MODEL --output OUT", "num_frames"),
        ("juggle", "juggle"),
        ("", "COMMAND"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, model, photo, tmp_path, capsys) -> None:
    stripe, text = tmp_path / "stripe.png", tmp_path / "text.png"
    Image.new("L", (3, 6000)).save(stripe)
    text.write_text("not a picture")
    places = {"PHOTO": photo, "STRIPE": stripe, "TEXT": text, "MODEL": model, "OUT": tmp_path / "out"}
    assert main([str(places.get(word, word)) for word in words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "out").exists()


def test_of_several_processes_the_first_says_what_is_wrong(monkeypatch, capsys) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as caught:
        main(["juggle"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 2),
        (RecursionError("maximum recursion depth exceeded"), 2),
        (NotImplementedError("Cannot copy out of meta tensor; no data!"), 2),
        (SafetensorError("Error while deserializing header"), 2),
        (ModuleNotFoundError("No module named 'lpips'", name="lpips"), 2),
        (RuntimeError("one\nline \x1b[31mred\u202etxt" + 5000 * "x"), 2),
        (KeyError("weights"), 2),
        (TimeoutError(), 2),
    ],
)
def test_whatever_goes_wrong_is_one_line(error, code, monkeypatch, capsys) -> None:
    from diffae_hub.cli import models

    def fail(arguments) -> int:
        raise error

    monkeypatch.setattr(models, "run_models", fail)
    assert main(["models"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err[:-1].isprintable()
    assert 5 < len(captured.err) < 1100


def test_names_of_files_do_not_steer_the_terminal(model: str, photo: str, tmp_path: Path, capsys) -> None:
    odd = tmp_path / "a\x1b[31m\u202e.png"
    odd.write_bytes(Path(photo).read_bytes())
    arguments = ["reconstruct", str(odd), "--model", model, "--steps", "1"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.replace("\n", "").isprintable()
    loop = tmp_path / "loop"
    loop.symlink_to(loop.name)
    for output in (tmp_path / ("x" * 300), loop, loop / "out", Path("/dev/full/out")):
        assert main([*arguments, "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error[:-1].isprintable()
    assert main(["reconstruct", str(loop), "--model", str(loop), "--output", str(tmp_path / "out2")]) == 2


def test_full_disk_behind_standard_output() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "diffae_hub.cli", "models"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_help_has_every_flag(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["reconstruct", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in ("--mode", "inversion", "--tiles", "--steps", "--seed", "--json"):
        assert word in text


def test_the_command_line_does_not_change_global_randomness(model: str, photo: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert main(["reconstruct", photo, "--model", model, "--steps", "1", "--output", str(tmp_path / "out")]) == 0
    assert torch.equal(torch.rand(3), expected)
