"""`diffae-hub evaluate`, run for real on a tiny model: figures, continuation, several processes, the report."""

import io
import itertools
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from diffae_hub import DiffusionAutoencoderPipeline, VPDDIMScheduler
from diffae_hub.cli.main import main
from diffae_hub.conversion.official_configuration import CELEBA_ATTRIBUTES
from diffae_hub.data.open_dataset import load_rows
from diffae_hub.evaluation import evaluation_folder
from diffae_hub.evaluation import paper_tables as paper
from diffae_hub.evaluation.baselines import jpeg_reconstruct
from diffae_hub.evaluation.evaluation_folder import EvaluationFolder
from diffae_hub.evaluation.measure import measure
from diffae_hub.evaluation.options import EvaluationOptions
from diffae_hub.evaluation.reconstruct import image_pairs
from diffae_hub.evaluation.report import render_report, write_report
from diffae_hub.metrics.sharpness import high_pass_energy

from ..conftest import write_classes, write_parquet
from ..training import runner
from .conftest import run


def pixels(source: str, split: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) / 255 for row in load_rows(source, split)])


# ---- figures ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_figures_are_those_of_the_reconstructions(evaluated, pipeline, test_images: str) -> None:
    figures, output = evaluated
    originals = pixels(test_images, "test")
    for mode in ("stochastic", "inversion"):
        expected = []
        for index, original in enumerate(originals):
            image = torch.from_numpy(original).permute(2, 0, 1)[None].float()
            code = pipeline.encode(image)
            if mode == "stochastic":  # an image's noise depends on its index only
                noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(index))
            else:
                noise = pipeline.invert(image, num_inference_steps=3, inversion="plain")
            result = pipeline.decode(code, noise=noise, num_inference_steps=3, output_type="np").images[0]
            expected.append(peak_signal_noise_ratio(original, result.astype(np.float64), data_range=1))
        measured = figures["results"][mode]["psnr_db"]
        assert measured["count"] == len(originals)
        assert measured["mean"] == pytest.approx(np.mean(expected), abs=1e-3)
        assert measured["interval"][0] < measured["mean"] < measured["interval"][1]
        files = [np.asarray(Image.open(output / mode / f"{index:07d}.png")) / 255 for index in range(len(originals))]
        assert peak_signal_noise_ratio(originals[3], files[3], data_range=1) == pytest.approx(expected[3], abs=0.3)
        energies = [high_pass_energy(torch.tensor(np.stack(x)).movedim(3, 1)).mean().item() for x in (files, originals)]
        assert figures["results"][mode]["sharpness"]["value"] == pytest.approx(energies[0] / energies[1], rel=0.01)
    assert figures["results"]["inversion"]["psnr_db"]["mean"] > figures["results"]["stochastic"]["psnr_db"]["mean"]


def test_baselines_probe_and_other_model(evaluated, test_images: str, train_images: str) -> None:
    figures, output = evaluated
    results, train, test = figures["results"], pixels(train_images, "train"), pixels(test_images, "test")
    mean = train.mean(axis=0)
    basis = np.linalg.svd((train - mean).reshape(len(train), -1), full_matrices=False)[2][:8]  # z has 8 numbers
    projected = mean + ((test - mean).reshape(len(test), -1) @ basis.T @ basis).reshape(test.shape)
    for name, images in (("mean_image", np.broadcast_to(mean, test.shape)), ("pca", projected.clip(0, 1))):
        expected = [peak_signal_noise_ratio(*pair, data_range=1) for pair in zip(test, images, strict=True)]
        assert results[name]["psnr_db"]["mean"] == pytest.approx(np.mean(expected), abs=0.05)
    assert results["compare_stochastic"]["psnr_db"]["mean"] != results["stochastic"]["psnr_db"]["mean"]
    sizes = jpeg_reconstruct(torch.from_numpy(test).permute(0, 3, 1, 2).float(), 16)[1]
    mean_size = pytest.approx(sizes.float().mean().item())
    assert results["jpeg"]["bytes"] == {"mean": mean_size, "budget": 16, "over_budget": int((sizes > 16).sum())}
    page = (output / "report.md").read_text()
    assert "| PCA, 8 numbers |" in page and "| JPEG, 16 bytes |" in page
    # Dark and bright patterns are told apart even by a random encoder's code.
    assert results["probe"]["accuracy"] > 0.8
    assert results["probe"]["auroc_macro"] > 0.9


def test_report_holds_our_figures_and_the_papers(evaluated) -> None:
    figures, output = evaluated
    page = (output / "report.md").read_text()
    assert f"{figures['results']['stochastic']['psnr_db']['mean']:.2f} [" in page
    assert "paper: " not in page  # it has no images of 16 pixels
    beside = render_report({**figures, "paper_dataset": "CIFAR-10 32"})
    assert "| paper: v, SC-4, 2-phase | 30.351 | 0.9552 | 0.003217 | 2.1149 | 2.7153 |" in beside
    assert "| paper: v, SC-4, 2-phase | 50.113 | 0.9996 |" in beside
    assert "paper: " not in beside.split("## Linear probe")[1].split("\n## ")[0]  # of other classes than ours
    for name in ("reconstructions.png", "interpolation_11.png", "psnr.png", "auroc.png"):
        assert f"]({name})" in page
        assert min(Image.open(output / name).size) > 16
    assert not list(output.rglob("*.partial"))


def test_what_the_images_cannot_show_is_said(model: str, tmp_path: Path, capsys) -> None:
    """The first ones of folders of classes; training images among the held-out ones."""
    photos = write_classes(tmp_path / "photos", 2, dark=60, light=190)
    images = ("--dataset", photos, "--train-dataset", photos, "--metrics")
    for count, warnings in ((2, 2), (4, 1)):
        argv = run(model, *images, "--num-images", count, "--output", tmp_path / f"out{count}")
        assert main(argv) == 0
        assert capsys.readouterr().err.count("WARNING") == warnings


def test_the_papers_figures_stand_beside_its_own_classes(evaluated) -> None:
    """Ten classes are those of the paper if the data set says so by their names."""
    figures, _ = evaluated
    probe = figures["results"]["probe"]
    assert probe["classes"] == ["bright", "dark"]
    probe = {**probe, "classes": list(paper.TABLE_11), "auroc_per_class": [0.5 + 0.01 * k for k in range(10)]}
    page = render_report({**figures, "results": {**figures["results"], "probe": probe}})
    assert "| AUROC, frog | 0.5600 | 0.9785 | 0.9781 | 0.9812 |\n" in page
    assert "0.7271 | 0.7061 | 0.7227" in page


def test_probe_compares_classes_by_name(model: str, tmp_path: Path, capsys) -> None:
    """Each data set numbers its classes for itself; here the second test set numbers them the other way round."""
    train, test = (write_parquet(tmp_path / f"{seed}.parquet", 20, seed) for seed in (1, 2))
    columns = Dataset.from_parquet(test).to_dict()
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["bright", "dark"])})
    columns["label"] = [1 - label for label in columns["label"]]
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "swapped.parquet")
    features["label"] = ClassLabel(names=["bright", "dim"])  # that no training image is
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "unknown.parquet")
    probes = []
    for name in (test, tmp_path / "swapped.parquet", tmp_path / "unknown.parquet"):
        arguments = run(model, "--dataset", name, "--train-dataset", train, "--mode", "stochastic", "--metrics")
        arguments += ["--probe", "multiclass", "--label-columns", "label", "--output", tmp_path / Path(name).stem]
        assert main(list(map(str, arguments))) == 0
        probes.append(json.loads(capsys.readouterr().out)["results"]["probe"])
    assert probes[0] == probes[1]
    assert probes[0]["accuracy"] > 0.5
    assert "dim" in probes[2]["unavailable"]
    assert probes[2]["unavailable"] in (tmp_path / "unknown" / "report.md").read_text()


def test_probe_of_a_column_of_lists(model: str, tmp_path: Path, capsys) -> None:
    """Each place of the lists is a label; figures that are not defined are null, as JSON has no NaN."""
    names = {}
    for split, count in (("train", 20), ("test", 8)):
        images = Dataset.from_parquet(write_parquet(tmp_path / "images.parquet", count, seed=2))
        lists = [[index % 2, (index // 2) % 2, 1] for index in range(count)]
        names[split] = str(tmp_path / f"{split}.parquet")
        images.add_column("labels", lists).to_parquet(names[split])
    arguments = run(model, "--dataset", names["test"], "--train-dataset", names["train"], "--mode", "stochastic")
    arguments += ["--output", str(tmp_path / "out"), "--label-columns", "labels", "--metrics"]
    for count, probe in ((8, "multilabel"), (5, "regression")):  # in one folder
        assert main([*arguments, "--probe", probe, "--num-images", str(count)]) == 0
        result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["results"]["probe"]
        assert result["test_codes"] == count
        assert result["labels"] == ["labels[0]", "labels[1]", "labels[2]"]
        figures = result["auroc_per_attribute" if probe == "multilabel" else "r_squared"]
        assert figures[0] > 0.5
        assert figures[2] is None
        page, title = (tmp_path / "out" / "report.md").read_text(), "AUROC, " if probe == "multilabel" else ""
        assert f"| {title}labels[0] | {figures[0]:.4f} |" in page
        assert f"| {title}labels[2] | n/a |" in page


def test_metrics_with_and_without_weights(
    model: str, test_images: str, tmp_path: Path, capsys, refusal, monkeypatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    arguments = run(model, "--dataset", test_images, "--num-images", "3", "--mode", "stochastic")
    arguments += ["--dinov2-model", str(tmp_path / "none")]
    # A required one is looked for before the sampling.
    required = ["--output", tmp_path / "none", "--metrics", "lpips_vgg", "--require", "lpips_vgg"]
    assert "lpips_vgg" in refusal(*arguments, *required)
    assert not (tmp_path / "none").exists()
    assert main([*arguments, "--output", str(tmp_path / "out"), "--metrics", "fd_dinov2"]) == 0
    assert "unavailable" in json.loads(capsys.readouterr().out)["results"]["stochastic"]["fd_dinov2"]
    assert "FD-DINOv2 ↓ n/a: " in (tmp_path / "out" / "report.md").read_text()


def test_metrics_and_path_length_are_continued(model, test_images, torch_home, tmp_path, capsys, monkeypatch) -> None:
    """By the real LPIPS-VGG, on a trunk made here; the formula itself has its own test."""
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    arguments = run(model, "--dataset", test_images, "--mode", "stochastic", "--output", tmp_path / "out")
    arguments += ["--path-length-intervals", "2", "--path-length-pairs"]

    def measured(*more: str) -> dict:
        assert main([*arguments, *more]) == 0
        return json.loads(capsys.readouterr().out)["results"]

    def recorded() -> list[tuple[int, int]]:
        return [tuple(json.loads(line)["images"]) for line in (tmp_path / "out" / "path_lengths_2_0.jsonl").open()]

    first = measured("2", "--metrics", "lpips_vgg")
    assert first["stochastic"]["lpips_vgg"]["mean"] > 0
    lengths = first["perceptual_path_length"]
    assert lengths["count"] == lengths["cross_fade"]["count"] == 2
    assert min(lengths["mean"], lengths["cross_fade"]["mean"]) > 0
    assert measured("3", "--metrics")["perceptual_path_length"]["count"] == 3
    assert recorded() == image_pairs(11, 3, seed=0), "only the new pair was measured"
    # Of other images, the pairs are others too: nothing measured before may stand for them.
    options = EvaluationOptions.load(tmp_path / "out")
    found = EvaluationFolder(tmp_path / "out").path_lengths(options, 5)
    assert list(found) == [pair for pair in image_pairs(5, 3, seed=0) if pair in recorded()]


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_two_processes_give_the_figures_of_one(evaluated, command: list[str], tmp_path: Path) -> None:
    runner.run([*command, f"--output={tmp_path / 'out'}"], processes=2)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["machine"]["processes"] == len(list(tmp_path.glob("out/scores_stochastic_*.jsonl"))) == 2
    one, two = evaluated[0]["results"], report["results"]
    for method in ("stochastic", "inversion", "pca", "jpeg"):
        for metric in ("psnr_db", "ssim"):
            assert two[method][metric]["mean"] == pytest.approx(one[method][metric]["mean"], abs=1e-4)
            assert two[method][metric]["interval"] == pytest.approx(one[method][metric]["interval"], abs=1e-3)
    assert two["probe"]["accuracy"] == one["probe"]["accuracy"]
    assert two["probe"]["auroc_macro"] == pytest.approx(one["probe"]["auroc_macro"], abs=1e-3)


def kill_at_picture(number: int) -> None:
    write_png, numbers = evaluation_folder.write_png, itertools.count(1)

    def write_or_die(*arguments: object, **options: object) -> None:
        if next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        write_png(*arguments, **options)

    evaluation_folder.write_png = write_or_die


def test_killed_evaluation_goes_on_where_it_was(evaluated, model: str, test_images: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = run(model, "--dataset", test_images, f"--output={out}", "--metrics")
    runner.run(arguments, partial(kill_at_picture, 14), code=-signal.SIGKILL)
    scores = out / "scores_stochastic_0.jsonl"
    assert len(scores.read_text().splitlines()) == 4, "the second batch has files, but no scores"
    with scores.open("ab") as file:  # a line that was killed half way
        file.write(b'{"index": 9, "psnr')
    first = out / "stochastic" / "0000000.png"
    before = first.stat().st_mtime_ns
    assert main(arguments) == 0
    assert first.stat().st_mtime_ns == before
    again = json.loads((out / "report.json").read_text())["results"]
    for mode in ("stochastic", "inversion"):
        assert again[mode]["psnr_db"]["count"] == 11
        expected = evaluated[0]["results"][mode]["psnr_db"]["mean"]
        assert again[mode]["psnr_db"]["mean"] == pytest.approx(expected, abs=1e-4)


def test_continuing_and_the_steps_alone_change_nothing(
    evaluated, command: list[str], other_model: str, tmp_path: Path, refusal
) -> None:
    """In a copy of the folder, with the model, and from its files without."""
    figures, output = evaluated
    copy = shutil.copytree(output, tmp_path / "copy")
    command = [*command, "--compare", other_model, "--output", str(copy)]
    assert main(command) == 0
    again = json.loads((copy / "report.json").read_text())
    assert again["results"] == figures["results"]
    page = (copy / "report.md").read_text()
    for name in ("report.json", "report.md"):
        (copy / name).unlink()
    measure(copy)
    write_report(copy, again["command"])
    assert (copy / "report.md").read_text() == page

    (copy / "run.json").write_text('{"weights": 1}')
    with pytest.raises(ValueError, match=r"run\.json"):
        measure(copy)
    for content in ("{", "[1]", "[" * 100_000):
        (copy / "settings.json").write_text(content)
        assert "settings.json" in refusal(*command)


def test_a_folder_has_one_evaluation(evaluated, command, model, other_model, test_images, tmp_path, refusal) -> None:
    _, output = evaluated
    command = [*command, "--compare", other_model, "--output", str(output)]
    changed = shutil.copytree(model, tmp_path / "changed")
    configuration = changed / "scheduler" / "scheduler_config.json"
    configuration.write_text(configuration.read_text().replace('"scaling_factor": 4.0', '"scaling_factor": 2.0'))
    for more, message in (
        (["--seed", "1"], "seed"),
        (["--train-dataset", test_images, "--train-split", "test"], "baselines"),
        (["--baseline-images", "3"], "images"),
        (["--compare", changed], "compare"),
    ):
        assert message in refusal(*command, *more)
    command[1] = str(changed)
    assert "weights" in refusal(*command)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_is_refused_leaves_the_folder_free(
    model: str, test_images: str, train_images: str, tmp_path: Path, refusal
) -> None:
    arguments = run(model, "--dataset", test_images, "--train-dataset", train_images, "--mode", "stochastic")
    for more, message in (
        (["--steps", "2000"], "steps"),
        (["--crop", "d2c"], "178x218"),
        (["--device", "nonsense"], "device"),
        (["--train-dataset", "nonsense", "--baselines", "pca"], "nonsense"),
        (["--probe", "regression", "--label-columns", "nonsense"], "columns"),
        (["--probe", "multiclass", "--label-columns", "a", "b"], "label_columns"),
        (["--label-columns", "label"], "label_columns"),
        (["--baselines", "jpeg", "jpeg"], "baselines"),
        (["--require", "fd_vgg16"], "require"),
        (["--num-images", "1"], "num_images"),
    ):
        assert message in refusal(*arguments, "--output", tmp_path / "out", "--metrics", *more)
    assert not (tmp_path / "out").exists()
    official = DiffusionAutoencoderPipeline.from_pretrained(model)
    official.scheduler = VPDDIMScheduler(timestep_spacing="leading")
    official.save_pretrained(tmp_path / "official")
    steps = ["--solver", "dpm", "--steps", "60", "--output", tmp_path / "out"]  # which fit the solver alone
    assert "num_inference_steps" in refusal("evaluate", tmp_path / "official", "--dataset", test_images, *steps)
    assert not (tmp_path / "out").exists()
    for change in ({"baselines": ("pca",)}, {"mode": "inverted"}, {"metrics": ("fid",)}):
        with pytest.raises(ValueError, match={"baselines": "train_dataset"}.get(*change, *change)):
            EvaluationOptions("m", "d", tmp_path, **change)


def test_bad_images_and_outputs(model: str, tmp_path: Path, refusal) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    arguments = [*run(model, "--dataset", photos, "--mode", "stochastic", "--metrics"), "--output"]
    Image.new("RGB", (20, 20), "red").save(photos / "0.png")
    assert "dataset" in refusal(*arguments, out), "one image is too few"
    (photos / "1.png").write_bytes(b"junk")
    assert "1.png" in refusal(*arguments, out), "before the sampling"
    shutil.copytree(photos, tmp_path / "train")
    Image.new("RGB", (20, 20), "blue").save(photos / "1.png")
    damaged = ["--train-dataset", tmp_path / "train", "--baselines", "pca", "--output", out]
    assert "train/1.png" in refusal(*arguments[:-1], *damaged)
    assert not (out / "stochastic").exists()
    shutil.rmtree(out)
    out.mkdir()
    (out / "precious.txt").write_text("x")
    for output in (out, photos / "out", photos / "0.png"):
        assert "output" in refusal(*arguments, output)
    assert "output" in refusal("encode", photos, "--model", model, "--output", photos / "out")
    assert [path.name for path in out.iterdir()] == ["precious.txt"]
    assert sorted(path.name for path in photos.iterdir()) == ["0.png", "1.png"]


def test_pairs_differ() -> None:
    pairs = image_pairs(5, 20, seed=0)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 10  # all that there are
    assert image_pairs(5, 4, seed=0) == pairs[:4]


def test_equal_images(tmp_path: Path) -> None:
    folder, images = EvaluationFolder(tmp_path), torch.rand(2, 3, 16, 16)
    folder.add("same", [0, 1], images, torch.stack([images[0], 1 - images[1]]))
    scores = folder.scores("same")
    assert (scores[0]["psnr_db"], scores[0]["ssim"]) == (100.0, pytest.approx(1.0))


def test_paper_tables_agree_where_they_overlap() -> None:
    """Rows that the paper prints twice are transcribed twice."""
    for method in set(paper.TABLE_1) & set(paper.TABLE_2):
        assert paper.TABLE_1[method] == paper.TABLE_2[method]
    for method in set(paper.TABLE_3) & set(paper.TABLE_4["CIFAR-10 32"]):
        assert paper.TABLE_4["CIFAR-10 32"][method][0] == pytest.approx(paper.TABLE_3[method], abs=6e-5)
    for table, averages in ((paper.TABLE_10, paper.TABLE_10_AVERAGE), (paper.TABLE_11, paper.TABLE_11_AVERAGE)):
        for column, average in enumerate(averages.values()):
            assert np.mean([values[column] for values in table.values()]) == pytest.approx(average, abs=6e-5)
    assert set(paper.TABLE_10) == set(CELEBA_ATTRIBUTES)
