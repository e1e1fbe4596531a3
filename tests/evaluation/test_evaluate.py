"""`diffae-hub evaluate`, run for real on a tiny model: figures, continuation, several processes, the report."""

from __future__ import annotations

import io
import json
import os
import shutil
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

from diffae_hub.cli.main import main
from diffae_hub.conversion.official_configuration import CELEBA_ATTRIBUTES
from diffae_hub.data.open_dataset import load_rows
from diffae_hub.evaluation.baselines import jpeg_reconstruct
from diffae_hub.evaluation.evaluate import image_pairs
from diffae_hub.evaluation.evaluation_folder import EvaluationFolder
from diffae_hub.evaluation.options import EvaluationOptions
from diffae_hub.evaluation.paper_tables import (
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_9,
    TABLE_10,
    TABLE_10_AVERAGE,
    TABLE_11,
    TABLE_11_AVERAGE,
    format_papers,
)
from diffae_hub.evaluation.report import format_figure

from ..conftest import write_parquet


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


def test_two_processes_give_the_figures_of_one(
    model: str, test_images: str, train_images: str, torch_home: Path, tmp_path: Path
) -> None:
    """All figures: reconstructions, LPIPS, path length, probe, baselines."""
    arguments = run(model, "--dataset", test_images, "--train_dataset", train_images)
    arguments += ["--path_length_pairs", "3", "--path_length_intervals", "2", "--baselines", "pca", "jpeg"]
    arguments += ["--probe", "multiclass", "--label_columns", "label", "--metrics", "lpips_vgg"]
    environment = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TORCH_HOME": str(torch_home)
    }  # fmt: skip
    reports = []
    for count in (1, 2):
        output = tmp_path / str(count)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        command += ["-m", "diffae_hub.cli", *arguments, "--output", str(output)]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=900)
        reports.append(json.loads((output / "report.json").read_text()))
        assert reports[-1]["machine"]["processes"] == count
        assert len(list(output.glob("scores_stochastic_*.jsonl"))) == count
    one, two = (report["results"] for report in reports)
    assert one.keys() == two.keys()
    for method in ("stochastic", "inversion", "pca", "jpeg"):
        for metric in ("psnr_db", "ssim", "lpips_vgg"):
            assert two[method][metric]["mean"] == pytest.approx(one[method][metric]["mean"], abs=1e-4)
            assert two[method][metric]["interval"] == pytest.approx(one[method][metric]["interval"], abs=1e-3)
    assert two["perceptual_path_length"]["mean"] == pytest.approx(one["perceptual_path_length"]["mean"], rel=1e-3)
    assert two["probe"]["accuracy"] == one["probe"]["accuracy"]
    assert two["probe"]["auroc_macro"] == pytest.approx(one["probe"]["auroc_macro"], abs=1e-3)


def test_killed_evaluation_goes_on_where_it_was(evaluated, model: str, test_images: str, tmp_path: Path) -> None:
    figures, _ = evaluated
    output = tmp_path / "killed"
    arguments = run(model, "--dataset", test_images, "--output", str(output), "--metrics", "--batch_size", "1")
    scores = output / "scores_stochastic_0.jsonl"

    def killed_in_the_middle() -> bool:
        """False if the evaluation, which is short, was faster than this test."""
        shutil.rmtree(output, ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "diffae_hub.cli", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (scores.is_file() and len(scores.read_bytes().splitlines()) >= 2):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return not (output / "report.json").exists()

    assert any(killed_in_the_middle() for _ in range(10))
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
    sizes = jpeg_reconstruct(torch.from_numpy(test).permute(0, 3, 1, 2).float(), 16)[1]
    assert results["jpeg"]["bytes"] == {
        "mean": pytest.approx(sizes.float().mean().item()),
        "budget": 16,  # the latent code has 8 numbers
        "over_budget": int((sizes > 16).sum()),
    }
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| PCA, 8 numbers |" in page
    assert "| JPEG, 16 bytes |" in page
    # Dark and bright patterns are told apart even by a random encoder's code.
    assert results["probe"]["accuracy"] > 0.8
    assert results["probe"]["auroc_macro"] > 0.9


def test_path_length_is_measured_and_continued(
    model: str, test_images: str, torch_home: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """By the real LPIPS-VGG, on a trunk made here; the formula itself has its own test."""
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    arguments = run(model, "--dataset", test_images, "--mode", "stochastic", "--metrics")
    arguments += ["--path_length_intervals", "4", "--path_length_pairs"]
    out = ["--output", str(tmp_path / "out")]

    def measure(*more: str) -> dict:
        assert main([*arguments, *more]) == 0
        return json.loads(capsys.readouterr().out)["results"]["perceptual_path_length"]

    def recorded() -> list[list[int]]:
        files = sorted((tmp_path / "out").glob("path_lengths_4_*.jsonl"))
        return [[json.loads(line)["pair"] for line in file.read_text().splitlines()] for file in files]

    first = measure("2", *out)
    assert first["count"] == first["cross_fade"]["count"] == 2
    assert first["mean"] > 0
    assert first["cross_fade"]["mean"] > 0
    assert "one image fading into the other" in (tmp_path / "out" / "report.md").read_text()
    second = measure("3", *out)
    assert second["count"] == 3
    assert recorded() == [[0, 1], [2]], "only the new pair was measured"
    # Of other images, the pairs are others too: nothing measured before may stand for them, nor be lost.
    fewer = measure("3", "--num_images", "5", *out)
    assert fewer == measure("3", "--num_images", "5", "--output", str(tmp_path / "new"))
    files = recorded()
    assert measure("3", *out) == second
    assert recorded() == files


def test_a_folder_belongs_to_one_evaluation(evaluated, model: str, test_images: str, tmp_path: Path, capsys) -> None:
    _, output = evaluated
    assert main(run(model, "--dataset", test_images, "--output", str(output), "--seed", "1", "--metrics")) == 2
    assert "seed=0, got 1" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    assert main(run(model, "--dataset", test_images, "--output", str(tmp_path / "full"), "--metrics")) == 2
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious.txt"]


def test_parts_of_an_evaluation_belong_to_their_data(
    model: str, test_images: str, train_images: str, tiny_pipeline, tmp_path: Path, capsys
) -> None:
    """Baselines, comparison and codes that stand in the folder are not shown as those of other data or weights."""
    tiny_pipeline.save_pretrained(tmp_path / "other")
    arguments = run(model, "--dataset", test_images, "--mode", "stochastic", "--output", str(tmp_path / "out"))
    arguments += ["--metrics", "--baselines", "mean_image", "--compare", str(tmp_path / "other")]
    assert main([*arguments, "--train_dataset", train_images]) == 0
    for more, message in (
        (["--train_dataset", test_images, "--train_split", "test"], "an evaluation (baselines) of the same settings"),
        (["--train_dataset", train_images, "--baseline_images", "3"], "images=40, got 3"),
        (["--train_dataset", train_images, "--image_column", "other"], "image_column must be one of"),
    ):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    with torch.no_grad():
        tiny_pipeline.encoder.head.bias.add_(1)
    tiny_pipeline.save_pretrained(tmp_path / "other")
    assert main([*arguments, "--train_dataset", train_images]) == 2
    assert "an evaluation (compare) of the same settings" in capsys.readouterr().err


def test_a_schedule_is_part_of_the_model(evaluated, model: str, test_images: str, capsys) -> None:
    _, output = evaluated
    configuration = Path(model) / "scheduler" / "scheduler_config.json"
    configuration.write_text(configuration.read_text().replace('"scaling_factor": 4.0', '"scaling_factor": 2.0'))
    assert main(run(model, "--dataset", test_images, "--output", str(output), "--metrics")) == 2
    assert "weights=" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "encode"])
def test_output_inside_the_data_is_refused(command: str, model: str, tmp_path: Path, capsys) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for color in ("red", "blue"):
        Image.new("RGB", (20, 20), color).save(photos / f"{color}.png")
    output = ["--output", str(photos / "out")]
    if command == "evaluate":
        assert main([*run(model, "--dataset", str(photos), "--metrics"), *output]) == 2
    else:
        assert main(["encode", str(photos), "--model", model, *output]) == 2
    assert "output must lie outside the folder of the data" in capsys.readouterr().err
    assert sorted(path.name for path in photos.iterdir()) == ["blue.png", "red.png"]


def test_an_unreadable_image_is_named_before_the_sampling(model: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(3):
        Image.new("RGB", (20, 20), "red").save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "photos" / "3.png").write_bytes(b"junk")
    arguments = run(model, "--dataset", str(tmp_path / "photos"), "--metrics", "--output", str(tmp_path / "out"))
    assert main(arguments) == 2
    assert "3.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--num_images", "3"]) == 0


def test_a_required_metric_is_looked_for_before_the_sampling(
    model: str, test_images: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    arguments = run(model, "--dataset", test_images, "--output", str(tmp_path / "out"))
    assert main([*arguments, "--metrics", "lpips_vgg", "--require", "lpips_vgg"]) == 2
    assert "lpips_vgg is required, but cannot be had" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ("other",)}, "modes must be among stochastic, inversion, got 'other'"),
        ({"metrics": ("fid",)}, "metrics must be among .*, got 'fid'"),
        ({"require": ("fid",)}, "require must be among .*, got 'fid'"),
        ({"require": ("fd_vgg16",)}, "require must be among what is measured; fd_vgg16 is not: add it by metrics"),
        ({"require": ("perceptual_path_length",)}, "add it by path_length_pairs"),
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
        title = "AUROC, " if probe == "multilabel" else ""
        assert f"| {title}labels[0] | {figures[0]:.4f} |" in page
        assert f"| {title}labels[2] | n/a |" in page


@pytest.mark.parametrize("named", [False, True])
def test_the_papers_figures_stand_beside_its_own_classes_only(named: bool, model: str, tmp_path: Path, capsys) -> None:
    """Ten classes are those of the paper if the data set says so by their names, not by their number."""
    import datasets
    import pyarrow.parquet as pq

    arguments = run(model, "--mode", "stochastic", "--probe", "multiclass", "--label_columns", "digit", "--metrics")
    for split, option, count in (("train", "--train_dataset", 40), ("test", "--dataset", 20)):
        path = write_parquet(tmp_path / f"{split}.parquet", count, seed=3)
        digits = [index % 10 for index in range(count)]
        feature = datasets.ClassLabel(names=list(TABLE_11)) if named else datasets.Value("int64")
        features = datasets.Features({"image": datasets.Image(), "digit": feature})
        images = pq.read_table(path)["image"].to_pylist()
        datasets.Dataset.from_dict({"image": images, "digit": digits}, features=features).to_parquet(path)
        arguments += [option, path]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    probe = json.loads(capsys.readouterr().out)["results"]["probe"]
    page = (tmp_path / "out" / "report.md").read_text().split("## Linear probe")[1].split("\n## ")[0]
    third = "frog" if named else "6"
    value = probe["auroc_per_class"][6]
    papers = " 0.9785 | 0.9781 | 0.9812 |" if named else ""
    assert f"| AUROC, {third} | {value:.4f} |{papers}\n" in page
    assert ("0.7271 | 0.7061 | 0.7227" in page) == named
    assert ("paper: " in page) == named


def test_repeated_run_does_not_count_codes_as_encoded_again(
    model: str, test_images: str, train_images: str, tmp_path: Path, capsys
) -> None:
    arguments = run(model, "--dataset", test_images, "--train_dataset", train_images, "--mode", "stochastic")
    arguments += ["--output", str(tmp_path / "out"), "--probe", "multiclass", "--label_columns", "label", "--metrics"]
    timings = []
    for _ in range(2):
        assert main(arguments) == 0
        timings.append(json.loads(capsys.readouterr().out)["timings"])
        del timings[-1]["probe_multiclass"]  # which is fitted each time
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
    for table, averages in ((TABLE_10, TABLE_10_AVERAGE), (TABLE_11, TABLE_11_AVERAGE)):
        for column, average in enumerate(averages.values()):
            assert np.mean([values[column] for values in table.values()]) == pytest.approx(average, abs=6e-5)
    assert set(TABLE_10) == set(CELEBA_ATTRIBUTES)
