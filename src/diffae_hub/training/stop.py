"""What ends a training run early: a signal, or a loss or a weight that is not finite."""

import math
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from threading import current_thread, main_thread
from types import FrameType
from typing import Self

import torch
from accelerate import Accelerator

from ..data import TrainingError


class StopSignal:
    """Records SIGTERM (the machine will be taken away) and Ctrl-C, so that the loop can save and end by itself.

    A repeated SIGTERM is ignored, because a launcher passes on signals that a scheduler has already sent to its
    processes. A second Ctrl-C has its usual effect, except under a launcher.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    def __enter__(self) -> Self:
        numbers = (signal.SIGTERM, signal.SIGINT) if current_thread() is main_thread() else ()  # others get none
        self.ordinary = {number: signal.signal(number, self.note) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.ordinary.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if self.name is None:
            self.name = signal.Signals(number).name
            with suppress(OSError):  # stderr may be closed
                os.write(2, f"\n{self.name}: finishing this step or validation, then saving the run\n".encode())
        if number == signal.SIGINT and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            signal.signal(number, self.ordinary[number])


class LossMonitor:
    """Averages the losses of steps and stops the run at the first one that is not finite.

    Reading a loss waits for the device. So losses are read together, every `check_every` steps (default: 20, on the
    CPU 1), and the processes agree on stopping then. The error still names the step.
    """

    def __init__(self, accelerator: Accelerator, stop_signal: StopSignal, check_every: int | None = None) -> None:
        self.accelerator, self.stop_signal, self.stopping = accelerator, stop_signal, False
        self.check_every = check_every or (1 if accelerator.device.type == "cpu" else 20)
        self._pending: list[tuple[int, torch.Tensor]] = []
        self._losses: list[float] = []

    def add(self, step: int, loss: torch.Tensor) -> None:
        """Adds this process's share of the loss, (), of optimizer step 1, 2, ..."""
        self._pending.append((step, loss.detach()))
        if len(self._pending) >= self.check_every:
            self.check()
        elif self.accelerator.num_processes == 1:
            self.stopping = self.stop_signal.name is not None

    def check(self) -> None:
        """Reads the losses added since the last check. All processes must call it at the same step."""
        stop = torch.tensor(float(self.stop_signal.name is not None), device=self.accelerator.device)
        values = torch.stack([*(loss.float() for _, loss in self._pending), stop])
        *losses, stop = self.accelerator.reduce(values, "sum").tolist()
        self.stopping = stop > 0
        for (step, _), loss in zip(self._pending, losses, strict=True):
            if not math.isfinite(loss):
                raise TrainingError(f"the loss was {loss} at step {step}")
        self._losses += losses
        self._pending = []

    def mean(self) -> float:
        """Returns the mean loss of the steps since the last call, after a check."""
        self.check()
        mean = sum(self._losses) / len(self._losses)
        self._losses = []
        return mean


def check_finite_weights(parameters: Iterable[torch.Tensor], examples_seen: int) -> None:
    """Raises TrainingError if a weight is NaN or infinite: such weights must not become a checkpoint."""
    norms = torch._foreach_norm([parameter.detach() for parameter in parameters], ord=float("inf"))
    if not bool(torch.isfinite(torch.stack(norms)).all()):
        raise TrainingError(f"a weight was not finite after {examples_seen} examples")
