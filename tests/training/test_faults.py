"""Signals, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from diffae_hub.training.faults import StopSignal
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
        ("SIGTERM,SIGTERM,SIGTERM", "1", "noted SIGTERM", -signal.SIGTERM),  # in the end by the one after the block
        ("SIGTERM,SIGINT", "1", "noted SIGTERM", -signal.SIGTERM),
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
