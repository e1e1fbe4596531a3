"""Model cards: every number on the page is one of the document's."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from diffae_hub.model_card import figures_of_run, public_name, render_model_card, write_model_card
from diffae_hub.publishing import card_figures
from diffae_hub.training.presets import PRESETS

HOW = {"validation": {"dataset": "some/test", "split": "test", "images": 64, "steps": 50}}
METRICS = [
    {"examples": 64, "phase": 1, "psnr_one_step": 11.5, "ssim_one_step": 0.2, **HOW},
    {"examples": 128, "phase": 2, "loss": 0.5, "examples_per_second": 88.25},
    {
        "examples": 128,
        "phase": 2,
        "psnr_stochastic": 21.5432,
        "ssim_stochastic": 0.8125,
        "psnr_inversion": 37.25,
        **HOW,
    },
]


def figures() -> dict:
    named = {"model_name": "owner/model", "dataset": {"name": "some/data"}}
    named["parameters"] = {"encoder": 123_456, "decoder": 7_654_321}
    return named | figures_of_run(asdict(PRESETS["cifar10-32"]), METRICS)


def header_of(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def test_an_evaluation_replaces_what_the_training_measured(tmp_path: Path) -> None:
    report = {"dataset": "some/data", "num_images": 10, "steps": 7, "solver": "dpm", "modes": ["stochastic"]}
    (tmp_path / "report.json").write_text(json.dumps({**report, "results": {"stochastic": {"ssim": {"mean": 0.75}}}}))
    card = render_model_card(figures() | card_figures(None, None, tmp_path / "report.json"))
    assert "| 10 images, 7 DPM-Solver++ steps |" in card
    assert "21.54 dB" not in card
    assert figures()["evaluation"] not in card


def test_card_shows_the_measured_figures(tmp_path: Path) -> None:
    document = figures() | {"license": "apache-2.0", "tags": ['odd: "tag"', "# no comment"]}
    write_model_card(tmp_path, document | {"limitations": ["Only small images."]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "figures.json"]
    card = (tmp_path / "README.md").read_text()
    assert render_model_card(json.loads((tmp_path / "figures.json").read_text())) == card
    for text in ("21.54 dB", "0.8125", "37.25 dB", "123,456", "7,654,321", "88.25", "owner/model", "some/data", "25 %"):
        assert text in card, text
    assert "11.5" not in card, "the last validation only"
    assert "- Only small images." in card
    networks = json.loads(re.search(r"```json\n(.*?)\n```", card, re.DOTALL)[1])
    assert networks == json.loads(json.dumps({part: document["experiment"][part] for part in networks}))
    header = header_of(card)
    assert (header["license"], header["library_name"]) == ("apache-2.0", "diffae_hub")
    assert header["pipeline_tag"] == "image-to-image"
    assert header["tags"][-2:] == ['odd: "tag"', "# no comment"]
    assert "license" not in header_of(render_model_card(figures())), "none is claimed unasked"


def test_card_of_a_model_that_decodes_in_one_step() -> None:
    experiment = asdict(PRESETS["cifar10-32"].with_overrides({"phase1_fraction": 1}))
    card = render_model_card({"model_name": "m", **figures_of_run(experiment, METRICS[:1])})
    assert "64 held-out images, one step from t = 1, averaged" in card
    assert "num_inference_steps=1)" in card
    assert "| phases | one; all examples with t = 1 |" in card
    assert "50" not in card.split("## Networks")[0]
    assert "num_inference_steps=50)" in render_model_card(figures())


def test_a_card_of_little_shows_what_there_is() -> None:
    unmeasured = figures_of_run(asdict(PRESETS["cifar10-32"]), [])
    assert not unmeasured["results"]
    card = render_model_card({"model_name": "me/x", "class_name": "SemanticEncoderModel"})
    assert 'SemanticEncoderModel.from_pretrained("me/x")' in card
    assert "##" not in card
    assert not re.search(r"TODO|None|More Information|\[[a-z ]+\]", card)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/data/celeba/", "celeba"),
        ("~/mine/train.parquet", "train.parquet"),
        ("C:\\mine\\photos", "photos"),
        ("../photos", "photos"),
        ("a/b/c", "c"),
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("CIFAR-10, train/test mixed", "CIFAR-10, train/test mixed"),
    ],
)
def test_local_paths_do_not_show(name: str, shown: str) -> None:
    assert public_name(name) == shown
    document = figures() | {"dataset": {"name": name}}
    card = render_model_card(document)
    assert shown in card
    assert header_of(card).get("datasets") == (["uoft-cs/cifar10"] if shown == name and " " not in name else None)
