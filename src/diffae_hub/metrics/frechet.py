"""Fréchet distances of two sets of images (Heusel et al., 2017).

FID is computed by torch-fidelity and by clean-fid, each with its own Inception weights. They resize differently, so
both are reported. Distances on other features, FD-VGG16 and FD-DINOv2, are other figures and must not be called FID.

Each function of `FEATURES` loads a network and returns its features as a function: files of images of one size -> (N,
D), float32, on the CPU. It raises `WeightsUnavailable` if the network's weights are not available.
[`frechet_distance`] compares the features of two sets.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..network import check_hub_answers, hub_requests
from .weights import fetching_weights

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_BATCH_SIZE = 64

Features = Callable[[Sequence[Path]], torch.Tensor]
Device = torch.device | str


def torch_fidelity_features(device: Device = "cpu") -> Features:
    """Returns the 2048 features of torch-fidelity's Inception; images are resized as TensorFlow 1 does."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with fetching_weights("Inception (torch-fidelity)"):
        network = FeatureExtractorInceptionV3("inception", ["2048"])
    network = network.to(device).eval()
    return partial(_features, lambda images: network(images)[0], device)


def clean_fid_features(device: Device = "cpu") -> Features:
    """Returns the 2048 features of clean-fid, in its mode "clean" (bicubic resizing with antialiasing).

    clean-fid keeps its downloaded weights in the system's folder for temporary files.
    """
    from cleanfid.features import build_feature_extractor
    from cleanfid.fid import get_files_features

    device = torch.device(device)
    with fetching_weights("Inception (clean-fid)"):
        extractor = build_feature_extractor("clean", device, use_dataparallel=False)
    options = {"num_workers": 0, "batch_size": _BATCH_SIZE, "device": device, "mode": "clean", "verbose": False}
    return lambda files: torch.from_numpy(get_files_features([str(path) for path in files], extractor, **options))


def vgg16_features(device: Device = "cpu") -> Features:
    """Returns the 512 channels of VGG16's last convolution, each averaged over the image after its ReLU.

    The convolutions are those of LPIPS-VGG (torchvision's ImageNet weights). Images keep their size, at least 16 x 16.
    FD-VGG16 is a relative figure for machines without the Inception weights.
    """
    import torchvision
    from torchvision.transforms.functional import normalize

    with fetching_weights("VGG16"):
        weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
        network = torchvision.models.vgg16(weights=weights, progress=False).features[:30].to(device).eval()

    def features(images: torch.Tensor) -> torch.Tensor:
        if min(images.shape[-2:]) < 16:
            raise ValueError(f"files must be images of at least 16 x 16 pixels, got {tuple(images.shape[-2:])}")
        return network(normalize(images / 255, **_IMAGENET)).mean(dim=(2, 3))

    return partial(_features, features, device)


def dinov2_features(device: Device = "cpu", model: str | Path = "facebook/dinov2-large") -> Features:
    """Returns the class token of a DINOv2 network, for FD-DINOv2 (Stein et al., 2023).

    Images are resized to 224 x 224 pixels (bicubic, with antialiasing) and normalised as for ImageNet. `model` is the
    Hub id or folder of a `transformers.Dinov2Model` with safetensors weights.
    """
    from torchvision.transforms.functional import normalize

    network = _load_dinov2(str(model)).to(device).eval()

    def features(images: torch.Tensor) -> torch.Tensor:
        resized = F.interpolate(images / 255, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        return network(pixel_values=normalize(resized, **_IMAGENET)).last_hidden_state[:, 0]

    return partial(_features, features, device)


FEATURES: dict[str, Callable[..., Features]] = {
    "fid_torch_fidelity": torch_fidelity_features,
    "fid_clean_fid": clean_fid_features,
    "fd_vgg16": vgg16_features,
    "fd_dinov2": dinov2_features,
}


@torch.no_grad()
def _features(network: Callable[[torch.Tensor], torch.Tensor], device: Device, files: Sequence[Path]) -> torch.Tensor:
    """Collects what `network` returns, (B, D), for images (B, 3, H, W), uint8."""
    features = []
    for first in range(0, len(files), _BATCH_SIZE):
        arrays = [np.array(Image.open(path).convert("RGB")) for path in files[first : first + _BATCH_SIZE]]
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        features.append(network(images.to(device)).float().cpu())
    return torch.cat(features)


def frechet_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features (N1, D) and (N2, D), at least two of each, in float64.

    It is 0 for equal features; rounding errors may make it slightly negative. Its bias grows as N falls.
    """
    means, roots = [], []
    for features in (first.double(), second.double()):
        means.append(features.mean(dim=0))
        centred = (features - means[-1]) / (len(features) - 1) ** 0.5
        roots.append(torch.linalg.qr(centred, mode="r").R)  # C = R^T R; as small as the smaller of N and D
    # The eigenvalues of C1 C2 are the squares of the singular values of R1 R2^T.
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    traces = sum(root.square().sum() for root in roots)
    return float((means[0] - means[1]).square().sum() + traces - 2 * shared)


def _load_dinov2(model: str) -> torch.nn.Module:
    """Loads the network from a folder, the Hub client's cache or the Hub, in this order."""
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
            with hub_requests(f"{model} cannot be loaded"):
                check_hub_answers()
                return load(local_files_only=False)
