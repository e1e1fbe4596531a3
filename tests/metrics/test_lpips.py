"""LPIPS against its formula written out and against torchmetrics, with locally made random trunks."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import nn
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

from diffae_hub.metrics.lpips import PerceptualDistance
from diffae_hub.metrics.weights import WeightsUnavailable

from ..conftest import CHECKPOINTS

# (layers between the compared activations); numbers are (stride, padding) of a convolution with its ReLU
ALEX = [[(4, 2)], ["pool", (1, 2)], ["pool", (1, 1)], [(1, 1)], [(1, 1)]]
VGG = [[(1, 1)] * 2, ["pool", *[(1, 1)] * 2], *[["pool", *[(1, 1)] * 3]] * 3]
BLOCKS = {"alex": ALEX, "vgg": VGG}
POOL = {"alex": (3, 2), "vgg": (2, 2)}


@pytest.fixture(autouse=True)
def _use_torch_home(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))


@pytest.fixture(scope="module")
def distances(torch_home: Path) -> dict[str, PerceptualDistance]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home))
        return {network: PerceptualDistance(network) for network in CHECKPOINTS}


@pytest.fixture
def no_network() -> Iterator[None]:
    """A proxy that refuses connections, for everything that goes through urllib."""
    proxy = urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), "http://127.0.0.1:9"))
    urllib.request.install_opener(urllib.request.build_opener(proxy))
    yield
    urllib.request.install_opener(None)


def photograph_pairs(height: int = 32, width: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops of real photographs, one with noise and one darkened, and the crops, (2, 3, height, width) in [0, 1]."""
    crops = [load_sample_image(name)[100 : 100 + height, 200 : 200 + width] for name in ("china.jpg", "flower.jpg")]
    references = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    noise = torch.randn(references.shape, generator=torch.Generator().manual_seed(0))
    return torch.stack([(references[0] + 0.1 * noise[0]).clamp(0, 1), 0.8 * references[1]]), references


def written_out(network: str, torch_home: Path, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Equation 1 of Zhang et al. (2018), in float64, with the trunk of `torch_home` and the linear layers of lpips."""
    trunk = torch.load(torch_home / "hub" / "checkpoints" / CHECKPOINTS[network])
    convolutions = [
        trunk[f"{key[:-7]}.{part}"].double()
        for key in trunk
        if key.endswith("weight")
        for part in ("weight", "bias")
        if key.startswith("features")
    ]
    linear = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{network}.pth", map_location="cpu")
    mean, std = (torch.tensor(v).double()[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = [(batch.double() - mean) / std for batch in (images, references)]
    distance, position = torch.zeros(len(images), dtype=torch.float64), 0
    for number, block in enumerate(BLOCKS[network]):
        for layer in block:
            if layer == "pool":
                features = [F.max_pool2d(x, *POOL[network]) for x in features]
                continue
            weight, bias = convolutions[position : position + 2]
            features = [F.relu(F.conv2d(x, weight, bias, *layer)) for x in features]
            position += 2
        unit = [x / x.norm(dim=1, keepdim=True).clamp_min(1e-10) for x in features]
        weights = linear[f"lin{number}.model.1.weight"].double()
        distance += (weights * (unit[0] - unit[1]) ** 2).sum(dim=1).mean(dim=(1, 2))
    assert position == len(convolutions)
    return distance


@pytest.mark.parametrize("network", ["alex", "vgg"])
@pytest.mark.parametrize("size", [(32, 32), (70, 45)])
def test_equals_the_formula_written_out(network, size, distances, torch_home) -> None:
    images, references = photograph_pairs(*size)
    actual = distances[network](images, references)
    assert actual.shape == (2,) and actual.dtype == torch.float32
    # lpips' scaling constants are rounded to three digits
    torch.testing.assert_close(
        actual.double(), written_out(network, torch_home, images, references), rtol=5e-3, atol=1e-5
    )
    assert actual.min() > 0.01 and abs(float(actual[0] / actual[1]) - 1) > 0.05


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_equals_torchmetrics(network, distances) -> None:
    images, references = photograph_pairs(64, 64)
    expected = [
        float(learned_perceptual_image_patch_similarity(image[None], reference[None], network, normalize=True))
        for image, reference in zip(images, references, strict=True)
    ]
    np.testing.assert_allclose(distances[network](images, references).numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_properties(network, distances) -> None:
    distance = distances[network]
    images, references = photograph_pairs()
    assert distance(references, references).abs().max() == 0
    forward = distance(images, references)
    torch.testing.assert_close(distance(references, images), forward)
    torch.testing.assert_close(distance(images[1:], references[1:]), forward[1:], rtol=1e-4, atol=0)
    gray = [batch[:, :1] for batch in (images, references)]
    torch.testing.assert_close(distance(*gray), distance(*(batch.repeat(1, 3, 1, 1) for batch in gray)))
    torch.testing.assert_close(distance(images.double(), references.double()), forward)
    assert not distance(images.requires_grad_(), references).requires_grad


@pytest.mark.parametrize(("network", "minimum"), [("alex", 31), ("vgg", 16)])
def test_smallest_images(network, minimum, distances, torch_home) -> None:
    images, references = photograph_pairs(minimum, minimum)
    expected = written_out(network, torch_home, images, references)
    torch.testing.assert_close(distances[network](images, references).double(), expected, rtol=5e-3, atol=1e-5)
    smaller = images[..., 1:, :]
    with pytest.raises(RuntimeError):  # nothing is left of them in the network
        written_out(network, torch_home, smaller, smaller)
    with pytest.raises(ValueError, match=f"{minimum} x {minimum}"):
        distances[network](smaller, smaller)


def test_bad_input(distances) -> None:
    with pytest.raises(ValueError, match="images"):
        distances["alex"](torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 33))


def test_says_nothing(capfd, recwarn) -> None:
    PerceptualDistance("alex")(*photograph_pairs())
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_network")
def test_no_weights(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match="LPIPS-alex") as error:
        PerceptualDistance("alex")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", ["damaged", "truncated", "another network"])
def test_wrong_weights(content, torch_home, tmp_path, monkeypatch) -> None:
    path = tmp_path / "hub" / "checkpoints" / CHECKPOINTS["alex"]
    path.parent.mkdir(parents=True)
    good = (torch_home / "hub" / "checkpoints" / CHECKPOINTS["alex"]).read_bytes()
    if content == "damaged":
        path.write_text("<html>please sign in</html>")
    elif content == "truncated":
        path.write_bytes(good[: len(good) // 2])
    else:
        torch.save(nn.Linear(2, 2).state_dict(), path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match="LPIPS-alex"):
        PerceptualDistance("alex")
