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
from diffae_hub.evaluation.evaluation_folder import EvaluationFolder
from diffae_hub.evaluation.paper_tables import (
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_9,
    TABLE_11,
    TABLE_11_AVERAGE,
    format_papers,
)
from diffae_hub.evaluation.report import format_figure
from diffae_hub.training.data import load_rows

from .conftest import write_parquet


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
    subprocess.run([*command, "--metrics"], env=environment, check=True, capture_output=True, timeout=900)
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
    # Of other images, the pairs are others too: nothing measured before may stand for them, nor be lost.
    assert main([*arguments, "3", "--num_images", "5"]) == 0
    fewer = json.loads(capsys.readouterr().out)["results"]["perceptual_path_length"]
    assert main([*arguments, "3", "--num_images", "5", "--output", str(tmp_path / "new")]) == 0
    assert fewer == json.loads(capsys.readouterr().out)["results"]["perceptual_path_length"]
    calls = MeanSquare.calls
    assert main([*arguments, "3"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["perceptual_path_length"] == second
    assert MeanSquare.calls == calls


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
        ({"seed": 2**64}, "seed must be at most"),
        (
            {"probe": "multiclass", "train_dataset": "x", "label_columns": ("a", "b")},
            "label_columns must be one column for multiclass, got a, b",
        ),
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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "2000"], "num_inference_steps must be between 1 and 1000, got 2000"),
        (["--compare", "nonsense"], "model 'nonsense' cannot be loaded"),
        (["--crop", "d2c"], "178x218"),
        (["--device", "nonsense"], "device must be a device of this machine, got 'nonsense'"),
        (["--train_dataset", "nonsense", "--baselines", "pca"], "dataset 'nonsense'"),
        (["--probe", "regression", "--label_columns", "nonsense"], "columns must be among"),
    ],
)
def test_what_is_refused_leaves_the_folder_free(
    more: list[str], message: str, model: str, test_images: str, train_images: str, tmp_path: Path, capsys
) -> None:
    arguments = run(model, "--dataset", test_images, "--train_dataset", train_images, "--mode", "stochastic")
    arguments += ["--output", str(tmp_path / "out"), "--metrics"]
    assert main([*arguments, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_one_image_and_an_output_that_is_a_file(model: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "photos").mkdir()
    picture = tmp_path / "photos" / "a.png"
    Image.new("RGB", (20, 20)).save(picture)
    arguments = run(model, "--dataset", str(picture.parent), "--metrics")
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert "dataset must hold at least 2 images, got 1" in capsys.readouterr().err
    Image.new("RGB", (20, 20), "red").save(picture.with_name("b.png"))
    before = picture.read_bytes()
    assert main([*arguments, "--output", str(picture)]) == 2
    assert "output must be a folder, got the file" in capsys.readouterr().err
    assert picture.read_bytes() == before


@pytest.mark.parametrize("probe", ["multilabel", "regression"])
def test_probe_of_a_column_of_lists(probe: str, model: str, tmp_path: Path, capsys) -> None:
    """Each place of the lists is a label; figures that are not defined are null, as JSON has no NaN."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = {}
    for split, count in (("train", 20), ("test", 8)):
        names[split] = write_parquet(tmp_path / f"{split}.parquet", count, seed=2)
        table = pq.read_table(names[split])
        lists = [[index % 2, (index // 2) % 2, 1] for index in range(count)]
        pq.write_table(table.append_column("labels", pa.array(lists)), names[split])
    arguments = run(model, "--dataset", names["test"], "--train_dataset", names["train"], "--mode", "stochastic")
    arguments += ["--output", str(tmp_path / "out"), "--probe", probe, "--label_columns", "labels", "--metrics"]
    for count in (6, 8, 5):  # in one folder
        assert main([*arguments, "--num_images", str(count)]) == 0
        out = capsys.readouterr().out
        result = json.loads(out, parse_constant=pytest.fail)["results"]["probe"]
        assert result["test_codes"] == count
        assert result["labels"] == ["labels[0]", "labels[1]", "labels[2]"]
        figures = result["auroc_per_attribute" if probe == "multilabel" else "r_squared"]
        assert figures[0] > 0.5
        assert figures[2] is None
        page = (tmp_path / "out" / "report.md").read_text()
        assert f"| labels[0] | {figures[0]:.4f} |" in page
        assert "| labels[2] | n/a |" in page


def test_ten_classes_are_not_taken_for_those_of_the_paper(model: str, tmp_path: Path, capsys) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arguments = run(model, "--mode", "stochastic", "--probe", "multiclass", "--label_columns", "digit", "--metrics")
    for split, option, count in (("train", "--train_dataset", 40), ("test", "--dataset", 20)):
        path = write_parquet(tmp_path / f"{split}.parquet", count, seed=3)
        digits = pa.array([index % 10 + 1 for index in range(count)])
        pq.write_table(pq.read_table(path).append_column("digit", digits), path)
        arguments += [option, path]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert "airplane" not in page
    assert "| 10 | " in page


def test_repeated_run_does_not_count_codes_as_encoded_again(
    model: str, test_images: str, train_images: str, tmp_path: Path, capsys
) -> None:
    arguments = run(model, "--dataset", test_images, "--train_dataset", train_images, "--mode", "stochastic")
    arguments += ["--output", str(tmp_path / "out"), "--probe", "multiclass", "--label_columns", "label", "--metrics"]
    timings = []
    for _ in range(2):
        assert main(arguments) == 0
        timings.append(json.loads(capsys.readouterr().out)["timings"])
    assert timings[0] == timings[1]
    assert timings[0]["encoding_train"]["images"] == 40


def test_figures_that_are_not_finite_are_not_available() -> None:
    assert format_figure("psnr_db", {"mean": None, "interval": [None, None], "count": 3}) == "n/a"
    assert format_figure("fd_vgg16", {"value": None, "count": 3}) == "n/a"
    assert format_figure("psnr_db", {"mean": 20.0, "interval": [None, None], "count": 3}) == "20.00"


def test_equal_images_count_with_a_finite_figure(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "out", {})
    images = torch.rand(2, 3, 16, 16)
    folder.add("same", [0, 1], images, torch.stack([images[0], 1 - images[1]]))
    scores = folder.scores("same")
    assert scores[0] == {"psnr_db": 100.0, "ssim": pytest.approx(1.0)}
    assert scores[1]["psnr_db"] < 20


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
    assert format_papers("lpips_alex", TABLE_4["CIFAR-10 32"][next(iter(TABLE_3))][1][2]) == "0.000071"
    assert [format_papers("fid", figure) for figure in TABLE_9["CIFAR-10 32"][3:]] == ["117.0716", "130.0356"]
    assert format_papers("psnr_db", 49.51) == "49.510"
    for column, average in enumerate(TABLE_11_AVERAGE.values()):
        assert np.mean([values[column] for values in TABLE_11.values()]) == pytest.approx(average, abs=6e-5)
