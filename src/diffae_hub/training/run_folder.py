"""A run's folder: whose it is, and its record of figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..data.errors import TrainingError
from ..files import write_text

CONFIGURATION = "configuration.json"
METRICS = "metrics.jsonl"
_LOCK = ".lock"
# For a run that was told to end and saves, or the loader's processes of one that was killed, which have its lock, too.
_LOCK_SECONDS = 30.0


@contextmanager
def own_run_folder(run_folder: Path) -> Iterator[Callable[[], None]]:
    """Makes the folder and keeps other runs out of it until this one ends, however it ends.

    Waits for a run that is about to end. A folder that was made here is removed if the body leaves it empty. The body
    gets a function that raises TrainingError if the lock was deleted meanwhile, since then another run may be there.

    Raises:
        ValueError: If another run goes on there.
    """
    path = run_folder / _LOCK
    lock = FileLock(path, timeout=_LOCK_SECONDS)
    while True:
        made = not run_folder.exists()
        run_folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
            number = path.stat().st_ino
            break
        except FileNotFoundError:
            lock.release()
            continue  # the run that this one waited for has removed its folder
        except Timeout as error:
            raise ValueError(f"output must not be the folder of a run that goes on, got {run_folder}") from error

    def check_lock() -> None:
        if not path.exists() or path.stat().st_ino != number:
            raise TrainingError(f"{path} was deleted, so that another run may write to its folder; this one ends")

    try:
        yield check_lock
    finally:
        with suppress(OSError):  # what ended the body says more
            if [entry.name for entry in run_folder.iterdir()] == [_LOCK]:
                path.unlink()
                if made:
                    run_folder.rmdir()
        lock.release()


def append_metrics(run_folder: Path, record: dict[str, Any]) -> None:
    """Adds one line to the run's `metrics.jsonl`."""
    with (run_folder / METRICS).open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`. Lines that are none, as one that was cut off by a kill, are passed over."""
    path = run_folder / METRICS
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("examples"), int):
                records.append(record)
    return records


def is_validated(run_folder: Path, examples_seen: int) -> bool:
    """Whether the run has figures of a validation after that many examples."""
    return any(
        record["examples"] == examples_seen and any(name.startswith("psnr_") for name in record)
        for record in read_metrics(run_folder)
    )


def rewind_metrics(run_folder: Path, examples_seen: int) -> None:
    """Drops what was recorded after a checkpoint, which a resumed run records again."""
    kept = [record for record in read_metrics(run_folder) if record["examples"] <= examples_seen]
    write_text(run_folder / METRICS, "".join(json.dumps(record) + "\n" for record in kept))
