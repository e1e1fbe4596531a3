"""What ends a run early: signals and losses that are not finite."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from diffae_hub.data import TrainingError
from diffae_hub.training.stop import LossMonitor, StopSignal

from .runner import SECONDS, arguments


def send(*names: str) -> None:
    for name in names:
        os.kill(os.getpid(), signal.Signals[name])


def test_repeated_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell runs the tests
    try:
        with StopSignal() as stop:
            send("SIGTERM", "SIGTERM", "SIGINT")
        assert stop.name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt), StopSignal():
            send("SIGINT", "SIGINT")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with StopSignal() as stop:
            send("SIGINT", "SIGINT", "SIGTERM")  # a launcher passes a Ctrl-C on once more
        assert stop.name == "SIGINT"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, ordinary)


def test_losses_that_are_looked_at_together(accelerator: Accelerator) -> None:
    """As on an accelerator: the error still names the step, and the mean covers the steps since the last mean."""
    with StopSignal() as stop:
        monitor = LossMonitor(accelerator, stop, check_every=3)
        for step, loss in enumerate((1.0, 2.0, 6.0), start=1):
            monitor.add(step, torch.tensor(loss))
        assert monitor.mean() == 3.0
        monitor.add(4, torch.tensor(10.0))
        assert monitor.mean() == 10.0
        monitor.add(5, torch.tensor(float("nan")))
        send("SIGTERM")
        monitor.add(6, torch.tensor(1.0))
        assert monitor.stopping, "one process need not wait for the others"
        with pytest.raises(TrainingError, match="step 5"):
            monitor.add(7, torch.tensor(1.0))


# Trains; in the third step comes Ctrl-C, twice.
DISTURBED = """
import os, signal, sys
from diffae_hub.cli.main import main
from diffae_hub.training import trainer
loss, steps = trainer.denoising_loss, []

def disturbed(*inputs):
    steps.append(None)
    for _ in range(2 if len(steps) == 3 else 0):
        os.kill(os.getpid(), signal.SIGINT)
    return loss(*inputs)

trainer.denoising_loss = disturbed
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell runs the tests in the background
sys.exit(main(["train", *sys.argv[1:]]))
"""


def test_the_loaders_processes_end_with_the_run(image_folder: Path, tmp_path: Path) -> None:
    """They ignore SIGTERM, which Python sends them at its exit before it waits for them."""
    command = [sys.executable, "-c", DISTURBED, *arguments(image_folder, tmp_path / "run"), "--num-workers=1"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert process.returncode in (-signal.SIGINT, 130), process.stderr
