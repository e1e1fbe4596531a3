"""Runs the training script in processes of its own, which can be killed, without importing torch anew for each.

A fork server imports the libraries once; each run is a process forked from it, as real as any other.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "train_two_phase.py"

# About 15,000 parameters: a step takes milliseconds.
TINY_EXPERIMENT = {
    "encoder": {
        "sample_size": 8,
        "in_channels": 1,
        "latent_dim": 8,
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "layers_per_block": 1,
        "attention_resolutions": [],
        "norm_num_groups": 4,
    },
    "decoder": {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "latent_dim": 8,
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "layers_per_block": 1,
        "attention_resolutions": [],
        "norm_num_groups": 4,
        "time_embed_dim": 16,
        "dropout": 0.1,
    },
    "batch_size": 16,
    "training_examples": 512,
    "warmup_examples": 64,
    "learning_rate": 1e-3,
    "horizontal_flip": True,
}


def load_script() -> ModuleType:
    """The training script as a module."""
    specification = importlib.util.spec_from_file_location("train_two_phase", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def write_images(folder: Path, count: int = 40, size: int = 8, seed: int = 0) -> Path:
    """Grayscale PNG files of smooth random patterns."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    for index in range(count):
        a, b, c = rng.uniform(-3, 3, size=3)
        pixels = (127.5 + 127.5 * np.sin(a * x + b * y + c)).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def arguments(dataset: Path, output: Path, *extra: str, **experiment: object) -> list[str]:
    """A command line for a tiny run."""
    output.parent.mkdir(parents=True, exist_ok=True)
    config = output.with_suffix(".json")
    config.write_text(json.dumps({**TINY_EXPERIMENT, **experiment}))
    return [
        "--preset=cifar10-32",
        f"--config={config}",
        f"--dataset={dataset}",
        f"--output_dir={output}",
        "--num_workers=0",
        "--log_every=16",
        "--checkpoint_every=64",
        *extra,
    ]


@dataclass
class Run:
    """A run of the script in its own process group.

    Args:
        process: Its process.
        output: The file that receives stdout and stderr.
    """

    process: BaseProcess
    output: Path

    def wait(self, timeout: float = 900) -> tuple[int, str]:
        """(exit code, what it printed)."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.text()}"
        return self.process.exitcode, self.text()

    def wait_for(self, condition: Callable[[], bool], timeout: float = 900) -> None:
        """Polls as fast as it can; fails if the run ends or takes too long before the condition holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.is_alive(), f"ended before the moment came: {self.text()}"
            assert time.monotonic() < deadline, f"waited for {timeout} s: {self.text()}"

    def text(self) -> str:
        return re.sub(r"[^\n]*\r", "", self.output.read_text())


def _child(argv: list[str], output: str, file_size_limit: int | None) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # what a script started by hand has
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    if file_size_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, resource.RLIM_INFINITY))
    os.environ["ACCELERATE_USE_CPU"] = "true"
    import torch

    torch.set_num_threads(1)
    code = load_script().main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch",
        "accelerate",
        "datasets",
        "diffusers.training_utils",
        "torch.utils.tensorboard",
        "diffae_hub.hub.model_card",
        "diffae_hub.hub.push",
        "diffae_hub.training.configuration",
        "diffae_hub.training.faults",
        "diffae_hub.training.objective",
        "diffae_hub.training.streaming",
        "diffae_hub.training.validation",
    ]
)


def start(argv: list[str], file_size_limit: int | None = None) -> Run:
    """Starts the script. `file_size_limit` makes the disk full for any file beyond that many bytes."""
    output = Path(next(a for a in argv if a.startswith("--output_dir=")).partition("=")[2])
    log = output.parent / f"{output.name}.{time.monotonic_ns()}.log"
    log.touch()
    process = _context.Process(target=_child, args=(argv, str(log), file_size_limit))
    process.start()
    return Run(process, log)


def run(argv: list[str], file_size_limit: int | None = None) -> tuple[int, str]:
    """Runs the script to its end: (exit code, what it printed)."""
    return start(argv, file_size_limit).wait()
