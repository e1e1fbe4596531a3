"""What ends a training run early: a signal, or a loss or a weight that is not finite."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING

import torch

from ..data.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator


class StopSignal:
    """Notes SIGTERM (a machine that is taken away) and Ctrl-C, so that the loop can save and end by itself.

    A repeated SIGTERM changes nothing: a launcher passes on to its processes what a scheduler has sent to them already.
    A second Ctrl-C has its ordinary effect, except under a launcher.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._ordinary = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self._ordinary:
            signal.signal(number, self._note)

    def __enter__(self) -> StopSignal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        if number == signal.SIGINT and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            signal.signal(number, self._ordinary[number])

    def restore(self) -> None:
        """Gives the signals back their ordinary effect."""
        for number, handler in self._ordinary.items():
            signal.signal(number, handler)


class LossMonitor:
    """Averages the losses of steps and stops the run at the first that is not finite.

    Looking at a loss waits for the device. On an accelerator the losses are therefore looked at together, every
    `check_every` steps; the message still names the step.

    Args:
        accelerator: Gives the number of processes; the loss of a step is the sum of their shares.
        stop_signal: Agreed on between processes when the losses are.
        check_every: Steps between looks; None for 1 on the CPU and 20 elsewhere.
    """

    def __init__(self, accelerator: Accelerator, stop_signal: StopSignal, check_every: int | None = None) -> None:
        self.accelerator = accelerator
        self.stop_signal = stop_signal
        self.check_every = check_every or (1 if accelerator.device.type == "cpu" else 20)
        self.stopping = False
        self._pending: list[tuple[int, int, torch.Tensor]] = []
        self._sum, self._count = 0.0, 0

    def add(self, step: int, examples_seen: int, loss: torch.Tensor) -> None:
        """Notes this process's share of the loss, (), of optimizer step 1, 2, ..., after `examples_seen` examples.

        Raises:
            TrainingError: If a loss was not finite.
        """
        self._pending.append((step, examples_seen, loss.detach()))
        if len(self._pending) >= self.check_every:
            self.check()
        elif self.accelerator.num_processes == 1:
            self.stopping = self.stop_signal.name is not None

    def check(self) -> None:
        """Looks at the losses noted since the last time. All processes must call it at the same step.

        Raises:
            TrainingError: If one is not finite; the message has the step and the loss.
        """
        stop = torch.tensor(float(self.stop_signal.name is not None), device=self.accelerator.device)
        values = torch.stack([*(loss.float() for *_, loss in self._pending), stop])
        *losses, stop = self.accelerator.reduce(values, "sum").tolist()
        self.stopping = stop > 0
        for (step, examples_seen, _), loss in zip(self._pending, losses, strict=True):
            if not math.isfinite(loss):
                raise TrainingError(f"the loss was {loss} at step {step} ({examples_seen} examples)")
        self._sum, self._count = self._sum + sum(losses), self._count + len(losses)
        self._pending = []

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs for the mean that this one would have had: of the losses that were looked at."""
        return {"sum": self._sum, "count": self._count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from [`state_dict`]."""
        self._sum, self._count = state["sum"], state["count"]

    def mean(self) -> float:
        """The mean loss of the steps since the last call; NaN if there were none."""
        mean = self._sum / self._count if self._count else math.nan
        self._sum, self._count = 0.0, 0
        return mean


def check_finite_weights(parameters: Iterable[torch.Tensor], examples_seen: int) -> None:
    """Raises TrainingError if a weight is NaN or infinite: such weights must not become a checkpoint."""
    norms = torch._foreach_norm([parameter.detach() for parameter in parameters], ord=float("inf"))
    if not bool(torch.isfinite(torch.stack(norms)).all()):
        raise TrainingError(f"a weight was not finite after {examples_seen} examples")
