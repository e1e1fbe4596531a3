"""`diffae-hub evaluate`, run for real on a tiny model: figures, continuation, several processes, the report."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from diffae_hub.cli import main
from diffae_hub.evaluation.evaluate import EvaluationOptions, image_pairs
from diffae_hub.evaluation.paper_tables import TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_11, TABLE_11_AVERAGE
from diffae_hub.training.data import load_rows


def run(*arguments: str) -> list[str]:
    return ["evaluate", *arguments, "--steps", "3", "--device", "cpu", "--batch_size", "4", "--json"]


@pytest.fixture
def evaluated(model: str, test_images: str, tmp_path: Path, capsys):
    """The report of both modes, without metrics that need weights."""
    output = tmp_path / "out"
    assert main(run(model, "--dataset", test_images, "--output", str(output), "--metrics")) == 0
    return json.loads(capsys.readouterr().out), output


def test_figures_are_those_of_the_reconstructions(evaluated, tiny_pipeline, test_images: str) -> None:
    figures, output = evaluated
    rows = load_rows(test_images, "test")
    originals = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) / 255 for row in rows]
    for mode in ("stochastic", "inversion"):
        expected = []
        for index, original in enumerate(originals):
            image = torch.from_numpy(original).permute(2, 0, 1)[None].float() * 2 - 1
            generator = torch.Generator().manual_seed(index)  # an image's noise depends on its index only
            result = tiny_pipeline(image, mode=mode, num_inference_steps=3, generator=generator, output_type="np")
            expected.append(peak_signal_noise_ratio(original, result.images[0].astype(np.float64), data_range=1))
        measured = figures["results"][mode]["psnr_db"]
        assert measured["count"] == len(originals)
        assert measured["mean"] == pytest.approx(np.mean(expected), abs=1e-3)
        assert measured["interval"][0] < measured["mean"] < measured["interval"][1]
        written = np.asarray(Image.open(output / mode / "0000003.png")) / 255
        assert peak_signal_noise_ratio(originals[3], written, data_range=1) == pytest.approx(expected[3], abs=0.3)
    assert figures["results"]["inversion"]["psnr_db"]["mean"] > figures["results"]["stochastic"]["psnr_db"]["mean"]


def test_report_holds_our_figures_and_the_papers(evaluated) -> None:
    figures, output = evaluated
    page = (output / "report.md").read_text()
    assert f"{figures['results']['stochastic']['psnr_db']['mean']:.2f} [" in page
    assert "| paper: v, SC-4, 2-phase | 30.351 | 0.9552 | 0.003217 | 2.1149 | 2.7153 |" in page
    assert "| paper: v, SC-4, 2-phase | 50.113 | 0.9996 |" in page
    assert json.loads((output / "report.json").read_text()) == figures
    for name in ("reconstructions.png", "interpolation.png"):
        assert f"]({name})" in page
        assert min(Image.open(output / name).size) > 16
    assert not list(output.rglob("*.partial"))


def test_two_processes_give_the_figures_of_one(evaluated, model: str, test_images: str, tmp_path: Path) -> None:
    figures, _ = evaluated
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "diffae_hub.cli", *run(model, "--dataset", test_images, "--output", str(tmp_path / "two"))]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--metrics"], env=environment, check=True, capture_output=True, timeout=300)
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    assert two["machine"]["processes"] == 2
    assert len(list((tmp_path / "two").glob("scores_stochastic_*.jsonl"))) == 2
    for mode in ("stochastic", "inversion"):
        for metric in ("psnr_db", "ssim"):
            one = figures["results"][mode][metric]
            assert two["results"][mode][metric]["mean"] == pytest.approx(one["mean"], abs=1e-4)
            assert two["results"][mode][metric]["interval"] == pytest.approx(one["interval"], abs=1e-3)


def test_killed_evaluation_goes_on_where_it_was(evaluated, model: str, test_images: str, tmp_path: Path) -> None:
    figures, _ = evaluated
    output = tmp_path / "killed"
    arguments = run(model, "--dataset", test_images, "--output", str(output), "--metrics", "--batch_size", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "diffae_hub.cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    scores = output / "scores_stochastic_0.jsonl"
    deadline = time.monotonic() + 120
    while not (scores.is_file() and len(scores.read_bytes().splitlines()) >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with scores.open("ab") as file:
        file.write(b'{"index": 9, "psnr')  # as if killed inside a write
    first = output / "stochastic" / "0000000.png"
    before = first.stat().st_mtime_ns

    assert main(arguments) == 0
    assert first.stat().st_mtime_ns == before
    again = json.loads((output / "report.json").read_text())["results"]
    for mode in ("stochastic", "inversion"):
        assert again[mode]["psnr_db"]["count"] == 11
        assert again[mode]["psnr_db"]["mean"] == pytest.approx(figures["results"][mode]["psnr_db"]["mean"], abs=1e-4)


def test_metric_without_weights_is_na_and_can_be_required(
    model: str, test_images: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    arguments = run(model, "--dataset", test_images, "--num_images", "3", "--mode", "stochastic")
    arguments += ["--output", str(tmp_path / "out"), "--dinov2_model", str(tmp_path / "none"), "--metrics", "fd_dinov2"]
    assert main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert "unavailable" in figures["results"]["stochastic"]["fd_dinov2"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "FD-DINOv2 ↓ n/a: " in page
    assert main([*arguments, "--require", "fd_dinov2"]) == 2
    assert "fd_dinov2 is required" in capsys.readouterr().err


def test_baselines_probe_and_other_model(
    model: str, tiny_pipeline, test_images: str, train_images: str, tmp_path: Path, capsys
) -> None:
    with torch.no_grad():
        tiny_pipeline.decoder.conv_out.bias.add_(0.5)
    tiny_pipeline.save_pretrained(tmp_path / "other")
    arguments = run(model, "--dataset", test_images, "--mode", "stochastic", "--output", str(tmp_path / "out"))
    arguments += ["--train_dataset", train_images, "--baselines", "mean_image", "pca", "jpeg", "--metrics"]
    arguments += ["--compare", str(tmp_path / "other"), "--probe", "multiclass", "--label_columns", "label"]
    assert main(arguments) == 0
    results = json.loads(capsys.readouterr().out)["results"]

    def pixels(source: str, split: str) -> np.ndarray:
        return np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) / 255 for row in load_rows(source, split)])

    train, test = pixels(train_images, "train"), pixels(test_images, "test")
    expected = [peak_signal_noise_ratio(image, train.mean(axis=0), data_range=1) for image in test]
    assert results["mean_image"]["psnr_db"]["mean"] == pytest.approx(np.mean(expected), abs=1e-3)
    flat = (train - train.mean(axis=0)).reshape(len(train), -1)
    basis = np.linalg.svd(flat, full_matrices=False)[2][:8]  # the latent code has 8 numbers
    projected = ((test - train.mean(axis=0)).reshape(len(test), -1) @ basis.T @ basis).reshape(test.shape)
    expected = [
        peak_signal_noise_ratio(image, (train.mean(axis=0) + part).clip(0, 1), data_range=1)
        for image, part in zip(test, projected, strict=True)
    ]
    assert results["pca"]["psnr_db"]["mean"] == pytest.approx(np.mean(expected), abs=0.05)
    assert results["compare_stochastic"]["psnr_db"]["mean"] != results["stochastic"]["psnr_db"]["mean"]
    assert results["jpeg"]["psnr_db"]["count"] == len(test)
    # Dark and bright patterns are told apart even by a random encoder's code.
    assert results["probe"]["accuracy"] > 0.8
    assert results["probe"]["auroc_macro"] > 0.9


def test_path_length_is_measured_and_continued(
    model: str, test_images: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    """With LPIPS replaced by a distance that needs no weights; the formula itself has its own test."""
    from diffae_hub.evaluation import lpips

    class MeanSquare:
        calls = 0

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __call__(self, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
            MeanSquare.calls += len(images)
            return (images - references).square().flatten(1).mean(dim=1)

    monkeypatch.setattr(lpips, "PerceptualDistance", MeanSquare)
    arguments = run(model, "--dataset", test_images, "--mode", "stochastic", "--metrics")
    arguments += ["--output", str(tmp_path / "out"), "--path_length_intervals", "4", "--path_length_pairs"]
    assert main([*arguments, "2"]) == 0
    first = json.loads(capsys.readouterr().out)["results"]["perceptual_path_length"]
    assert (first["count"], MeanSquare.calls) == (2, 8)
    assert main([*arguments, "3"]) == 0
    second = json.loads(capsys.readouterr().out)["results"]["perceptual_path_length"]
    assert (second["count"], MeanSquare.calls) == (3, 12)  # only the new pair was measured
    assert first["mean"] > 0


def test_a_folder_belongs_to_one_evaluation(evaluated, model: str, test_images: str, tmp_path: Path, capsys) -> None:
    _, output = evaluated
    assert main(run(model, "--dataset", test_images, "--output", str(output), "--seed", "1", "--metrics")) == 2
    assert "seed=0, got 1" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    assert main(run(model, "--dataset", test_images, "--output", str(tmp_path / "full"), "--metrics")) == 2
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ("other",)}, "modes must be among stochastic, inversion, got 'other'"),
        ({"metrics": ("fid",)}, "metrics must be among .*, got 'fid'"),
        ({"require": ("fd_vgg16",)}, "require must be among .*, got 'fd_vgg16'"),
        ({"num_images": 1}, "num_images must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"baselines": ("pca",)}, "train_dataset must be given for pca"),
        ({"probe": "multiclass", "train_dataset": "x"}, "label_columns must be given"),
        ({"dtype": "int8"}, "dtype must be among"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationOptions(**{"model": "m", "dataset": "d", "output": Path("o"), **options})


def test_bad_data(model: str, test_images: str, tmp_path: Path, capsys) -> None:
    assert main(run(model, "--dataset", str(tmp_path / "none"), "--output", str(tmp_path / "out"))) == 2
    error = capsys.readouterr().err
    assert "none" in error
    assert len(error.splitlines()) == 1
    arguments = run(model, "--dataset", test_images, "--output", str(tmp_path / "out"), "--metrics")
    assert main([*arguments, "--paper_dataset", "MNIST"]) == 2
    assert "CIFAR-10 32" in capsys.readouterr().err


def test_pairs_are_drawn_by_the_seed_and_extend() -> None:
    pairs = image_pairs(50, 20, seed=3)
    assert all(first != second and max(first, second) < 50 for first, second in pairs)
    assert image_pairs(50, 30, seed=3)[:20] == pairs
    assert image_pairs(50, 20, seed=4) != pairs


def test_paper_tables_agree_where_they_overlap() -> None:
    """Rows that the paper prints twice are transcribed twice."""
    for method in set(TABLE_1) & set(TABLE_2):
        assert TABLE_1[method] == TABLE_2[method]
    for method in set(TABLE_3) & set(TABLE_4["CIFAR-10 32"]):
        stochastic = TABLE_4["CIFAR-10 32"][method][0]
        assert stochastic == pytest.approx(TABLE_3[method], abs=6e-5)
    for column, average in enumerate(TABLE_11_AVERAGE.values()):
        assert np.mean([values[column] for values in TABLE_11.values()]) == pytest.approx(average, abs=6e-5)
