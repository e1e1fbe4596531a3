"""Fréchet distances on locally made networks, against closed forms and features computed another way."""

import urllib.request
import warnings
from pathlib import Path

import lpips
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

COUNT = 4


def distance_of(metric: str, files: tuple[list[Path], list[Path]], **options: object) -> float:
    features = FEATURES[metric](**options)
    return frechet_distance(*map(features, files))


def read(files: list[Path]) -> torch.Tensor:
    """(N, 3, H, W), uint8."""
    images = [np.array(Image.open(path).convert("RGB")) for path in files]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    """Crops of two photographs, 32 x 32; the second ones are grayscale files."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for index, crop in enumerate(photographs(2 * COUNT, 32, 32)):
        image = to_pil(crop).convert(("RGB", "L")[index % 2])
        image.save(folders[index % 2] / f"{index}.png")
    return tuple(sorted(folder.iterdir()) for folder in folders)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch-fidelity's Inception with kaiming-normal convolutions: with smaller ones all its features are alike.

    All but 320 of the 2048 features are zero, with which eigenvalues are found in no time.
    """

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
    for name, parameter in network.Mixed_7c.named_parameters():
        if name.endswith("bn.bias") and not name.startswith("branch1x1"):
            nn.init.constant_(parameter, -1e4)
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


def test_fid_torch_fidelity(files, inception_weights, monkeypatch, capfd) -> None:
    monkeypatch.setenv("TORCH_HOME", str(inception_weights.parents[2]))
    distance = distance_of("fid_torch_fidelity", files)
    assert capfd.readouterr() == ("", "")
    network = FeatureExtractorInceptionV3("local", ["2048"], feature_extractor_weights_path=str(inception_weights))
    features = [network(read(paths))[0].numpy() for paths in files]
    assert [np.count_nonzero(x.std(axis=0)) > 100 for x in features] == [True, True]
    assert distance > 1e-3
    # Features that are always zero change nothing, but cost the library's matrix root a minute.
    used = np.flatnonzero(np.concatenate(features).any(axis=0))
    statistics = [{"mu": x[:, used].mean(axis=0), "sigma": np.cov(x[:, used], rowvar=False)} for x in features]
    library = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert distance == pytest.approx(library, rel=1e-4)


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
    distance = distance_of("fid_clean_fid", files)
    assert capfd.readouterr() == ("", "")
    options = {"mode": "clean", "num_workers": 0, "device": torch.device("cpu"), "verbose": False}
    features = [clean_fid.get_folder_features(str(paths[0].parent), extractor, **options)[:, :96] for paths in files]
    statistics = [part for x in features for part in (x.mean(axis=0), np.cov(x, rowvar=False))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's: these covariances are singular
        library = clean_fid.frechet_distance(*statistics)  # of all 2048 features it takes a minute
    assert distance == pytest.approx(library, rel=1e-3)
    assert distance > 1e-2


def test_fd_vgg16(files, torch_home, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    Image.new("RGB", (20, 15)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="images"):
        distance_of("fd_vgg16", ([tmp_path / "small.png"], files[0]))
    distance = distance_of("fd_vgg16", files)
    assert capfd.readouterr() == ("", "")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        perceptual = lpips.LPIPS(net="vgg", verbose=False)
    features = []
    for paths in files:
        scaled = perceptual.scaling_layer(read(paths) / 127.5 - 1)  # its constants have three digits
        features.append(perceptual.net(scaled).relu5_3.mean(dim=(2, 3)).numpy())
    assert features[0].shape == (COUNT, 512)
    assert distance == pytest.approx(frechet_distance(*map(torch.from_numpy, features)), rel=5e-3)
    assert distance > 1e-3


def test_fd_dinov2(files, dinov2, capfd) -> None:
    distance = distance_of("fd_dinov2", files, model=dinov2)
    assert abs(distance_of("fd_dinov2", (files[0], files[0]), model=str(dinov2))) < 1e-3 * distance
    assert capfd.readouterr() == ("", "")

    def resized(channel: torch.Tensor) -> np.ndarray:
        image = Image.fromarray(channel.float().numpy() / 255)  # Pillow's own bicubic, in floating point
        return np.clip(np.array(image.resize((224, 224), Image.Resampling.BICUBIC)), 0, 1)

    network = Dinov2Model.from_pretrained(dinov2)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = []
    for paths in files:
        images = torch.stack([torch.from_numpy(np.stack([resized(c) for c in image])) for image in read(paths)])
        with torch.no_grad():
            features.append(network((images - mean) / std).pooler_output.numpy())  # the class token
    assert distance == pytest.approx(frechet_distance(*map(torch.from_numpy, features)), rel=1e-3)
    assert distance > 1e-2


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
