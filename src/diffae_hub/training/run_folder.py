"""A run's folder: whose it is, and its record of figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..files import read_json_lines, write_text

CONFIGURATION = "configuration.json"
METRICS = "metrics.jsonl"
_LOCK = ".lock"
# For a run that was told to end and saves, or the loader's processes of one that was killed, which have its lock, too.
_LOCK_SECONDS = 30.0


@contextmanager
def own_run_folder(run_folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other runs out of it; waits for one that ends. Left empty, it is removed."""
    run_folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_folder / _LOCK, timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"output must not be the folder of a run that goes on, got {run_folder}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # it is the current folder, or a link
            if [entry.name for entry in run_folder.iterdir()] == [_LOCK]:
                (run_folder / _LOCK).unlink()
                run_folder.rmdir()
        lock.release()


def rewind_metrics(run_folder: Path, examples_seen: int) -> None:
    """Drops what was recorded after a checkpoint, which a resumed run records again."""
    kept = [record for record in read_json_lines(run_folder / METRICS) if record["examples"] <= examples_seen]
    write_text(run_folder / METRICS, "".join(json.dumps(record) + "\n" for record in kept))
