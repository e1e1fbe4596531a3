"""One model, its data and one evaluation of it with all that needs no weights, for all tests here, to be left alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.cli.main import main

from ..conftest import make_tiny_pipeline, write_parquet


def run(*arguments: object) -> list[str]:
    """The command line of an evaluation; later options go before earlier ones."""
    return ["evaluate", *map(str, arguments), "--steps", "3", "--device", "cpu", "--batch-size", "4", "--json"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="session")
def pipeline() -> DiffusionAutoencoderPipeline:
    return make_tiny_pipeline()


@pytest.fixture(scope="session")
def model(pipeline: DiffusionAutoencoderPipeline, folder: Path) -> str:
    pipeline.save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="session")
def train_images(folder: Path) -> str:
    return write_parquet(folder / "train.parquet", 40, seed=0)


@pytest.fixture(scope="session")
def other_model(model: str, folder: Path) -> str:
    other = DiffusionAutoencoderPipeline.from_pretrained(model)
    with torch.no_grad():
        other.decoder.conv_out.bias.add_(0.5)
    other.save_pretrained(folder / "other")
    return str(folder / "other")


@pytest.fixture(scope="session")
def command(model: str, test_images: str, train_images: str) -> list[str]:
    """An evaluation's arguments but for the output: both modes, baselines and a probe."""
    arguments = ["--dataset", test_images, "--train-dataset", train_images, "--probe", "multiclass"]
    arguments += ["--label-columns", "label", "--baselines", "mean_image", "pca", "jpeg", "--metrics"]
    return run(model, *arguments)


@pytest.fixture(scope="session")
def evaluated(command: list[str], other_model: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """The report and the folder, with another model beside."""
    assert main([*command, "--compare", other_model, "--output", str(folder / "out")]) == 0
    return json.loads((folder / "out" / "report.json").read_text()), folder / "out"
