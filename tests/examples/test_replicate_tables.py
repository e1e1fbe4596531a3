"""`examples/replicate_tables.py`: its rows are the paper's, its tables hold both figures, and a row runs for real."""

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path
from subprocess import CalledProcessError
from types import ModuleType, SimpleNamespace

import pytest

from diffae_hub.cli import main as cli
from diffae_hub.evaluation.paper_tables import TABLE_2

from ..conftest import write_classes
from ..training.runner import parsed

SCRIPT = Path(__file__).parents[2] / "examples" / "replicate_tables.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("replicate_tables", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def options(tmp_path: Path) -> Namespace:
    return Namespace(
        preset="cifar10-32-small", train_dataset="train", train_split="train", output=tmp_path, training_examples=1000,
        seed=0, mixed_precision="no", num_workers=0, metrics=["fd_vgg16"], num_images=10, test_dataset="test", steps=50,
        hardware=None,
    )  # fmt: skip


def test_every_row_is_a_valid_experiment_of_its_method(script: ModuleType, options: Namespace) -> None:
    assert len(script.ROWS) == 18
    for name, method in script.ROWS.items():
        _, preset = parsed(script.training_command(name, options)[4:])
        scheduler = preset.build("scheduler").config
        assert scheduler.prediction_type == method.prediction_type
        assert scheduler.noise_schedule == method.noise_schedule
        if method.scaling_factor:
            assert scheduler.scaling_factor == method.scaling_factor
        assert preset.phase1_fraction == (0.25 if method.two_phase else 0)
        assert (preset.optimizer, preset.lr_scheduler, preset.loss_weighting) == ("adam", "constant", "none")
        beyond = name == script.BEYOND
        assert (preset.encoder["latent_head"] == "flatten") == beyond
        assert (preset.decoder["latent_spatial_size"] is not None) == beyond


def test_tables_hold_both_figures_and_their_rank_correlation(script: ModuleType, options: Namespace) -> None:
    # Our PSNR in the paper's order but for one swap of neighbours among the ten rows; FD in exactly the reverse order.
    by_psnr = sorted(TABLE_2, key=lambda method: TABLE_2[method][0])
    by_psnr[0], by_psnr[1] = by_psnr[1], by_psnr[0]
    by_fid = sorted(TABLE_2, key=lambda method: -TABLE_2[method][3])
    results = {}
    for method in TABLE_2:
        figures = {
            "psnr_db": {"mean": 10.0 + by_psnr.index(method), "interval": [0.0, 1.0], "count": 5},
            "ssim": {"mean": 0.5, "interval": [0.0, 1.0], "count": 5},
            "fd_vgg16": {"value": 100.0 + by_fid.index(method), "count": 5},
        }
        results[script.row_name(method)] = {
            "results": {"stochastic": figures, "inversion": figures},
            "training": {
                "preset": "cifar10-32-small", "training_examples": 1234, "train_dataset": "a/train.parquet",
                "seed": 5, "mixed_precision": "bf16",
            },
            "dataset": "a/test.parquet", "num_images": 5, "steps": 7,
        }  # fmt: skip
    page = script.render_tables(results, options)
    table = page.split("## Table 2")[1].split("\n\n## ")[0]
    assert f"| v, SC-8, 1-phase | {10 + by_psnr.index(list(TABLE_2)[-1]):.2f} (20.842) | 0.5000 (0.7176) |" in table
    # Spearman: 1 - 6 sum d^2 / (n (n^2 - 1)), with two ranks off by one among ten.
    assert f"| *rank correlation* | {1 - 6 * 2 / 990:+.2f} |  | -1.00 |" in table
    assert "FD-VGG16 is not FID" in page
    # The budget is the rows' own, whatever the command line says.
    assert "# Tables 1 to 4 at 1,234 examples" in page
    assert (
        "1,234 examples of train.parquet, seed 5, bf16; measured on the first 5 images of test.parquet, 7 steps" in page
    )
    results["v_prediction-SC8-1phase"]["training"]["training_examples"] = 99
    with pytest.raises(ValueError, match="rows"):
        script.render_tables(results, options)


def test_a_row_is_trained_measured_and_not_done_twice(
    script: ModuleType, tmp_path: Path, monkeypatch, capsys, on_cpu: None
) -> None:
    write_classes(tmp_path, 4, size=32, train=100, test=150)
    name = "v_prediction-SC4-2phase"
    command = ["replicate_tables.py", "--train_dataset", str(tmp_path / "train")]
    command += ["--test_dataset", str(tmp_path / "test")]
    command += ["--output", str(tmp_path / "runs"), "--rows", name, "--metrics"]
    command += ["--training_examples", "64", "--num_images", "2", "--steps", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    # Trained in this process: another one would import everything anew.
    here = SimpleNamespace(run=lambda words, check: cli.main(words[3:]), CalledProcessError=CalledProcessError)
    monkeypatch.setattr(script, "subprocess", here)
    script.main()
    figures = json.loads((tmp_path / "runs" / name / "results.json").read_text())
    assert figures["results"]["inversion"]["psnr_db"]["count"] == 2
    assert (tmp_path / "runs" / "tables.md").is_file()
    weights = tmp_path / "runs" / name / "pipeline" / "encoder" / "diffusion_pytorch_model.safetensors"
    picture = tmp_path / "runs" / name / "evaluation" / "stochastic" / "0000000.png"
    before = weights.stat().st_mtime_ns, picture.stat().st_mtime_ns
    script.main()
    assert (weights.stat().st_mtime_ns, picture.stat().st_mtime_ns) == before

    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [*command, "--seed", "1"])
    assert script.main() == 2
    assert "seed" in capsys.readouterr().err
