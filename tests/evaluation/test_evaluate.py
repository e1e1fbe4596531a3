"""`diffae-hub evaluate`, run for real on a tiny model: figures, continuation, several processes, the report."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
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
from diffae_hub.evaluation.evaluation_folder import EvaluationFolder
from diffae_hub.evaluation.measure import measure
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
from diffae_hub.evaluation.reconstruct import image_pairs
from diffae_hub.evaluation.report import format_figure, write_report

from ..conftest import write_parquet


def run(*arguments: str) -> list[str]:
    return ["evaluate", *arguments, "--steps", "3", "--device", "cpu", "--batch-size", "4", "--json"]


@pytest.fixture
def evaluated(model: str, test_images: str, tmp_path: Path, capsys):
    """The report of both modes, without metrics that need weights."""
    output = tmp_path / "out"
    assert main(run(model, "--dataset", test_images, "--output", str(output), "--metrics")) == 0
    return json.loads(capsys.readouterr().out), output


def roughness(image: np.ndarray) -> float:
    """Mean distance of inner pixels from the mean of their four neighbours."""
    inner = image[1:-1, 1:-1]
    return np.abs(inner - (image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:]) / 4).mean()


@torch.no_grad()
def plain_inversion(pipeline, image: torch.Tensor, code: torch.Tensor, steps: int) -> torch.Tensor:
    """x_T by the DDIM step read backwards, t = 0 to 1 in `steps` equal steps, for velocity prediction and SC-4."""

    def level(t: float) -> tuple[float, float]:
        """alpha = cos(arctan(tan(pi t / 2) / S)), sigma likewise."""
        angle = np.arctan2(np.sin(np.pi * t / 2), 4 * np.cos(np.pi * t / 2))
        return float(np.cos(angle)), float(np.sin(angle))

    for k in range(steps):
        (alpha, sigma), (next_alpha, next_sigma) = level(k / steps), level((k + 1) / steps)
        velocity = pipeline.decoder(image, torch.tensor(1000 * k / steps), code).sample
        original, noise = alpha * image - sigma * velocity, sigma * image + alpha * velocity
        image = next_alpha * original + next_sigma * noise
    return image


@torch.no_grad()
def test_figures_are_those_of_the_reconstructions(evaluated, tiny_pipeline, test_images: str) -> None:
    figures, output = evaluated
    rows = load_rows(test_images, "test")
    originals = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) / 255 for row in rows]
    for mode in ("stochastic", "inversion"):
        expected = []
        for index, original in enumerate(originals):
            image = torch.from_numpy(original).permute(2, 0, 1)[None].float() * 2 - 1
            code = tiny_pipeline.encoder(image).latent_code
            if mode == "stochastic":  # an image's noise depends on its index only
                noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(index))
            else:
                noise = plain_inversion(tiny_pipeline, image, code, 3)
            result = tiny_pipeline.decode(code, noise=noise, num_inference_steps=3, output_type="np").images[0]
            expected.append(peak_signal_noise_ratio(original, result.astype(np.float64), data_range=1))
        measured = figures["results"][mode]["psnr_db"]
        assert measured["count"] == len(originals)
        assert measured["mean"] == pytest.approx(np.mean(expected), abs=1e-3)
        assert measured["interval"][0] < measured["mean"] < measured["interval"][1]
        written = np.asarray(Image.open(output / mode / "0000003.png")) / 255
        assert peak_signal_noise_ratio(originals[3], written, data_range=1) == pytest.approx(expected[3], abs=0.3)
        files = [np.asarray(Image.open(output / mode / f"{index:07d}.png")) / 255 for index in range(len(originals))]
        energies = [np.mean([roughness(image) for image in images]) for images in (files, originals)]
        assert figures["results"][mode]["sharpness"]["value"] == pytest.approx(energies[0] / energies[1], rel=0.01)
    assert figures["results"]["inversion"]["psnr_db"]["mean"] > figures["results"]["stochastic"]["psnr_db"]["mean"]


def test_report_holds_our_figures_and_the_papers(evaluated) -> None:
    figures, output = evaluated
    page = (output / "report.md").read_text()
    assert f"{figures['results']['stochastic']['psnr_db']['mean']:.2f} [" in page
    assert "| paper: v, SC-4, 2-phase | 30.351 | 0.9552 | 0.003217 | 2.1149 | 2.7153 |" in page
    assert "| paper: v, SC-4, 2-phase | 50.113 | 0.9996 |" in page
    assert json.loads((output / "report.json").read_text()) == figures
    for name in ("reconstructions.png", "interpolation.png", "psnr.png"):
        assert f"]({name})" in page
        assert min(Image.open(output / name).size) > 16
    assert not list(output.rglob("*.partial"))


def test_two_processes_give_the_figures_of_one(
    model: str, test_images: str, train_images: str, torch_home: Path, tmp_path: Path
) -> None:
    """All figures: reconstructions, LPIPS, path length, probe, baselines."""
    arguments = run(model, "--dataset", test_images, "--train-dataset", train_images)
    arguments += ["--path-length-pairs", "3", "--path-length-intervals", "2", "--baselines", "pca", "jpeg"]
    arguments += ["--probe", "multiclass", "--label-columns", "label", "--metrics", "lpips_vgg"]
    environment = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TORCH_HOME": str(torch_home)
    }  # fmt: skip
    reports = []
    for count in (1, 2):
        output = tmp_path / str(count)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
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


# Runs the command line, and stops itself for good at a certain call of a function: in the midst of a batch's
# files, or with its files but without its scores.
KILLED = """
import os, signal, sys
from diffae_hub.cli.main import main
from diffae_hub.evaluation import evaluation_folder

owner = evaluation_folder if sys.argv[1] == "write_png" else evaluation_folder.EvaluationFolder
function, calls = getattr(owner, sys.argv[1]), []

def stopping(*arguments, **options):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **options)

setattr(owner, sys.argv[1], stopping)
main(sys.argv[3:])
"""


# With batches of 4 images: in the second batch's reconstructions, and after the third batch's files.
@pytest.mark.parametrize(("place", "call", "scored"), [("write_png", "14", 4), ("append", "3", 8)])
def test_killed_evaluation_goes_on_where_it_was(
    place: str, call: str, scored: int, evaluated, model: str, test_images: str, tmp_path: Path
) -> None:
    figures, _ = evaluated
    output = tmp_path / "killed"
    arguments = run(model, "--dataset", test_images, "--output", str(output), "--metrics")
    process = subprocess.run([sys.executable, "-c", KILLED, place, call, *arguments], capture_output=True, timeout=900)
    assert process.returncode == -signal.SIGKILL
    scores = output / "scores_stochastic_0.jsonl"
    assert len(scores.read_text().splitlines()) == scored
    with scores.open("ab") as file:  # a line edited by hand, one that was killed half way
        file.write(b'{"index": 5, "psnr_db": "high"}\n{"index": 9, "psnr')
    first = output / "stochastic" / "0000000.png"
    before = first.stat().st_mtime_ns

    assert main(arguments) == 0
    assert first.stat().st_mtime_ns == before
    again = json.loads((output / "report.json").read_text())["results"]
    for mode in ("stochastic", "inversion"):
        assert again[mode]["psnr_db"]["count"] == 11
        assert again[mode]["psnr_db"]["mean"] == pytest.approx(figures["results"][mode]["psnr_db"]["mean"], abs=1e-4)


@pytest.mark.parametrize("name", ["settings.json", "timings.json"])
def test_a_broken_file_in_the_folder_is_named(name: str, evaluated, model: str, test_images: str, capsys) -> None:
    _, output = evaluated
    for content in ("{", "[1]", "[" * 100_000):
        (output / name).write_text(content)
        assert main(run(model, "--dataset", test_images, "--output", str(output), "--metrics")) == 2
        error = capsys.readouterr().err
        assert name in error
        assert len(error.splitlines()) == 1


def test_the_steps_meet_in_the_folder_only(evaluated, tmp_path: Path) -> None:
    """Measured and reported again from a copy of the folder, without the model, the figures are the same."""
    figures, output = evaluated
    shutil.copytree(output, tmp_path / "copy")
    for name in ("report.json", "report.md"):
        (tmp_path / "copy" / name).unlink()
    measure(tmp_path / "copy")
    again = write_report(tmp_path / "copy", figures["command"])
    assert again["results"] == figures["results"]
    assert (tmp_path / "copy" / "report.md").read_text() == (output / "report.md").read_text()
    (tmp_path / "copy" / "run.json").write_text('{"weights": 1}')
    with pytest.raises(ValueError, match="run.json"):
        measure(tmp_path / "copy")
    options = json.loads((output / "options.json").read_text())
    (tmp_path / "copy" / "options.json").write_text(json.dumps({**options, "metrics": ["fid"]}))
    with pytest.raises(ValueError, match="metrics"):
        measure(tmp_path / "copy")


def test_metric_without_weights_is_na_and_can_be_required(
    model: str, test_images: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    arguments = run(model, "--dataset", test_images, "--num-images", "3", "--mode", "stochastic")
    arguments += ["--output", str(tmp_path / "out"), "--dinov2-model", str(tmp_path / "none"), "--metrics", "fd_dinov2"]
    assert main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert "unavailable" in figures["results"]["stochastic"]["fd_dinov2"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "FD-DINOv2 ↓ n/a: " in page
    assert main([*arguments, "--require", "fd_dinov2"]) == 2
    assert "fd_dinov2" in capsys.readouterr().err


def test_baselines_probe_and_other_model(
    model: str, tiny_pipeline, test_images: str, train_images: str, tmp_path: Path, capsys
) -> None:
    with torch.no_grad():
        tiny_pipeline.decoder.conv_out.bias.add_(0.5)
    tiny_pipeline.save_pretrained(tmp_path / "other")
    arguments = run(model, "--dataset", test_images, "--mode", "stochastic", "--output", str(tmp_path / "out"))
    arguments += ["--train-dataset", train_images, "--baselines", "mean_image", "pca", "jpeg", "--metrics"]
    arguments += ["--compare", str(tmp_path / "other"), "--probe", "multiclass", "--label-columns", "label"]
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
    arguments += ["--path-length-intervals", "4", "--path-length-pairs"]
    out = ["--output", str(tmp_path / "out")]

    def path_length(*more: str) -> dict:
        assert main([*arguments, *more]) == 0
        return json.loads(capsys.readouterr().out)["results"]["perceptual_path_length"]

    def recorded() -> list[list[int]]:
        return [json.loads(line)["images"] for line in (tmp_path / "out" / "path_lengths_4_0.jsonl").open()]

    first = path_length("2", *out)
    assert first["count"] == first["cross_fade"]["count"] == 2
    assert first["mean"] > 0
    assert first["cross_fade"]["mean"] > 0
    assert "one image fading into the other" in (tmp_path / "out" / "report.md").read_text()
    second = path_length("3", *out)
    assert second["count"] == 3
    assert recorded() == [list(pair) for pair in image_pairs(11, 3, seed=0)], "only the new pair was measured"
    # Of other images, the pairs are others too: nothing measured before may stand for them, nor be lost.
    fewer = path_length("3", "--num-images", "5", *out)
    assert fewer == path_length("3", "--num-images", "5", "--output", str(tmp_path / "new"))
    files = recorded()
    assert path_length("3", *out) == second
    assert recorded() == files


def test_a_folder_belongs_to_one_evaluation(evaluated, model: str, test_images: str, tmp_path: Path, capsys) -> None:
    _, output = evaluated
    assert main(run(model, "--dataset", test_images, "--output", str(output), "--seed", "1", "--metrics")) == 2
    assert "seed" in capsys.readouterr().err
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
    assert main([*arguments, "--train-dataset", train_images]) == 0
    for more, message in (
        (["--train-dataset", test_images, "--train-split", "test"], "baselines"),
        (["--train-dataset", train_images, "--baseline-images", "3"], "images"),
        (["--train-dataset", train_images, "--image-column", "other"], "image_column"),
    ):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    with torch.no_grad():
        tiny_pipeline.encoder.head.bias.add_(1)
    tiny_pipeline.save_pretrained(tmp_path / "other")
    assert main([*arguments, "--train-dataset", train_images]) == 2
    assert "weights" in capsys.readouterr().err


def test_a_schedule_is_part_of_the_model(evaluated, model: str, test_images: str, capsys) -> None:
    _, output = evaluated
    configuration = Path(model) / "scheduler" / "scheduler_config.json"
    configuration.write_text(configuration.read_text().replace('"scaling_factor": 4.0', '"scaling_factor": 2.0'))
    assert main(run(model, "--dataset", test_images, "--output", str(output), "--metrics")) == 2
    assert "weights" in capsys.readouterr().err


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
    assert "output" in capsys.readouterr().err
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
    assert main([*arguments, "--num-images", "3"]) == 0


def test_a_required_metric_is_looked_for_before_the_sampling(
    model: str, test_images: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    arguments = run(model, "--dataset", test_images, "--output", str(tmp_path / "out"))
    assert main([*arguments, "--metrics", "lpips_vgg", "--require", "lpips_vgg"]) == 2
    assert "lpips_vgg" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"mode": "other"}, "mode"),
        ({"metrics": ("fid",)}, "metrics"),
        ({"require": ("fd_vgg16",)}, "require"),
        ({"require": ("perceptual_path_length",)}, "path_length_pairs"),
        ({"num_images": 1}, "num_images"),
        ({"batch_size": 0}, "batch_size"),
        ({"baselines": ("pca",)}, "train_dataset"),
        ({"probe": "multiclass", "train_dataset": "x"}, "label_columns"),
        ({"probe": "multiclass", "train_dataset": "x", "label_columns": ("a", "b")}, "label_columns"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_bad_options(options: dict, argument: str) -> None:
    with pytest.raises(ValueError, match=argument):
        EvaluationOptions(**{"model": "m", "dataset": "d", "output": Path("o"), **options})


def test_options_are_their_file(tmp_path: Path) -> None:
    options = EvaluationOptions("m", "d", tmp_path, metrics=("fd_vgg16",), num_images=3, label_columns=("a", "b"))
    options.save(tmp_path)
    assert EvaluationOptions.load(tmp_path) == options


def test_bad_data(model: str, test_images: str, tmp_path: Path, capsys) -> None:
    assert main(run(model, "--dataset", str(tmp_path / "none"), "--output", str(tmp_path / "out"))) == 2
    error = capsys.readouterr().err
    assert "none" in error
    assert len(error.splitlines()) == 1
    arguments = run(model, "--dataset", test_images, "--output", str(tmp_path / "out"), "--metrics")
    assert main([*arguments, "--paper-dataset", "MNIST"]) == 2
    assert "CIFAR-10 32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "2000"], "steps"),
        (["--compare", "nonsense"], "nonsense"),
        (["--crop", "d2c"], "178x218"),
        (["--device", "nonsense"], "device"),
        (["--train-dataset", "nonsense", "--baselines", "pca"], "nonsense"),
        (["--probe", "regression", "--label-columns", "nonsense"], "columns"),
    ],
)
def test_what_is_refused_leaves_the_folder_free(
    more: list[str], message: str, model: str, test_images: str, train_images: str, tmp_path: Path, capsys
) -> None:
    arguments = run(model, "--dataset", test_images, "--train-dataset", train_images, "--mode", "stochastic")
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
    assert "dataset" in capsys.readouterr().err
    Image.new("RGB", (20, 20), "red").save(picture.with_name("b.png"))
    before = picture.read_bytes()
    assert main([*arguments, "--output", str(picture)]) == 2
    assert "output" in capsys.readouterr().err
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
    arguments = run(model, "--dataset", names["test"], "--train-dataset", names["train"], "--mode", "stochastic")
    arguments += ["--output", str(tmp_path / "out"), "--probe", probe, "--label-columns", "labels", "--metrics"]
    for count in (6, 8, 5):  # in one folder
        assert main([*arguments, "--num-images", str(count)]) == 0
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

    arguments = run(model, "--mode", "stochastic", "--probe", "multiclass", "--label-columns", "digit", "--metrics")
    for split, option, count in (("train", "--train-dataset", 40), ("test", "--dataset", 20)):
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
    arguments = run(model, "--dataset", test_images, "--train-dataset", train_images, "--mode", "stochastic")
    arguments += ["--output", str(tmp_path / "out"), "--probe", "multiclass", "--label-columns", "label", "--metrics"]
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
    folder = EvaluationFolder(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    folder.add("same", [0, 1], images, torch.stack([images[0], 1 - images[1]]))
    scores = folder.scores("same")
    assert (scores[0]["psnr_db"], scores[0]["ssim"]) == (100.0, pytest.approx(1.0))
    assert scores[1]["psnr_db"] < 20
    with pytest.raises(ValueError, match="image 3"):
        folder.add("broken", [2, 3], images, images * torch.tensor([1.0, torch.nan])[:, None, None, None])
    assert folder.scores("broken") == {}


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
