"""From a folder of images to edits, neighbours and new images, by the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffae_hub import DiffusionAutoencoderPipeline, load_codes
from diffae_hub.cli.main import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Dark and bright pictures, 16 each, in a folder each."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 190), ("dark", 60)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for index in range(16):
            pixels = (level + rng.normal(0, 25, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture
def codes(photos: Path, model: str, tmp_path: Path) -> Path:
    argv = ["encode", str(photos), "--split", "train", "--columns", "label", "--model", model]
    assert main([*argv, "--output", str(tmp_path / "codes")]) == 0
    return tmp_path / "codes"


def output_of(capsys: pytest.CaptureFixture, *argv: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_attributes_from_labels_edit_pictures(codes: Path, photos: Path, model: str, tmp_path: Path, capsys) -> None:
    fitted = output_of(
        capsys, "fit-attributes", codes, "--labels", "label", "--model", model, "--output", tmp_path / "mine"
    )
    assert fitted["attributes"]["dark"]["accuracy"] > 0.9
    classifier = DiffusionAutoencoderPipeline.from_pretrained(tmp_path / "mine").attribute_classifier
    table = load_codes(codes, ["label"])
    assert ((classifier(__import__("torch").tensor(table["latent_code"])).logits[:, 0] > 0) == table["label"]).all()
    picture = photos / "bright" / "3.png"
    flags = ["--model", tmp_path / "mine", "--steps", 4, "--output", tmp_path / "edits"]
    edited = output_of(capsys, "edit", picture, "--attribute", "dark", "--strengths", -1, 0, 1, *flags)
    assert [Path(path).is_file() for path in edited["images"][0]["edited"]] == [True] * 3
    assert Image.open(edited["images"][0]["strip"]).size == (4 * 256 + 3 * 8, 256)
    assert main(["edit", str(picture), "--attribute", "smile", *map(str, flags)]) == 2
    assert "dark" in capsys.readouterr().err


def test_attributes_without_labels(codes: Path, photos: Path, model: str, tmp_path: Path, capsys) -> None:
    for name in ("bright", "dark"):
        argv = ["encode", photos / name, "--split", "train", "--model", model, "--output", tmp_path / name]
        output_of(capsys, *argv)
    common = ["--model", model, "--output", tmp_path / "mine"]
    two = ["--without", tmp_path / "dark", "--name", "light", "--method", "means"]
    assert output_of(capsys, "fit-attributes", tmp_path / "bright", *two, *common)["attributes"]["light"]["auroc"] > 0.9
    principal = output_of(capsys, "fit-attributes", codes, "--principal", 2, *common)["attributes"]
    assert list(principal) == ["component 0", "component 1"]
    assert main(["fit-attributes", str(codes), *map(str, common)]) == 2
    assert "--labels" in capsys.readouterr().err


def test_the_nearest_image_is_the_image(codes: Path, photos: Path, model: str, tmp_path: Path, capsys) -> None:
    argv = ["neighbours", photos / "dark" / "5.png", "--codes", codes, "--num-neighbours", 3, "--model", model]
    found = output_of(capsys, *argv, "--sheet", tmp_path / "sheet.png")["neighbours"]
    assert Path(found[0]["source"]) == photos / "dark" / "5.png"
    assert found[0]["distance"] == pytest.approx(0, abs=1e-3)
    assert [neighbour["distance"] for neighbour in found] == sorted(neighbour["distance"] for neighbour in found)
    assert Image.open(tmp_path / "sheet.png").size == (4 * 256 + 3 * 8, 256)
    argv[-1] = "cifar10-32-small"
    assert main([*map(str, argv)]) == 2
    assert "--model" in capsys.readouterr().err


def test_new_images_and_variations(codes: Path, photos: Path, model: str, tmp_path: Path, capsys) -> None:
    size = ["--hidden-dim", 16, "--num-layers", 2, "--training-examples", 512, "--batch-size", 64]
    argv = ["train-latent", codes, "--model", model, "--output", tmp_path / "mine", *size, "--validation-samples", 50]
    trained = output_of(capsys, *argv)
    assert trained["examples"] == 512
    assert trained["frechet_distance"] > 0
    sampled = output_of(
        capsys, "sample", "--model", tmp_path / "mine", "--num-images", 3, "--steps", 3, "--output", tmp_path / "new"
    )
    assert all(Image.open(path).size == (16, 16) for path in sampled["images"])
    assert len(sampled["images"]) == 3
    varied = output_of(
        capsys, "variations", photos / "dark" / "1.png", "--model", model, "--steps", 3, "--output", tmp_path / "many"
    )
    assert Path(varied["strip"]).is_file()
    assert Path(varied["spread"]).is_file()
