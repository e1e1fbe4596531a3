"""Fréchet distances on locally made networks, against closed forms and features computed another way."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torch_fidelity
from cleanfid import fid as clean_fid
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from transformers import Dinov2Config, Dinov2Model

from diffae_hub.metrics.frechet import fd_dinov2, fd_vgg16, fid_clean_fid, fid_torch_fidelity
from diffae_hub.metrics.weights import WeightsUnavailable

COUNT = 4


def save_images(folder: Path, images: list[np.ndarray]) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return folder


def read(folder: Path) -> torch.Tensor:
    """(N, 3, H, W), uint8."""
    images = [np.array(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """For two sets of N features, from N x N matrices only.

    With centred features X / sqrt(N - 1), the eigenvalues of S_a S_b are the squared singular values of X_a X_b^T, so
    that tr sqrt(S_a S_b) is their sum.
    """
    features = [np.asarray(x, dtype=np.float64) for x in (features_a, features_b)]
    means = [x.mean(axis=0) for x in features]
    centred = [(x - m) / np.sqrt(len(x) - 1) for x, m in zip(features, means, strict=True)]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return np.square(means[0] - means[1]).sum() + sum(np.square(x).sum() for x in centred) - 2 * cross


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Crops of two photographs, 32 x 32; the second folder's are grayscale files."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    crops = []
    for name in ("china.jpg", "flower.jpg"):
        photograph = load_sample_image(name)
        corners = random.integers(0, 390, (COUNT, 2))
        crops.append([np.ascontiguousarray(photograph[y : y + 32, x : x + 32]) for y, x in corners])
    gray = [np.array(Image.fromarray(crop).convert("L")) for crop in crops[1]]
    return save_images(root / "a", crops[0]), save_images(root / "b", gray)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch-fidelity's Inception with kaiming-normal convolutions: with smaller ones all its features are alike.

    All but 320 of the 2048 features are zero, with which eigenvalues are found in no time.
    """

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs) -> None:
            pass

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
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


@pytest.fixture
def no_network() -> Iterator[None]:
    """A proxy that refuses connections, for everything that goes through urllib."""
    proxy = urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), "http://127.0.0.1:9"))
    urllib.request.install_opener(urllib.request.build_opener(proxy))
    yield
    urllib.request.install_opener(None)


# ---- FID -------------------------------------------------------------------------------------------------------------


def test_fid_torch_fidelity(folders, inception_weights, capfd) -> None:
    distance = fid_torch_fidelity(*folders, weights=inception_weights)
    itself = fid_torch_fidelity(folders[0], folders[0], weights=inception_weights)
    assert capfd.readouterr() == ("", "")

    network = FeatureExtractorInceptionV3("local", ["2048"], feature_extractor_weights_path=str(inception_weights))
    features = [network(read(folder))[0].numpy() for folder in folders]
    assert [np.count_nonzero(x.std(axis=0)) > 100 for x in features] == [True, True]
    assert distance == pytest.approx(frechet_distance(*features), rel=1e-3)
    assert distance > 1e-3
    assert abs(itself) < 1e-3 * distance

    called_directly = torch_fidelity.calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), fid=True, cuda=False, cache=False, verbose=False,
        save_cpu_ram=True, feature_extractor_weights_path=str(inception_weights),
    )["frechet_inception_distance"]  # fmt: skip
    assert distance == pytest.approx(called_directly, rel=1e-6)


class BrightnessLayers(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, 299, 299) -> (B, 2048): the mean brightness, and zeros."""
        return nn.functional.pad(images.mean(dim=(1, 2, 3))[:, None], (0, 2047))


class Brightness(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = BrightnessLayers()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class PatchLayers(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, 299, 299) -> (B, 2048): differences of neighbouring pixels and brightness by place, and zeros."""
        steps = (images[..., 1:] - images[..., :-1]).abs()
        features = torch.cat([nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) for x in (images, steps)], dim=1)
        return nn.functional.pad(features, (0, 2048 - 96))


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = PatchLayers()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def test_fid_clean_fid_is_what_the_library_says(tmp_path, folders) -> None:
    weights = tmp_path / "inception-2015-12-05.pt"  # where the library looks for it
    torch.jit.script(Patches()).save(weights)
    extractor = InceptionV3W(str(tmp_path), download=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's: these covariances are singular
        distance = fid_clean_fid(*folders, weights=weights)
        itself = fid_clean_fid(folders[0], folders[0], weights=weights)
        called_directly = clean_fid.compute_fid(
            *map(str, folders), mode="clean", num_workers=0, batch_size=64, device=torch.device("cpu"),
            custom_feat_extractor=extractor, verbose=False,
        )  # fmt: skip
    assert distance == pytest.approx(called_directly, rel=1e-6)
    assert distance > 1e-2
    assert abs(itself) < 1e-3 * distance


def test_fid_clean_fid(tmp_path, capfd) -> None:
    # Images of one colour keep it when resized. With their brightness, in [-1, 1], as the only feature, the distance is
    # that of two Gaussians on a line: (mean_a - mean_b)^2 + (deviation_a - deviation_b)^2.
    levels = np.array([[10, 60, 90, 200], [70, 80, 240, 250]], dtype=np.uint8)
    folders = [
        save_images(tmp_path / name, [np.full((32, 32, 3), level) for level in row])
        for name, row in zip("ab", levels, strict=True)
    ]
    weights = tmp_path / "local.pt"
    torch.jit.script(Brightness()).save(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's: these covariances are singular
        distance = fid_clean_fid(*folders, weights=weights)
    assert capfd.readouterr() == ("", "")
    brightness = (levels.astype(np.float64) - 128) / 128
    means, deviations = brightness.mean(axis=1), brightness.std(axis=1, ddof=1)
    assert distance == pytest.approx((means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2, rel=1e-4)


# ---- other features --------------------------------------------------------------------------------------------------


def test_fd_vgg16(folders, torch_home, monkeypatch, capfd) -> None:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    distance = fd_vgg16(*folders)
    itself = fd_vgg16(folders[0], folders[0])
    assert capfd.readouterr() == ("", "")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        perceptual = lpips.LPIPS(net="vgg", verbose=False)
    features = []
    for folder in folders:
        scaled = perceptual.scaling_layer(read(folder) / 127.5 - 1)  # its constants have three digits
        features.append(perceptual.net(scaled).relu5_3.mean(dim=(2, 3)).numpy())
    assert features[0].shape == (COUNT, 512)
    assert distance == pytest.approx(frechet_distance(*features), rel=5e-3)
    assert distance > 1e-3
    assert abs(itself) < 1e-3 * distance


def test_fd_dinov2(folders, dinov2, capfd) -> None:
    distance = fd_dinov2(*folders, model=dinov2)
    itself = fd_dinov2(folders[0], folders[0], model=str(dinov2))
    assert capfd.readouterr() == ("", "")

    def resized(channel: torch.Tensor) -> np.ndarray:
        image = Image.fromarray(channel.float().numpy() / 255)  # Pillow's own bicubic, in floating point
        return np.clip(np.array(image.resize((224, 224), Image.Resampling.BICUBIC)), 0, 1)

    network = Dinov2Model.from_pretrained(dinov2)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = []
    for folder in folders:
        images = torch.stack([torch.from_numpy(np.stack([resized(c) for c in image])) for image in read(folder)])
        with torch.no_grad():
            features.append(network((images - mean) / std).pooler_output.numpy())  # the class token
    assert distance == pytest.approx(frechet_distance(*features), rel=1e-3)
    assert distance > 1e-2
    assert abs(itself) < 1e-3 * distance


# ---- folders ---------------------------------------------------------------------------------------------------------

ALL = [fid_torch_fidelity, fid_clean_fid, fd_vgg16, fd_dinov2]


@pytest.mark.parametrize("function", ALL)
def test_bad_folders(function, folders, tmp_path) -> None:
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    one, other, empty = (save_images(tmp_path / str(n), [image] * n) for n in (1, COUNT - 1, 0))
    for bad in (one, empty, other, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="folder_a and folder_b"):
            function(folders[0], bad)
    with pytest.raises(ValueError, match="folder_a and folder_b"):
        function(one, one)

    mixed = save_images(tmp_path / "mixed", [image] * COUNT)
    Image.fromarray(image).save(mixed / "another.jpg")
    with pytest.raises(ValueError, match=r"folder_b .*another\.jpg"):
        function(folders[0], mixed)
    (mixed / "another.jpg").unlink()
    save_images(mixed / "inner", [image])
    with pytest.raises(ValueError, match="folder_a .*inner"):
        function(mixed, folders[0])


def test_an_unreadable_image_is_no_matter_of_weights(folders, dinov2, tmp_path) -> None:
    broken = save_images(tmp_path / "broken", [np.zeros((32, 32, 3), dtype=np.uint8)] * COUNT)
    (broken / "003.png").write_text("no image")
    weights = tmp_path / "local.pt"
    torch.jit.script(Brightness()).save(weights)
    for function, more in ((fd_dinov2, {"model": dinov2}), (fid_clean_fid, {"weights": weights})):
        with pytest.raises(UnidentifiedImageError, match=r"003\.png"):
            function(folders[0], broken, **more)


def test_images_too_small_for_vgg16(torch_home, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    folder = save_images(tmp_path / "small", [np.zeros((15, 20, 3), dtype=np.uint8)] * 2)
    with pytest.raises(ValueError, match="16 x 16"):
        fd_vgg16(folder, folder)


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ALL)
@pytest.mark.usefixtures("no_network")
def test_no_weights(function, folders, tmp_path, monkeypatch, capfd) -> None:
    if function is fid_clean_fid and Path("/tmp/inception-2015-12-05.pt").exists():
        pytest.skip("clean-fid has its weights here")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    more = {"model": "somebody/no-such-dinov2"} if function is fd_dinov2 else {}
    with pytest.raises(WeightsUnavailable, match="weights") as error:
        function(*folders, **more)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_hub_without_answer_is_given_up_at_once(folders, tmp_path) -> None:
    code = (
        "import sys; from diffae_hub.metrics.frechet import fd_dinov2\n"
        "from diffae_hub.metrics.weights import WeightsUnavailable\n"
        "try: fd_dinov2(*sys.argv[1:])\n"
        "except WeightsUnavailable as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = subprocess.run([sys.executable, "-c", code, *folders], env=environment, capture_output=True, text=True)
    assert "facebook/dinov2-large" in result.stdout and "http://127.0.0.1:9" in result.stdout
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""  # the Hub's client reports each of its attempts here


def test_missing_and_damaged_weights(folders, dinov2, tmp_path) -> None:
    text = tmp_path / "text.pt"
    text.write_text("no weights")
    other = tmp_path / "other.pt"
    torch.save(nn.Linear(2, 2).state_dict(), other)
    for function in (fid_torch_fidelity, fid_clean_fid):
        for weights in (tmp_path / "nowhere.pt", text, other):
            with pytest.raises(WeightsUnavailable):
                function(*folders, weights=weights)

    state = load_file(dinov2 / "model.safetensors")
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "config.json").write_bytes((dinov2 / "config.json").read_bytes())
    for content in ("none", "damaged", "incomplete"):
        if content == "damaged":
            (partial / "model.safetensors").write_text("no weights")
        elif content == "incomplete":
            save_file(dict(list(state.items())[1:]), partial / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(WeightsUnavailable, match="DINOv2"):
            fd_dinov2(*folders, model=partial)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_weights_are_not_unpickled(folders, tmp_path) -> None:
    torch.save({"harmful": Harmful(tmp_path / "touched")}, tmp_path / "weights.pth")
    with pytest.raises(WeightsUnavailable):
        fid_torch_fidelity(*folders, weights=tmp_path / "weights.pth")
    assert not (tmp_path / "touched").exists()
    torch.load(tmp_path / "weights.pth", weights_only=False)  # it would have been
    assert (tmp_path / "touched").exists()
