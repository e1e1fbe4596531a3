"""The folder of a run: a lock, so that it belongs to one run at a time, and the record of figures."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..files import read_json_lines, write_text

CONFIGURATION = "configuration.json"
METRICS = "metrics.jsonl"
_LOCK = ".lock"
# Time for a stopping run to save, or for the loader's processes of a killed run to end: they hold its lock, too.
_LOCK_SECONDS = 30.0


@contextmanager
def own_run_folder(run_folder: Path) -> Iterator[None]:
    """Makes and locks the folder, after waiting for a run that is ending there. Removes it if it stays empty."""
    run_folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_folder / _LOCK, timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"output must not be the folder of a running training, got {run_folder}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # it is the current folder, or a link
            if [entry.name for entry in run_folder.iterdir()] == [_LOCK]:
                (run_folder / _LOCK).unlink()
                run_folder.rmdir()
        lock.release()


def rewind_metrics(run_folder: Path, examples_seen: int) -> None:
    """Drops the records after a checkpoint, because a resumed run makes them again."""
    kept = [record for record in read_json_lines(run_folder / METRICS) if record["examples"] <= examples_seen]
    write_text(run_folder / METRICS, "".join(json.dumps(record) + "\n" for record in kept))
