"""Signals, in a process of their own; losses that are not finite."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from diffae_hub.data.errors import TrainingError
from diffae_hub.training.stop import LossMonitor, StopSignal

from .runner import SECONDS, arguments

PROGRAM = """
import os, signal, sys
from diffae_hub.training.stop import StopSignal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell runs the tests in the background
with StopSignal() as stop:
    for name in sys.argv[1].split(","):
        os.kill(os.getpid(), signal.Signals[name])
    print("noted", stop.name)
os.kill(os.getpid(), signal.SIGTERM)
print("not reached")
"""


@pytest.mark.parametrize(
    ("signals", "world_size", "output", "code"),
    [
        ("SIGTERM,SIGTERM,SIGINT", "1", "noted SIGTERM", -signal.SIGTERM),  # in the end by the one after the block
        ("SIGINT", "1", "noted SIGINT", -signal.SIGTERM),
        ("SIGINT,SIGINT", "1", "", -signal.SIGINT),
        ("SIGINT,SIGINT,SIGTERM", "2", "noted SIGINT", -signal.SIGTERM),  # a launcher passes a Ctrl-C on once more
    ],
)
def test_repeated_signals(signals: str, world_size: str, output: str, code: int) -> None:
    result = subprocess.run(
        [sys.executable, "-u", "-c", PROGRAM, signals],
        env={**os.environ, "WORLD_SIZE": world_size},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == output, result.stderr
    assert result.returncode == code


def test_losses_that_are_looked_at_together() -> None:
    """As on an accelerator: the step is named all the same, the mean is over the steps since it was asked for."""
    with StopSignal() as stop:
        monitor = LossMonitor(Accelerator(cpu=True), stop, check_every=3)
        for step, loss in enumerate((1.0, 2.0, 6.0, 10.0), start=1):
            monitor.add(step, 16 * step, torch.tensor(loss))
        assert monitor.mean() == 3.0  # the fourth is not looked at yet
        monitor.check()
        assert monitor.mean() == 10.0
        monitor.add(5, 80, torch.tensor(float("nan")))
        os.kill(os.getpid(), signal.SIGTERM)
        monitor.add(6, 96, torch.tensor(1.0))
        assert monitor.stopping, "one process need not wait for the others"
        with pytest.raises(TrainingError, match="step 5"):
            monitor.add(7, 112, torch.tensor(1.0))


# Trains; what a line of ours does in the third step.
DISTURBED = """
import os, signal, sys
from diffae_hub.cli.main import main
from diffae_hub.training import trainer
loss, steps = trainer.denoising_loss, []

def disturbed(*inputs):
    steps.append(None)
    if len(steps) == 3:
        {what}
    return loss(*inputs)

trainer.denoising_loss = disturbed
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell runs the tests in the background
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(
    ("what", "codes"),
    [
        ("raise RuntimeError('out of memory')", (1,)),  # an error that nobody foresaw
        ("[os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]", (-signal.SIGINT, 130)),  # Ctrl-C twice
    ],
)
def test_the_loaders_processes_end_with_the_run(
    image_folder: Path, tmp_path: Path, what: str, codes: tuple[int, ...]
) -> None:
    """They ignore SIGTERM, the signal by which Python's exit would end them before it waits for them."""
    driver = tmp_path / "driver.py"
    driver.write_text(DISTURBED.format(what=what))
    process = subprocess.run(
        [sys.executable, str(driver), *arguments(image_folder, tmp_path / "run"), "--num-workers=1"],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert process.returncode in codes, process.stderr
