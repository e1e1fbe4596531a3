"""The attribute classifier: arithmetic in float64, directions planted in synthetic codes, and bad input."""

import math

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from diffae_hub import AttributeClassifier

NAMES = ["Young", "Smiling", "Bald"]
SCALE = np.linspace(0.5, 3, 16)


@pytest.fixture
def classifier() -> AttributeClassifier:
    torch.manual_seed(0)
    model = AttributeClassifier(latent_dim=6, num_attributes=3, attribute_names=NAMES).eval()
    model.latent_mean.copy_(torch.randn(6))
    model.latent_std.copy_(torch.rand(6) + 0.5)
    return model


def test_logits_and_editing_in_float64(classifier: AttributeClassifier) -> None:
    code = torch.randn(4, 6)
    w = {name: tensor.double() for name, tensor in classifier.state_dict().items()}
    normalized = (code.double() - w["latent_mean"]) / w["latent_std"]
    expected = normalized @ w["linear.weight"].T + w["linear.bias"]
    torch.testing.assert_close(classifier(code).logits.double(), expected, atol=1e-5, rtol=1e-5)
    direction = w["linear.weight"][1] / w["linear.weight"][1].square().sum().sqrt()
    for strength in (0.3, -1):
        expected = (normalized + strength * math.sqrt(6) * direction) * w["latent_std"] + w["latent_mean"]
        edited = classifier.edit(code, "Smiling", strength)
        torch.testing.assert_close(edited.double(), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(classifier.edit(code, 1, strength), edited)
    assert not classifier.edit(code.requires_grad_(), 0).requires_grad


def test_editing_while_the_weights_are_offloaded(classifier: AttributeClassifier) -> None:
    code = torch.randn(2, 6)
    expected = classifier.edit(code, 1)
    cpu_offload(classifier, torch.device("cpu"))  # sequential offloading
    assert classifier.linear.weight.is_meta
    assert torch.equal(classifier.edit(code, 1), expected)


def test_bad_names_and_edits(classifier: AttributeClassifier) -> None:
    for names in (NAMES[:1], ["a", "a"]):
        with pytest.raises(ValueError, match="attribute_names"):
            AttributeClassifier(num_attributes=2, attribute_names=names)
    code = torch.zeros(1, 6)
    for attribute in (3, -1, "Happy"):
        with pytest.raises(ValueError, match="attribute.*Young"):
            classifier.edit(code, attribute)
    with pytest.raises(ValueError, match="strength"):
        classifier.edit(code, 0, math.inf)
    for wrong in (torch.zeros(2, 7), torch.zeros(2, 1), torch.zeros(6)):
        for method in (classifier, lambda code: classifier.edit(code, 0)):
            with pytest.raises(ValueError, match="latent_code"):
                method(wrong)


# ---- fitting ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2000, 16)) * SCALE + 5


def cosine(first: torch.Tensor, second: np.ndarray) -> float:
    return float(first.detach().numpy() @ second / np.linalg.norm(first.detach()) / np.linalg.norm(second))


@pytest.mark.parametrize("method", ["logistic", "svm", "means"])
def test_a_planted_direction_is_found_and_saved(codes: np.ndarray, method: str, tmp_path) -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(2, 16))
    truth[1] -= truth[1] @ truth[0] / (truth[0] @ truth[0]) * truth[0]
    labels = ((codes - 5) / SCALE) @ truth.T + 0.3 * rng.normal(size=(2000, 2)) > 0
    AttributeClassifier.fit(codes, labels, ["first", "second"], method=method).save_pretrained(tmp_path)
    fitted = AttributeClassifier.from_pretrained(tmp_path)
    assert fitted.config.attribute_names == ["first", "second"]
    for row, wanted, score in zip(fitted.linear.weight, truth, fitted.config.attribute_scores, strict=True):
        assert cosine(row, wanted) > 0.98
        assert score["accuracy"] > 0.9
        assert score["auroc"] > 0.97
    np.testing.assert_allclose(fitted.latent_mean, codes.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted.latent_std, codes.std(axis=0), rtol=1e-6)
    found = fitted(torch.as_tensor(codes, dtype=torch.float32)).logits > 0
    assert float((found == torch.as_tensor(labels)).float().mean()) > 0.9


def test_numbers_by_ridge(codes: np.ndarray) -> None:
    truth = np.random.default_rng(2).normal(size=16)
    ages, given = (codes - 5) / SCALE @ truth + 40, torch.tensor(codes, requires_grad=True)
    fitted = AttributeClassifier.fit(given, ages, ["age"], method="ridge")
    assert cosine(fitted.linear.weight[0], truth) > 0.999
    assert fitted.config.attribute_scores[0]["r2"] > 0.999
    assert fitted.linear.bias.item() == pytest.approx(40, abs=0.3)


def test_classes_become_attributes(codes: np.ndarray) -> None:
    kinds = np.array(["cat", "dog", "bird"])[codes[:, :3].argmax(axis=1)]
    assert AttributeClassifier.fit(codes, kinds, method="means").config.attribute_names == ["bird", "cat", "dog"]
    two = AttributeClassifier.fit(codes, np.where(codes[:, 0] > 5, "up", "down"), method="means")
    assert (two.config.attribute_names, int(two.linear.weight[0].argmax())) == (["up"], 0)


def test_relatives_stay_together(codes: np.ndarray) -> None:
    """Copies of a code with a random label: whoever sees one copy knows the other's."""
    labels = np.random.default_rng(3).integers(0, 2, 40)
    given = {"codes": np.tile(codes[:40], (2, 1)), "labels": np.tile(labels, 2), "method": "svm", "seed": 1}
    alone, together = (
        AttributeClassifier.fit(**given, groups=groups).config.attribute_scores[0]["auroc"]
        for groups in (None, np.tile(np.arange(40), 2))
    )
    assert alone > together + 0.1


def test_edits_follow_pairs_that_differ_in_one_attribute(tmp_path) -> None:
    """Bearded people and people without, among many other things: the beard is what two of a kind differ in."""
    rng = np.random.default_rng(5)
    person, beard, hat = rng.normal(size=(3, 16))
    shown = np.repeat(np.arange(200), 4)
    labels = np.zeros((800, 3), dtype=int)
    labels[2:120:4, 0] = labels[3:120:4, 0] = 1  # of the first 60 things, which are people, 30 have beards
    labels[1::4, 1] = labels[3::4, 1] = 1  # half of all have hats
    labels[:, 2] = 1 - labels[:, 1]  # no hat
    things = rng.normal(size=(200, 16)) + np.where(np.arange(200) < 60, 5.0, 0.0)[:, None] * person
    codes = things[shown] + labels[:, :2] @ np.stack([beard, hat]) + 0.05 * rng.normal(size=(800, 16))
    names = ["beard", "hat", "bare"]
    given = {"codes": codes, "labels": labels, "names": names, "alternatives": ["hat", "bare"]}
    AttributeClassifier.fit(**given, matched_by=shown.astype(str)).save_pretrained(tmp_path)
    fitted = AttributeClassifier.from_pretrained(tmp_path)
    std = codes.std(axis=0)
    for name, truth in (("beard", beard), ("hat", hat), ("bare", -hat)):
        assert cosine(fitted.direction(name), truth / std) > 0.99
    assert cosine(fitted.linear.weight[0], beard / std) < 0.9
    z = torch.zeros(1, 16)
    expected = 0.3 * 4 * fitted.direction("beard") * fitted.latent_std
    torch.testing.assert_close(fitted.edit(z, "beard", 0.3)[0], expected, atol=1e-5, rtol=1e-5)

    alone = AttributeClassifier.fit(**given, matched_by=np.arange(800))  # no pairs
    np.testing.assert_allclose(alone.directions, alone.linear.weight.detach())


def test_principal_directions_are_the_eigenvectors(codes: np.ndarray) -> None:
    mixed = codes @ np.random.default_rng(4).normal(size=(16, 16))
    fitted = AttributeClassifier.principal_directions(mixed, 3)
    assert fitted.config.attribute_names == ["component 0", "component 1", "component 2"]
    values, vectors = np.linalg.eigh(np.corrcoef(mixed.T))
    for index in range(3):
        assert abs(cosine(fitted.linear.weight[index], vectors[:, -1 - index])) > 0.999
        assert fitted.config.attribute_scores[index]["variance"] == pytest.approx(values[-1 - index] / 16, rel=1e-6)


def test_an_attribute_of_one_image_has_a_direction_but_no_figures(codes: np.ndarray) -> None:
    labels = np.arange(len(codes)) == 7
    fitted = AttributeClassifier.fit(codes, labels[:, None], ["rare"])
    assert fitted.config.attribute_scores == [{}]
    with torch.no_grad():
        logits = fitted(torch.from_numpy(codes).float()).logits
    assert logits[7] > logits.quantile(0.95)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("labels", {"labels": np.zeros(10)}),
        ("labels", {"labels": np.zeros(2000)}),
        ("labels", {"labels": np.arange(4000).reshape(2000, 2)}),
        ("names", {"names": ["one", "two"]}),
        ("method", {"method": "guess"}),
        ("held_out", {"held_out": 1.0}),
        ("held_out", {"groups": np.zeros(2000)}),
        ("regularization", {"regularization": 0.0}),
        ("matched_by", {"matched_by": np.zeros(7)}),
        ("matched_by", {"matched_by": np.zeros(2000), "method": "ridge"}),
        ("alternatives", {"alternatives": ["attribute 0"]}),
        ("alternatives", {"matched_by": np.zeros(2000), "alternatives": ["other"]}),
        ("codes", {"codes": np.full((2000, 16), np.nan)}),
        ("codes", {"codes": np.zeros(16)}),
    ],
)
def test_bad_labels_and_codes_are_named(codes: np.ndarray, name: str, change: dict) -> None:
    with pytest.raises(ValueError, match=name):
        AttributeClassifier.fit(**{"codes": codes, "labels": codes[:, 0] > 5, **change})
