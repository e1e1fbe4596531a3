"""Fréchet distances of image sets (Heusel et al., 2017) between two folders of PNG files.

FID is what torch-fidelity and clean-fid say it is, each through its own function and with its own Inception weights:
they resize differently, and both are reported. The distances on other features, FD-VGG16 and FD-DINOv2, go through
torch-fidelity's interface for feature extractors; they are other figures and must not be called FID.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F

from ..network import check_hub_answers
from .weights import fetching_weights

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".npy", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_VGG16_MINIMUM_SIZE = 16


def fid_torch_fidelity(
    folder_a: Path,
    folder_b: Path,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    weights: Path | None = None,
) -> float:
    """FID by torch-fidelity (2048 features of its Inception; resized as TensorFlow 1 does).

    Args:
        folder_a: PNG files of one size, RGB or grayscale, and no other images; at least two.
        folder_b: As many PNG files.
        batch_size: Images at a time.
        device: "cpu", or a CUDA device; others run on the CPU.
        weights: A state dictionary of torch-fidelity's Inception in place of its own; loaded without running code.

    Returns:
        The distance: 0 for equal features, up to rounding errors, which may make it slightly negative. Its bias grows
        as the number of images falls; below 2049 images the covariances are singular, and it is still a number.

    Raises:
        WeightsUnavailable: If the Inception weights cannot be had.
    """
    if weights is not None:
        with fetching_weights(f"{weights}"):
            torch.load(weights, map_location="cpu", weights_only=True)  # refuses what torch-fidelity would unpickle
    return _torch_fidelity("diffae-hub-inception", folder_a, folder_b, batch_size, device, weights)


def fid_clean_fid(
    folder_a: Path,
    folder_b: Path,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    weights: Path | None = None,
) -> float:
    """FID by clean-fid, in its mode "clean" (bicubic resizing with antialiasing).

    Its weights lie in the system's folder for temporary files once it has fetched them. Arguments, result and errors as
    in [`fid_torch_fidelity`], but for `weights`: a TorchScript file with a module `layers`, images (B, 3, 299, 299) in
    [-1, 1] -> (B, 2048). It is code: give it no file that you do not trust.
    """
    from cleanfid import fid
    from cleanfid.features import build_feature_extractor
    from cleanfid.inception_torchscript import InceptionV3W

    _check_folders(folder_a, folder_b)
    device = torch.device(device)
    with fetching_weights("Inception (clean-fid)" if weights is None else f"{weights}"):
        if weights is None:
            extractor = build_feature_extractor("clean", device, use_dataparallel=False)
        else:
            with TemporaryDirectory() as name:  # it looks for its own file name
                (Path(name) / "inception-2015-12-05.pt").symlink_to(Path(weights).resolve(strict=True))
                extractor = InceptionV3W(name, download=False).to(device)
    value = fid.compute_fid(
        str(Path(folder_a).resolve()),
        str(Path(folder_b).resolve()),
        mode="clean",
        num_workers=0,
        batch_size=batch_size,
        device=device,
        custom_feat_extractor=extractor,
        verbose=False,
    )
    return float(value)


def fd_vgg16(folder_a: Path, folder_b: Path, *, batch_size: int = 64, device: torch.device | str = "cpu") -> float:
    """FD-VGG16: the Fréchet distance of the 512 channels of VGG16's last convolution.

    Each channel is averaged over the image after its ReLU. The convolutions are those of LPIPS-VGG (torchvision's
    ImageNet weights), at the images' own size, at least 16 x 16. A relative figure for machines without the Inception
    weights. Arguments, result and errors as in [`fid_torch_fidelity`].
    """
    return _torch_fidelity("diffae-hub-vgg16", folder_a, folder_b, batch_size, device)


def fd_dinov2(
    folder_a: Path,
    folder_b: Path,
    *,
    model: str | Path = "facebook/dinov2-large",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> float:
    """FD-DINOv2 (Stein et al., 2023): the Fréchet distance of the class token of a DINOv2 network.

    Images are resized to 224 x 224 pixels (bicubic, with antialiasing) and normalised as on ImageNet. Arguments, result
    and errors as in [`fid_torch_fidelity`]; `model` is the Hub id or folder of a `transformers.Dinov2Model` with
    safetensors weights.
    """
    return _torch_fidelity("diffae-hub-dinov2", folder_a, folder_b, batch_size, device, model)


def _check_folders(folder_a: Path, folder_b: Path) -> None:
    """Counts PNG files; refuses other images, which one library would take and the other not."""
    counts = []
    for name, folder in (("folder_a", Path(folder_a)), ("folder_b", Path(folder_b))):
        images = [path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES]
        other = next((path for path in images if path.suffix != ".png" or path.parent != folder), None)
        if other is not None:
            raise ValueError(f"{name} must hold no images but PNG files (*.png) and none in folders, got {other}")
        counts.append(len(images))
    if min(counts) < 2 or counts[0] != counts[1]:
        raise ValueError(
            f"folder_a and folder_b must hold the same number of PNG files, at least 2, got {counts[0]} in {folder_a} "
            f"and {counts[1]} in {folder_b}"
        )


def _torch_fidelity(
    extractor: str,
    folder_a: Path,
    folder_b: Path,
    batch_size: int,
    device: torch.device | str,
    weights: str | Path | None = None,
) -> float:
    import torch_fidelity

    _check_folders(folder_a, folder_b)
    _register_extractors()
    cuda = torch.device(device).type == "cuda"
    with torch.cuda.device(device) if cuda else nullcontext():
        metrics = torch_fidelity.calculate_metrics(
            input1=str(Path(folder_a).resolve()),  # a bare name might be one of its data sets
            input2=str(Path(folder_b).resolve()),
            fid=True,
            feature_extractor=extractor,
            feature_extractor_weights_path=None if weights is None else str(weights),
            batch_size=batch_size,
            cuda=cuda,
            cache=False,
            save_cpu_ram=True,
            samples_find_ext="png",
            verbose=False,
        )
    return float(metrics["frechet_inception_distance"])


def _register_extractors() -> None:
    """Makes our feature extractors known to torch-fidelity, once; they are defined here as its import takes seconds."""
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if "diffae-hub-inception" in FEATURE_EXTRACTORS_REGISTRY:
        return

    class Inception(FeatureExtractorInceptionV3):
        """torch-fidelity's own, but for what happens without weights."""

        def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
            with fetching_weights("Inception (torch-fidelity)"):
                super().__init__(name, features_list, **options)

    class OneFeature(FeatureExtractorBase):
        """Images (B, 3, H, W), uint8 -> features (B, D), float32, by a function that `load` gives."""

        load: Callable[[str | None], torch.nn.Module]

        def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
            super().__init__(name, features_list)
            self.network = type(self).load(options.get("feature_extractor_weights_path"))

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.features(images.float() / 255),)

    class VGG16(OneFeature):
        load = staticmethod(_load_vgg16)

        def features(self, images: torch.Tensor) -> torch.Tensor:
            if min(images.shape[-2:]) < _VGG16_MINIMUM_SIZE:
                raise ValueError(
                    f"folder_a and folder_b must hold images of at least {_VGG16_MINIMUM_SIZE} x {_VGG16_MINIMUM_SIZE} "
                    f"pixels for FD-VGG16, got {tuple(images.shape[-2:])}"
                )
            return self.network(_normalise(images)).mean(dim=(2, 3))

    class DINOv2(OneFeature):
        load = staticmethod(_load_dinov2)

        def features(self, images: torch.Tensor) -> torch.Tensor:
            resized = F.interpolate(images, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
            return self.network(pixel_values=_normalise(resized)).last_hidden_state[:, 0]

    torch_fidelity.register_feature_extractor("diffae-hub-vgg16", VGG16)
    torch_fidelity.register_feature_extractor("diffae-hub-dinov2", DINOv2)
    torch_fidelity.register_feature_extractor("diffae-hub-inception", Inception)


def _normalise(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (images - mean) / std


def _load_vgg16(_: str | None) -> torch.nn.Module:
    """The convolutions of torchvision's VGG16 up to its last ReLU."""
    import torchvision

    with fetching_weights("VGG16"):
        weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
        return torchvision.models.vgg16(weights=weights, progress=False).features[:30]


def _load_dinov2(model: str) -> torch.nn.Module:
    """From a folder, the Hub client's cache or the Hub, in this order."""
    from huggingface_hub import constants
    from transformers import Dinov2Model

    def load(local_files_only: bool) -> torch.nn.Module:
        network, report = Dinov2Model.from_pretrained(
            model, use_safetensors=True, output_loading_info=True, local_files_only=local_files_only
        )
        if report["missing_keys"]:  # transformers leaves them random
            raise OSError(f"{model} lacks {len(report['missing_keys'])} weights of a Dinov2Model")
        return network

    with fetching_weights(f"DINOv2 ({model})"):
        try:
            return load(local_files_only=True)
        except OSError:
            if Path(model).is_dir() or constants.HF_HUB_OFFLINE:
                raise
            check_hub_answers()
            return load(local_files_only=False)
