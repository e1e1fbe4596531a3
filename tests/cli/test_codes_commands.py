"""The commands that lead from a folder of images to edits, neighbours and new images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from diffae_hub import DiffusionAutoencoderPipeline, load_codes
from diffae_hub.cli.main import main

from ..conftest import write_classes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "photos", 16, bright=190, dark=60)


def test_a_data_set_that_changed_is_not_continued(photos: Path, model: str, tmp_path: Path, refusal) -> None:
    encode = ["encode", str(photos), "--split", "train", "--model", model, "--output", str(tmp_path / "codes")]
    assert main(encode) == 0
    before = load_codes(tmp_path / "codes")["latent_code"]
    assert main([word if word != str(photos) else f"{photos}/" for word in encode]) == 0  # the same folder
    Image.new("RGB", (16, 16)).save(photos / "bright" / "00.png")  # in front of the others
    assert "output" in refusal(*encode)
    assert np.array_equal(load_codes(tmp_path / "codes")["latent_code"], before)
    # Nor are pictures shown that are not those that were encoded.
    search = [str(photos / "dark" / "5.png"), "--codes", str(tmp_path / "codes"), "--model", model]
    assert "--sheet" in refusal("neighbours", *search, "--sheet", tmp_path / "sheet.png")
    assert main(["neighbours", *search]) == 0


def test_the_query_is_cropped_as_the_codes_were(model: str, tmp_path: Path, capsys) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 23, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        (tmp_path / "faces").mkdir(exist_ok=True)
        Image.fromarray(picture).resize((178, 218)).save(tmp_path / "faces" / f"{number}.png")
    faces, codes = str(tmp_path / "faces"), str(tmp_path / "codes")
    assert main(["encode", faces, "--split", "train", "--crop", "d2c", "--model", model, "--output", codes]) == 0
    capsys.readouterr()
    search = ["neighbours", f"{faces}/1.png", "--codes", codes, "--model", model, "--num-neighbours", "1", "--json"]
    assert main(search) == 0
    (found,) = json.loads(capsys.readouterr().out)["neighbours"]
    assert (found["index"], found["distance"]) == (1, pytest.approx(0, abs=1e-4))


def test_neighbours_are_those_that_a_metadata_file_lists(photos: Path, model: str, tmp_path: Path, capsys) -> None:
    """In its order, which is not that of the names. Brackets in names mean nothing."""
    folder, codes, sheet = photos / "dark", str(tmp_path / "codes"), tmp_path / "sheet.png"
    picture = str((folder / "5.png").rename(folder / "[5].png"))
    (folder / "metadata.csv").write_text("file_name,mood\n9.png,sad\n[5].png,glad\n")
    encode = ["encode", str(folder), "--split", "train", "--columns", "mood", "--model", model, "--output", codes]
    search = ["neighbours", picture, "--codes", codes, "--model", model, "--num-neighbours", "1", "--sheet", str(sheet)]
    assert main(encode) == main(search) == 0
    assert load_codes(codes, ["mood"])["mood"].tolist() == ["sad", "glad"]
    assert picture in capsys.readouterr().out
    pixels = np.asarray(Image.open(sheet))
    assert np.array_equal(pixels[:, :256], pixels[:, 264:])


def test_from_images_to_edits_neighbours_and_new_images(
    photos: Path, model: str, tmp_path: Path, capsys, refusal
) -> None:
    codes, mine = tmp_path / "codes", tmp_path / "mine"

    def output_of(command: str, *argv: object, model: object = model) -> dict:
        assert main([command, *map(str, argv), "--model", str(model), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    encode = ("--split", "train", "--output")
    (photos / "dark" / "notes.heic").touch()
    with pytest.warns(UserWarning, match="1 files"):
        assert output_of("encode", photos, "--columns", "label", *encode, codes)["count"] == 32

    # Attributes, from labels, from two groups and from nothing.
    fitted = output_of("fit-attributes", codes, "--labels", "label", "--output", mine)
    assert fitted["attributes"]["dark"]["accuracy"] > 0.9
    classifier = DiffusionAutoencoderPipeline.from_pretrained(mine).attribute_classifier
    table = load_codes(codes, ["label"])
    assert ((classifier(torch.tensor(table["latent_code"])).logits[:, 0] > 0) == table["label"]).all()
    words = ("--labels", "label", "--matched-by", "source", "--alternatives", "dark", "--output", tmp_path / "matched")
    output_of("fit-attributes", codes, *words)
    matched = DiffusionAutoencoderPipeline.from_pretrained(tmp_path / "matched").attribute_classifier
    np.testing.assert_allclose(matched.directions, classifier.linear.weight.detach(), atol=1e-6)  # each source once
    signs = shutil.copytree(codes, tmp_path / "signs")  # labels as in CelebA's annotation file
    for shard in signs.glob("*.parquet"):
        rows = pd.read_parquet(shard)
        rows.assign(label=2 * rows["label"] - 1).to_parquet(shard)
    summary = json.loads((signs / "codes.json").read_text())
    (signs / "codes.json").write_text(json.dumps(summary | {"class_names": {}}))
    signed = output_of("fit-attributes", signs, "--labels", "label", "--output", tmp_path / "signed")["attributes"]
    assert signed["label"] == fitted["attributes"]["dark"]
    for shard in signs.glob("*.parquet"):
        rows = pd.read_parquet(shard)
        rows.assign(label=rows["label"].where(rows.index > 0)).to_parquet(shard)  # the first has none
    without = ("fit-attributes", signs, "--labels", "label", "--model", model, "--output", tmp_path / "signed")
    assert "labels" in refusal(*without)
    for name in ("bright", "dark"):
        output_of("encode", photos / name, *encode, tmp_path / name)
    two = ["--without", tmp_path / "dark", "--name", "light", "--method", "means", "--output", tmp_path / "light"]
    assert output_of("fit-attributes", tmp_path / "bright", *two)["attributes"]["light"]["auroc"] > 0.9
    principal = output_of("fit-attributes", codes, "--principal", 2, "--output", tmp_path / "principal")["attributes"]
    assert list(principal) == ["component 0", "component 1"]
    assert "--labels" in refusal("fit-attributes", codes, "--model", model, "--output", mine)
    no_labels = ("--principal", 2, "--matched-by", "source", "--model", model, "--output", mine)
    assert "--matched-by" in refusal("fit-attributes", codes, *no_labels)
    for output in (codes, tmp_path, photos):  # what it read, or what others wrote, is not its to replace
        assert "output" in refusal("fit-attributes", codes, "--principal", 2, "--model", model, "--output", output)
        assert "output" in refusal("train-latent", codes, "--model", model, "--output", output)
    assert load_codes(codes)["index"].tolist() == list(range(32))
    again = ("fit-attributes", codes, "--labels", "label", "--output", mine)
    (mine / "notes.txt").write_text("mine")
    assert "notes.txt" in refusal(*again, "--model", model)
    (mine / "notes.txt").unlink()
    output_of(*again)

    # Edits.
    picture, steps = photos / "bright" / "3.png", ["--steps", 3, "--output"]
    strengths = ["--strengths", -1, 0, 1]
    edited = output_of("edit", picture, "--attribute", "dark", *strengths, *steps, tmp_path / "edits", model=mine)
    assert [Path(path).is_file() for path in edited["images"][0]["edited"]] == [True] * 3
    assert Image.open(edited["images"][0]["strip"]).size == (4 * 256 + 3 * 8, 256)
    words = ["--model", mine, *steps, tmp_path / "edits"]
    assert "dark" in refusal("edit", picture, "--attribute", "smile", *words)
    assert "--strengths" in refusal("edit", picture, "--attribute", "dark", "--strengths", 0.1234567, 0.1234568, *words)

    # The nearest image is the image.
    search = [photos / "dark" / "5.png", "--codes", codes, "--num-neighbours", 3]
    found = output_of("neighbours", *search, "--sheet", tmp_path / "sheet.png")["neighbours"]
    assert Path(found[0]["source"]) == photos / "dark" / "5.png"
    assert found[0]["distance"] == pytest.approx(0, abs=1e-3)
    assert [neighbour["distance"] for neighbour in found] == sorted(neighbour["distance"] for neighbour in found)
    assert Image.open(tmp_path / "sheet.png").size == (4 * 256 + 3 * 8, 256)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert np.array_equal(pixels[:, :256], pixels[:, 264:520])
    assert "--model" in refusal("neighbours", *search, "--model", "cifar10-32-small")
    before = (photos / "dark" / "7.png").read_bytes()
    assert "7.png" in refusal("neighbours", *search, "--model", model, "--sheet", photos / "dark" / "7.png")
    assert (photos / "dark" / "7.png").read_bytes() == before

    # New images, and variations of one.
    size = ["--hidden-dim", 16, "--num-layers", 2, "--training-examples", 512, "--batch-size", 64]
    trained = output_of("train-latent", codes, "--output", tmp_path / "new", *size, "--validation-samples", 50)
    assert trained["examples"] == 512
    assert trained["frechet_distance"] > 0
    sampled = output_of("sample", "--num-images", 3, *steps, tmp_path / "samples", model=tmp_path / "new")
    assert [Image.open(path).size for path in sampled["images"]] == [(16, 16)] * 3
    varied = output_of("variations", picture, *steps, tmp_path / "many")
    assert Path(varied["strip"]).is_file()
    assert Path(varied["spread"]).is_file()
