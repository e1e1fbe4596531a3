"""The command line, run for real on tiny pipelines: files, figures, exit codes, one-line errors."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image, ImageOps
from skimage.metrics import peak_signal_noise_ratio

from diffae_hub import AttributeClassifier, VPDDIMScheduler, list_models
from diffae_hub.cli import exchange
from diffae_hub.cli.main import main
from diffae_hub.data import TrainingError

from ..conftest import make_tiny_pipeline


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def reconstruct(tmp_path: Path, capsys) -> Callable[..., dict[str, Any]]:
    def run(*words: object) -> dict[str, Any]:
        assert main(["reconstruct", *map(str, words), "--output", str(tmp_path / "out"), "--json"]) == 0
        text = capsys.readouterr().out
        assert "Infinity" not in text
        return json.loads(text)

    return run


def given(photo: str) -> np.ndarray:
    """Returns the input of the model: the centre square, resized by Pillow."""
    return np.asarray(ImageOps.fit(Image.open(photo), (16, 16), Image.Resampling.LANCZOS))


def test_reconstruct_writes_pictures_and_true_figures(reconstruct, model: str, photo: str, tmp_path: Path) -> None:
    """Two files of one name give two equal pictures for one seed, and the global random state stays as it was."""
    other = tmp_path / "elsewhere" / "photo.png"
    other.parent.mkdir()
    other.write_bytes(Path(photo).read_bytes())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    report = reconstruct(photo, other, "--model", model, "--steps", "3")
    assert torch.equal(torch.rand(3), expected)
    first, second = report["images"]
    assert (report["mode"], report["steps"], first["width"], first["height"]) == ("stochastic", 3, 16, 16)
    result = np.asarray(Image.open(first["reconstruction"])) / 255
    psnr = peak_signal_noise_ratio(given(photo) / 255, result, data_range=1)
    assert first["psnr_db"] == pytest.approx(psnr, abs=0.3)
    assert Image.open(first["side_by_side"]).size == (3 * 256 + 2 * 8, 256)
    assert first["reconstruction"] != second["reconstruction"]
    assert Path(first["reconstruction"]).read_bytes() == Path(second["reconstruction"]).read_bytes()
    assert not list((tmp_path / "out").glob(".*"))


def test_exact_reconstruction_equals_the_picture(reconstruct, model: str, photo: str) -> None:
    report = reconstruct(photo, "--model", model, "--exact", "--steps", "20")
    (record,) = report["images"]
    assert (report["mode"], record["values"], record["equal_values"]) == ("inversion", 768, 768)
    assert np.array_equal(np.asarray(Image.open(record["reconstruction"])), given(photo))
    assert record["psnr_db"] is None, "JSON knows no infinity"


def test_one_channel_model_in_tiles(reconstruct, photo: str, tmp_path: Path) -> None:
    """The picture is stored on its side and must be shown upright."""
    make_tiny_pipeline(channels=1).save_pretrained(tmp_path / "gray")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo).rotate(90, expand=True).save(tmp_path / "lying.png", exif=exif)
    flags = ("--mode", "inversion", "--steps", "40", "--tiles", "2")
    (record,) = reconstruct(tmp_path / "lying.png", "--model", tmp_path / "gray", *flags)["images"]
    assert record["tiles"] == 8
    result = Image.open(record["reconstruction"])
    assert (result.mode, result.size, Image.open(record["side_by_side"]).mode) == ("L", (48, 30), "L")
    expected = np.asarray(Image.open(photo).convert("L").resize((48, 30), Image.Resampling.LANCZOS))
    psnr = peak_signal_noise_ratio(expected, np.asarray(result))
    assert record["psnr_db"] == pytest.approx(psnr, abs=0.1)
    assert psnr > 20


def test_solvers(model: str, photo: str, tmp_path: Path, tiny_pipeline) -> None:
    """Each solver gives another picture, and a model saved with a diffusers solver keeps its own schedule."""
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
    flags: tuple[str, ...], timestep_spacing: str, solver: str, steps: int, photo, tmp_path, tiny_pipeline, reconstruct
) -> None:
    tiny_pipeline.scheduler = VPDDIMScheduler(noise_schedule="linear_beta", timestep_spacing=timestep_spacing)
    tiny_pipeline.save_pretrained(tmp_path / "model")
    report = reconstruct(photo, f"--model={tmp_path / 'model'}", *flags)
    assert (report["solver"], report["steps"]) == (solver, steps)


def test_interpolate(model: str, photo: str, tmp_path: Path, refusal) -> None:
    out = tmp_path / "out"
    arguments = ["interpolate", *[photo] * 4, "--gif", "--steps", "2", "--model", model, "--output", str(out)]
    assert main([*arguments, "--frames", "2", "--grid"]) == 0
    assert len(list(out.glob("frame_*.png"))) == 4
    assert Image.open(out / "grid.png").size == (2 * 256 + 8, 2 * 256 + 8)
    assert main([*arguments, "--frames", "7"]) == 0
    assert len(list(out.glob("frame_*.png"))) == 7
    assert Image.open(out / "strip.png").size == (7 * 256 + 6 * 8, 256)
    assert Image.open(out / "frames.gif").n_frames >= 1  # equal frames become one
    assert main([*arguments, "--frames", "7", "--mp4"]) == 0
    assert imageio.v3.improps(out / "frames.mp4", plugin="FFMPEG").shape[1:] == (256, 256, 3)
    assert len(imageio.v3.imread(out / "frames.mp4", plugin="FFMPEG")) == 7
    assert "num_frames" in refusal(*arguments, "--frames", "1000", "--grid")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("interpolate PHOTO OTHER --frames 2", "frame_001.png"),
        ("interpolate PHOTO OTHER --frames 2", "strip.png"),
        ("interpolate PHOTO OTHER --frames 2 --gif", "frames.gif"),
        ("reconstruct PHOTO OTHER", "photo_stochastic.png"),
        ("edit PHOTO OTHER --attribute component --strengths 1", "000_photo_1.png"),
        ("variations OTHER", "variations.png"),
    ],
)
def test_no_image_is_written_over(words, name, model, photo, tmp_path, tiny_pipeline, refusal) -> None:
    tiny_pipeline.attribute_classifier = AttributeClassifier(8, 1, ["component"])
    tiny_pipeline.save_pretrained(model)
    other = tmp_path / name
    other.write_bytes(Path(photo).read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    words = [{"PHOTO": photo, "OTHER": other}.get(word, word) for word in words.split()]
    assert name in refusal(*words, "--model", model, "--steps", "2", "--output", tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("reconstruct PHOTO --model no-such-model --output OUT", "cifar10-32-small"),
        ("reconstruct missing.png --model MODEL --output OUT", "missing.png"),
        ("reconstruct PHOTO TEXT --model MODEL --output OUT", "text.png"),
        ("reconstruct PHOTO --model MODEL --steps 0 --output OUT", "num_inference_steps"),
        ("reconstruct PHOTO --model MODEL --tiles 0 --output OUT", "--tiles"),
        ("reconstruct LINE --model MODEL --tiles 2 --output OUT", "--tiles"),  # 340 million tiles
        ("train --preset small-64 --config PIPE --dataset PHOTOS --output OUT", "pipe"),
        ("reconstruct PHOTO --model MODEL --exact --solver dpm --output OUT", "--solver"),
        ("variations PHOTO --model MODEL --exact --output OUT", "--exact"),
        ("reconstruct PHOTO", "--output"),
        ("sample --seed 1e30 --output OUT", "--seed"),
        ("juggle", "juggle"),
        ("", "COMMAND"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, model, photo, tmp_path, refusal) -> None:
    line, text, pipe = (tmp_path / name for name in ("line.png", "text.png", "pipe"))
    if "LINE" in words:
        Image.new("L", (80_000_000, 1)).save(line)
    os.mkfifo(pipe)
    text.write_text("not a picture")
    places = {"PHOTO": photo, "LINE": line, "TEXT": text, "PIPE": pipe, "PHOTOS": tmp_path}
    places |= {"MODEL": model, "OUT": tmp_path / "out"}
    assert message in refusal(*(places.get(word, word) for word in words.split()))
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
        (OSError(28, "No space left on device"), 2),
        (ModuleNotFoundError("No module named 'lpips'", name="lpips"), 2),
        (RuntimeError("one\nline \x1b[31mred\u202etxt" + 5000 * "x"), 2),
        (TimeoutError(), 2),
        (TrainingError("loss is not finite"), 1),
    ],
)
def test_whatever_goes_wrong_is_one_line(error, code, monkeypatch, capsys) -> None:
    def fail(options: exchange.ModelsOptions, arguments: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(exchange, "models", fail)
    assert main(["models"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err[:-1].isprintable()
    assert 5 < len(captured.err) < 1100


# A command that is interrupted while it imports, and one while it works.
INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from diffae_hub.cli import exchange
from diffae_hub.cli.main import main

def models(options: exchange.ModelsOptions, arguments):
    if sys.argv[2] == "import":
        import interrupts
    os.kill(os.getpid(), signal.SIGINT)

exchange.models = models
Path(sys.argv[1], "interrupts.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
sys.path.insert(0, sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell runs the tests in the background
sys.exit(main(["models"]))
"""


@pytest.mark.parametrize("when", ["import", "work"])
def test_ctrl_c_is_one_word(when: str, tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", INTERRUPTED, tmp_path, when], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_names_of_files_do_not_steer_the_terminal(model: str, photo: str, tmp_path: Path, capsys, refusal) -> None:
    odd = tmp_path / "a\x1b[31m\u202e.png"
    odd.write_bytes(Path(photo).read_bytes())
    arguments = ["reconstruct", str(odd), "--model", model, "--steps", "1"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.replace("\n", "").isprintable()
    loop = tmp_path / "loop"
    loop.symlink_to(loop.name)
    for output in (tmp_path / ("x" * 300), loop, loop / "out", Path("/dev/full/out")):
        refusal(*arguments, "--output", output)
    refusal("reconstruct", loop, "--model", loop, "--output", tmp_path / "out2")


def test_models_and_a_full_disk_behind_standard_output(capsys) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr().out.split() == list_models()
    command = [sys.executable, "-m", "diffae_hub.cli", "models"]
    closed = subprocess.run(["sh", "-c", f"{shlex.join(command)} >&- 2>&-; echo $?"], capture_output=True, text=True)
    assert closed.stdout == "0\n"
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
