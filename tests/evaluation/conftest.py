"""A data set of smooth patterns with labels, and a saved tiny model, for the evaluation's own tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

CHECKPOINTS = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}  # torchvision's names
TORCHVISION = {"alex": "alexnet", "vgg": "vgg16"}


def pattern(rng: np.random.Generator, brightness: float) -> Image.Image:
    y, x = np.mgrid[:16, :16] / 16
    channels = [np.sin(rng.uniform(-3, 3) * x + rng.uniform(-3, 3) * y) * 0.2 + brightness for _ in range(3)]
    return Image.fromarray((np.stack(channels, axis=-1).clip(0, 1) * 255).round().astype(np.uint8))


def write_parquet(path: Path, count: int, seed: int) -> str:
    """Images whose label says whether they are dark (0) or bright (1)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    images, labels = [], []
    for index in range(count):
        buffer = io.BytesIO()
        pattern(rng, 0.3 + 0.4 * (index % 2)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
        labels.append(index % 2)
    pq.write_table(pa.table({"image": images, "label": labels}), path)
    return str(path)


def save_trunks(torch_home: Path) -> Path:
    """Random AlexNet and VGG16 where torchvision looks for its weights; the classifiers are zeros, a few bytes."""
    import torchvision

    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for number, (network, name) in enumerate(CHECKPOINTS.items()):
        generator = torch.Generator().manual_seed(number)
        with torch.device("meta"):
            shapes = {
                key: value.shape
                for key, value in getattr(torchvision.models, TORCHVISION[network])().state_dict().items()
            }
        state = {}
        for key, shape in shapes.items():
            if key.startswith("classifier"):
                state[key] = torch.zeros(1).expand(shape)
            elif len(shape) == 4:
                state[key] = torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
            else:
                state[key] = 0.1 * torch.randn(shape, generator=generator)
        torch.save(state, folder / name)
    return torch_home


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trunks(tmp_path_factory.mktemp("torch_home"))


@pytest.fixture
def test_images(tmp_path: Path) -> str:
    return write_parquet(tmp_path / "test.parquet", 11, seed=1)


@pytest.fixture
def train_images(tmp_path: Path) -> str:
    return write_parquet(tmp_path / "train.parquet", 40, seed=0)


@pytest.fixture
def model(tiny_pipeline, tmp_path: Path) -> str:
    folder = tmp_path / "model"
    tiny_pipeline.save_pretrained(folder)
    return str(folder)
