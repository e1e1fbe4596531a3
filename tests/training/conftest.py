"""Fixtures of the training's tests."""

from pathlib import Path

import pytest
from accelerate import Accelerator

from .runner import arguments, run


@pytest.fixture
def accelerator(on_cpu: None) -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="session")
def every_step(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with a checkpoint of each. Phase 1 ends after step 2, the warm-up after step 4."""
    folder = tmp_path_factory.mktemp("every_step") / "run"
    flags = ("--checkpoint-every=16", "--keep-checkpoints=100", "--report-to=tensorboard", "--hub-license=cc-by-4.0")
    flags += ("--more-ema-decays=0.25",)
    validation = (f"--validation-dataset={image_folder}", "--validation-every=32", "--validation-steps=2")
    run(arguments(image_folder, folder, *flags, *validation, training_examples=128, ema_decay=0.5))
    return folder
