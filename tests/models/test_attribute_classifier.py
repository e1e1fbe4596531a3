"""The attribute classifier: its arithmetic against plain torch in float64, saving, and bad input."""

from __future__ import annotations

import math

import pytest
import torch

from diffae_hub import AttributeClassifier

NAMES = ["Young", "Smiling", "Bald"]


@pytest.fixture
def classifier() -> AttributeClassifier:
    torch.manual_seed(0)
    model = AttributeClassifier(latent_dim=6, num_attributes=3, attribute_names=NAMES).eval()
    model.latent_mean.copy_(torch.randn(6))
    model.latent_std.copy_(torch.rand(6) + 0.5)
    return model


def test_logits_in_float64(classifier: AttributeClassifier) -> None:
    code = torch.randn(4, 6)
    w = {name: tensor.double() for name, tensor in classifier.state_dict().items()}
    expected = (code.double() - w["latent_mean"]) / w["latent_std"] @ w["linear.weight"].T + w["linear.bias"]
    torch.testing.assert_close(classifier(code).logits.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(classifier(code, return_dict=False)[0], classifier(code).logits)


@pytest.mark.parametrize("strength", [0.3, -1, 0])
def test_editing_in_float64(classifier: AttributeClassifier, strength: float) -> None:
    code = torch.randn(4, 6)
    w = {name: tensor.double() for name, tensor in classifier.state_dict().items()}
    row = w["linear.weight"][1]
    direction = row / row.square().sum().sqrt()
    normalized = (code.double() - w["latent_mean"]) / w["latent_std"]
    expected = (normalized + strength * math.sqrt(6) * direction) * w["latent_std"] + w["latent_mean"]
    edited = classifier.edit(code, "Smiling", strength)
    torch.testing.assert_close(edited.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(classifier.edit(code, 1, strength), edited)
    # The logit moves by strength sqrt(D) |w|.
    moved = classifier(edited).logits[:, 1] - classifier(code).logits[:, 1]
    torch.testing.assert_close(
        moved.double(), torch.full((4,), strength * math.sqrt(6)).double() * row.norm(), atol=1e-5, rtol=0
    )


def test_edited_codes_have_no_gradient(classifier: AttributeClassifier) -> None:
    code = torch.randn(2, 6, requires_grad=True)
    assert classifier(code).logits.requires_grad
    assert not classifier.edit(code, 0).requires_grad


def test_editing_while_the_weights_are_offloaded(classifier: AttributeClassifier) -> None:
    from accelerate import cpu_offload
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Counter(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    code = torch.randn(2, 6)
    expected = classifier.edit(code, 1)
    counter = Counter()
    add_hook_to_module(classifier, counter)  # model offloading moves the whole classifier in such a hook
    classifier.edit(code, 1)
    assert counter.calls == 1
    cpu_offload(classifier, torch.device("cpu"))  # sequential offloading
    assert classifier.linear.weight.is_meta
    assert torch.equal(classifier.edit(code, 1), expected)
    assert classifier.linear.weight.is_meta


def test_saved_and_loaded(classifier: AttributeClassifier, tmp_path) -> None:
    classifier.save_pretrained(tmp_path)
    loaded = AttributeClassifier.from_pretrained(tmp_path)
    assert list(loaded.config.attribute_names) == NAMES
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    code = torch.randn(2, 6)
    assert torch.equal(loaded.edit(code, "Bald"), classifier.edit(code, 2))


def test_it_lives_in_the_flat_package() -> None:
    assert AttributeClassifier.__module__ == "diffae_hub"


def test_official_size() -> None:
    with torch.device("meta"):
        model = AttributeClassifier()
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == {
        "linear.weight": (40, 512),
        "linear.bias": (40,),
        "latent_mean": (512,),
        "latent_std": (512,),
    }


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"latent_dim": 0}, "latent_dim"),
        ({"num_attributes": 0}, "num_attributes"),
        ({"num_attributes": 3, "attribute_names": NAMES[:2]}, "attribute_names"),
        ({"num_attributes": 2, "attribute_names": ["a", "a"]}, "attribute_names"),
    ],
)
def test_bad_configuration(options: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        AttributeClassifier(**options)


@pytest.mark.parametrize(
    ("attribute", "strength", "name"),
    [(3, 0.3, "attribute"), (-1, 0.3, "attribute"), ("Happy", 0.3, "Young, Smiling, Bald"), (0, math.inf, "strength")],
)
def test_bad_edits(classifier: AttributeClassifier, attribute, strength: float, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        classifier.edit(torch.zeros(1, 6), attribute, strength)


def test_bad_codes_and_a_classifier_without_names(classifier: AttributeClassifier) -> None:
    for code in (torch.zeros(2, 7), torch.zeros(2, 1), torch.zeros(6)):
        for method in (classifier, lambda code: classifier.edit(code, 0)):
            with pytest.raises(ValueError, match="latent_code"):
                method(code)
    with pytest.raises(ValueError, match="attribute"):
        AttributeClassifier(6, 3).edit(torch.zeros(1, 6), "Smiling")


def test_fitting_labels_and_saving_what_was_measured(tmp_path) -> None:
    rng = torch.Generator().manual_seed(0)
    codes = torch.randn(600, 6, generator=rng) * torch.tensor([1.0, 2, 3, 4, 5, 6]) + 1
    labels = torch.stack([codes[:, 2] > 1, codes[:, 5] + codes[:, 4] > 2], dim=1)
    fitted = AttributeClassifier.fit(codes, labels, ["third", "last two"])
    fitted.save_pretrained(tmp_path)
    loaded = AttributeClassifier.from_pretrained(tmp_path)
    assert loaded.config.attribute_names == ["third", "last two"]
    assert all(score["auroc"] > 0.99 for score in loaded.config.attribute_scores)
    assert float(((loaded(codes).logits > 0) == labels).float().mean()) > 0.97
    moved = loaded.edit(codes, "third", 0.5) - codes
    assert float(moved[:, 2].min()) > 0.9 * 0.5 * 6**0.5 * float(codes[:, 2].std())
    assert float(moved[:, [0, 1, 3]].abs().max()) < 0.4 * float(moved[:, 2].min())


def test_principal_directions_have_names() -> None:
    codes = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    classifier = AttributeClassifier.principal_directions(codes, 2)
    assert classifier.config.attribute_names == ["component 0", "component 1"]
    assert classifier.config.attribute_scores[0]["variance"] >= classifier.config.attribute_scores[1]["variance"]
