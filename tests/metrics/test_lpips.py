"""LPIPS against its formula written out and against torchmetrics, with locally made random trunks."""

from __future__ import annotations

from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

from diffae_hub.metrics.lpips import PerceptualDistance
from diffae_hub.metrics.weights import WeightsUnavailable

from ..conftest import CHECKPOINTS
from .conftest import photograph_pair

# (layers between the compared activations); numbers are (stride, padding) of a convolution with its ReLU
ALEX = [[(4, 2)], ["pool", (1, 2)], ["pool", (1, 1)], [(1, 1)], [(1, 1)]]
VGG = [[(1, 1)] * 2, ["pool", *[(1, 1)] * 2], *[["pool", *[(1, 1)] * 3]] * 3]
BLOCKS = {"alex": ALEX, "vgg": VGG}
POOL = {"alex": (3, 2), "vgg": (2, 2)}
MINIMUM = {"alex": 31, "vgg": 16}


@pytest.fixture(autouse=True)
def _use_torch_home(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))


@pytest.fixture(scope="module", params=list(CHECKPOINTS))
def distance(request, torch_home: Path) -> PerceptualDistance:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home))
        return PerceptualDistance(request.param)


def written_out(network: str, torch_home: Path, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Equation 1 of Zhang et al. (2018), in float64, with the trunk of `torch_home` and the linear layers of lpips."""
    trunk = torch.load(torch_home / "hub" / "checkpoints" / CHECKPOINTS[network])
    convolutions = iter([value.double() for key, value in trunk.items() if key.startswith("features")])
    linear = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{network}.pth", map_location="cpu")
    mean, std = (torch.tensor(v).double()[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = [(batch.double() - mean) / std for batch in (images, references)]
    distance = torch.zeros(len(images), dtype=torch.float64)
    for number, block in enumerate(BLOCKS[network]):
        for layer in block:
            if layer == "pool":
                features = [F.max_pool2d(x, *POOL[network]) for x in features]
                continue
            weight, bias = next(convolutions), next(convolutions)
            features = [F.relu(F.conv2d(x, weight, bias, *layer)) for x in features]
        unit = [x / x.norm(dim=1, keepdim=True).clamp_min(1e-10) for x in features]
        weights = linear[f"lin{number}.model.1.weight"].double()
        distance += (weights * (unit[0] - unit[1]) ** 2).sum(dim=1).mean(dim=(1, 2))
    assert next(convolutions, None) is None
    return distance


def test_equals_the_formula_written_out(distance: PerceptualDistance, torch_home: Path) -> None:
    for size in ((70, 45), (MINIMUM[distance.network],) * 2):
        images, references = photograph_pair(*size)
        actual = distance(images, references)
        assert actual.shape == (2,) and actual.dtype == torch.float32
        # lpips' scaling constants are rounded to three digits
        expected = written_out(distance.network, torch_home, images, references)
        torch.testing.assert_close(actual.double(), expected, rtol=5e-3, atol=1e-5)
        assert actual.min() > 1e-4 and abs(float(actual[0] / actual[1]) - 1) > 0.05
    with pytest.raises(ValueError, match="images"):  # nothing would be left of them in the network
        distance(images[..., 1:, :], references[..., 1:, :])
    with pytest.raises(ValueError, match="images"):
        distance(images, references[..., 1:])


def test_equals_torchmetrics(distance: PerceptualDistance) -> None:
    images, references = (batch.float() for batch in photograph_pair(64, 64))
    expected = [
        float(learned_perceptual_image_patch_similarity(image[None], reference[None], distance.network, normalize=True))
        for image, reference in zip(images, references, strict=True)
    ]
    np.testing.assert_allclose(distance(images, references).numpy(), expected, rtol=1e-4)


def test_properties(distance: PerceptualDistance) -> None:
    images, references = photograph_pair(32, 32)
    assert distance(references, references).abs().max() == 0
    forward = distance(images, references)
    torch.testing.assert_close(distance(references, images), forward)
    gray = [batch[:, :1] for batch in (images, references)]
    torch.testing.assert_close(distance(*gray), distance(*(batch.repeat(1, 3, 1, 1) for batch in gray)))
    assert not distance(images.requires_grad_(), references).requires_grad


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("content", ["none", "damaged", "truncated", "another network"])
def test_missing_and_wrong_weights(content: str, torch_home: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    path = tmp_path / "hub" / "checkpoints" / CHECKPOINTS["alex"]
    path.parent.mkdir(parents=True)
    good = (torch_home / "hub" / "checkpoints" / CHECKPOINTS["alex"]).read_bytes()
    if content == "damaged":
        path.write_text("<html>please sign in</html>")
    elif content == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif content == "another network":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match="LPIPS-alex") as error:
        PerceptualDistance("alex")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
