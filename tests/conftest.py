"""Fixtures shared by all tests: tiny real components with random, non-zero weights."""

import os

# Before torch is imported: the suite must not reach for a network, and tiny models run fastest on few threads.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffae_hub import ConditionedUNet2DModel, DiffusionAutoencoderPipeline, SemanticEncoderModel, VPDDIMScheduler

from .hub_server import client, hub, session_hub  # noqa: F401 - fixtures

TINY = {"sample_size": 16, "latent_dim": 8, "base_channels": 8, "channel_multipliers": (1, 2)}
TINY |= {"layers_per_block": 1, "attention_resolutions": (8,), "norm_num_groups": 4}
SLOW_FIRST = ("test_end_to_end_digits.py", "test_guides.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with one long test begin, so that no process ends long after the other."""
    items.sort(key=lambda item: item.path.name not in SLOW_FIRST)


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter a random value, the zero-initialised ones too, so that outputs depend on all inputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 1.0 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale * 0.5)
    return module.eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def rng() -> torch.Generator:
    return seeded()


@pytest.fixture
def images(rng: torch.Generator) -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=rng)


def make_tiny_pipeline(channels: int = 3, **options: object) -> DiffusionAutoencoderPipeline:
    options = TINY | {"in_channels": channels} | options
    torch.manual_seed(0)
    encoder = randomize(SemanticEncoderModel(**options), seed=1)
    torch.manual_seed(0)
    more = {"out_channels": channels, "time_embed_dim": 16, "latent_scale_shift": True}
    decoder = randomize(ConditionedUNet2DModel(**options, **more), seed=2)
    pipeline = DiffusionAutoencoderPipeline(encoder=encoder, decoder=decoder, scheduler=VPDDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_classes(folder: Path, count: int, size: int = 16, **levels: int) -> Path:
    """A folder of noisy pictures per name, around its level of 0 .. 255."""
    rng = np.random.default_rng(0)
    for name, level in levels.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = (level + rng.normal(0, 25, (size, size, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def tiny_pipeline() -> DiffusionAutoencoderPipeline:
    return make_tiny_pipeline()


@pytest.fixture
def tiny_encoder(tiny_pipeline: DiffusionAutoencoderPipeline) -> SemanticEncoderModel:
    return tiny_pipeline.encoder


@pytest.fixture
def tiny_decoder(tiny_pipeline: DiffusionAutoencoderPipeline) -> ConditionedUNet2DModel:
    return tiny_pipeline.decoder


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a command that must be refused, with exit code 2, and gives its one line on stderr."""
    from diffae_hub.cli.main import main

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        out, line = capsys.readouterr()
        assert out == "" or words[0] == "train"
        assert line.count("\n") == 1, line
        assert line[:-1].isprintable()
        return line

    return run


# ---- evaluation ---------------------------------------------------------------------------------------------------

CHECKPOINTS = {"alexnet": "alexnet-owt-7be5be79.pth", "vgg16": "vgg16-397923af.pth"}  # torchvision's names


def pattern(rng: np.random.Generator, brightness: float, size: int = 16) -> Image.Image:
    y, x = np.mgrid[:size, :size] / size
    channels = [np.sin(rng.uniform(-3, 3) * x + rng.uniform(-3, 3) * y) * 0.2 + brightness for _ in range(3)]
    return Image.fromarray((np.stack(channels, axis=-1).clip(0, 1) * 255).round().astype(np.uint8))


def write_parquet(path: Path, count: int, seed: int) -> str:
    """Images whose label says whether they are dark (0) or bright (1)."""
    import datasets

    rng, labels = np.random.default_rng(seed), [index % 2 for index in range(count)]
    columns = {"image": [pattern(rng, 0.3 + 0.4 * label) for label in labels], "label": labels}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "bright"])}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)
    return str(path)


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random AlexNet and VGG16 where torchvision looks for its weights; the classifiers are zeros, a few bytes."""
    import torchvision

    home = tmp_path_factory.mktemp("torch_home")
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for seed, (network, name) in enumerate(CHECKPOINTS.items()):
        generator, state = torch.Generator().manual_seed(seed), {}
        with torch.device("meta"):
            tensors = getattr(torchvision.models, network)().state_dict()
        for key, tensor in tensors.items():
            if key.startswith("classifier"):
                state[key] = torch.zeros(1).expand(tensor.shape)
            else:
                scale = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else 0.1
                state[key] = torch.randn(tensor.shape, generator=generator) * scale
        torch.save(state, folder / name)
    return home


@pytest.fixture(scope="session")
def test_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_parquet(tmp_path_factory.mktemp("images") / "test.parquet", 11, seed=1)


@pytest.fixture
def model(tiny_pipeline, tmp_path: Path) -> str:
    folder = tmp_path / "model"
    tiny_pipeline.save_pretrained(folder)
    return str(folder)


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 grayscale PNG files of 8 x 8 pixels."""
    from .training.runner import write_images

    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For runs in this process, which otherwise have the precision of the one before."""
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, and very slow where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
