"""How long the stages of an evaluation take."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import write_text


class StageClock:
    """Seconds and images per second of the stages, over all runs into a folder."""

    class Measured:
        """What the block that is measured says of itself: how many images it worked on."""

        images = 0

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.timings: dict[str, dict[str, float]] = {}
        if path is not None and path.is_file():
            self.timings = json.loads(path.read_text())

    @contextmanager
    def measure(self, stage: str) -> Iterator[Measured]:
        """Times a block; it counts only if the block sets `images`."""
        measured, started = self.Measured(), time.monotonic()
        yield measured
        if not measured.images:
            return  # everything was there already
        before = self.timings.get(stage, {"seconds": 0.0, "images": 0})
        seconds, images = before["seconds"] + time.monotonic() - started, before["images"] + measured.images
        self.timings[stage] = {"seconds": seconds, "images": images, "images_per_second": images / seconds}
        if self._path is not None:
            write_text(self._path, json.dumps(self.timings, indent=2) + "\n")
