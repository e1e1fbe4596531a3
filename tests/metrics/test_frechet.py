"""Fréchet distances on locally made networks, against closed forms and features computed another way."""

import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid import fid as clean_fid
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_statistics_to_metric
from transformers import Dinov2Config, Dinov2Model

from diffae_hub.images import to_pil
from diffae_hub.metrics.frechet import FEATURES, frechet_distance
from diffae_hub.metrics.lpips import PerceptualDistance
from diffae_hub.metrics.weights import WeightsUnavailable

from .conftest import photographs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Crops of two photographs, 32 x 32; the second ones are grayscale files."""
    folder = tmp_path_factory.mktemp("files")
    for index, crop in enumerate(photographs(4, 32, 32)):
        to_pil(crop).convert(("RGB", "L")[index % 2]).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def pixels(files: list[Path]) -> torch.Tensor:
    """(N, 3, H, W), uint8."""
    return torch.from_numpy(np.stack([Image.open(path).convert("RGB") for path in files])).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch-fidelity's Inception with kaiming-normal convolutions: with smaller ones all its features are alike."""

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs) -> None:
            pass

    path = tmp_path_factory.mktemp("torch_home") / "hub" / "checkpoints" / URL_INCEPTION_V3.rsplit("/")[-1]
    path.parent.mkdir(parents=True)
    torch.save({}, path)
    torch.manual_seed(0)
    network = Unloaded("random", ["2048"], feature_extractor_weights_path=str(path))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, initializer_range=0.3
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_distance_is_the_librarys() -> None:
    random = np.random.default_rng(0)
    for counts in ((50, 40), (50, 4)):  # also of fewer images than features
        features = [random.normal(size=(count, 6)) @ random.normal(size=(6, 6)) + 1 for count in counts]
        statistics = [{"mu": x.mean(axis=0), "sigma": np.cov(x, rowvar=False)} for x in features]
        expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        assert frechet_distance(*map(torch.from_numpy, features)) == pytest.approx(expected, rel=1e-5)


def check(metric: str, files: list[Path], expected: torch.Tensor, capfd, rtol: float = 1e-3, **options: object) -> None:
    """Features are those of another computation, differ between images, and nothing is printed."""
    capfd.readouterr()  # of the other computation
    features = FEATURES[metric](**options)(files)
    assert capfd.readouterr() == ("", "")
    spread = float(features.std(dim=0).max())
    assert spread > 0
    torch.testing.assert_close(features, expected, rtol=0, atol=rtol * spread)


def test_fid_torch_fidelity(files, pixels, inception_weights, monkeypatch, capfd) -> None:
    monkeypatch.setenv("TORCH_HOME", str(inception_weights.parents[2]))
    network = FeatureExtractorInceptionV3("local", ["2048"], feature_extractor_weights_path=str(inception_weights))
    check("fid_torch_fidelity", files, network(pixels)[0], capfd)


class PatchLayers(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, 299, 299) -> (B, 2048): brightness and differences of neighbouring pixels by place, and zeros."""
        steps = (images[..., 1:] - images[..., :-1]).abs()
        features = torch.cat([nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) for x in (images, steps)], dim=1)
        return nn.functional.pad(features, (0, 2048 - 96))


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = PatchLayers()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def test_fid_clean_fid(files, tmp_path, monkeypatch, capfd) -> None:
    torch.jit.script(Patches()).save(tmp_path / "inception-2015-12-05.pt")
    extractor = InceptionV3W(str(tmp_path), download=False)  # the library itself looks in /tmp only
    monkeypatch.setattr("cleanfid.features.build_feature_extractor", lambda *_, **options: extractor)
    options = {"mode": "clean", "num_workers": 0, "device": torch.device("cpu"), "verbose": False}
    expected = clean_fid.get_folder_features(str(files[0].parent), extractor, **options)
    check("fid_clean_fid", files, torch.from_numpy(expected), capfd)


def test_fd_vgg16(files, pixels, torch_home, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    Image.new("RGB", (20, 15)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="images"):
        FEATURES["fd_vgg16"]()([tmp_path / "small.png"])
    perceptual = PerceptualDistance("vgg")._model
    scaled = perceptual.scaling_layer(pixels / 127.5 - 1)  # its constants have three digits
    check("fd_vgg16", files, perceptual.net(scaled).relu5_3.mean(dim=(2, 3)), capfd, rtol=2e-2)


@torch.no_grad()
def test_fd_dinov2(files, pixels, dinov2, capfd) -> None:
    def resized(channel: torch.Tensor) -> np.ndarray:
        image = Image.fromarray(channel.float().numpy() / 255)  # Pillow's own bicubic, in floating point
        return np.clip(np.array(image.resize((224, 224), Image.Resampling.BICUBIC)), 0, 1)

    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = torch.stack([torch.from_numpy(np.stack([resized(c) for c in image])) for image in pixels])
    expected = Dinov2Model.from_pretrained(dinov2)((images - mean) / std).pooler_output  # the class token
    check("fd_dinov2", files, expected, capfd, model=dinov2)


@pytest.mark.parametrize("load", [*FEATURES.values(), PerceptualDistance])
def test_no_weights(load, tmp_path, monkeypatch, capfd) -> None:
    if load is FEATURES["fid_clean_fid"] and Path("/tmp/inception-2015-12-05.pt").exists():
        pytest.skip("clean-fid has its weights here")
    proxy = urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), "http://127.0.0.1:9"))  # refuses connections
    monkeypatch.setattr(urllib.request, "_opener", urllib.request.build_opener(proxy))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    more = {"model": "somebody/no-such-dinov2"} if load is FEATURES["fd_dinov2"] else {}
    with pytest.raises(WeightsUnavailable, match="weights") as error:
        load(**more)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_incomplete_weights_of_dinov2(dinov2, tmp_path) -> None:
    """transformers would leave them random."""
    state = load_file(dinov2 / "model.safetensors")
    (tmp_path / "config.json").write_bytes((dinov2 / "config.json").read_bytes())
    save_file(dict(list(state.items())[1:]), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsUnavailable, match="DINOv2"):
        FEATURES["fd_dinov2"](model=tmp_path)
