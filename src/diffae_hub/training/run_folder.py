"""A run's folder: whose it is, and its plain files, the configuration and the record of figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..data.sources import local_path
from ..files import write_text

if TYPE_CHECKING:
    from datasets import IterableDataset

CONFIGURATION = "configuration.json"
METRICS = "metrics.jsonl"
_LOCK = ".lock"
# For a run that was told to end and saves, or the loader's processes of one that was killed, which have its lock, too.
_LOCK_SECONDS = 30.0


@contextmanager
def own_run_folder(run_folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other runs out of it until this one ends, however it ends.

    Waits for a run that is about to end. A folder that was made here is removed if the body leaves it empty.

    Raises:
        ValueError: If another run goes on there.
    """
    lock = FileLock(run_folder / _LOCK, timeout=_LOCK_SECONDS)
    while True:
        made = not run_folder.exists()
        run_folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
            break
        except FileNotFoundError:
            continue  # the run that this one waited for has removed its folder
        except Timeout as error:
            raise ValueError(f"output_dir must not be another run's that goes on, got {run_folder}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # what ended the body says more
            if [path.name for path in run_folder.iterdir()] == [_LOCK]:
                (run_folder / _LOCK).unlink()
                if made:
                    run_folder.rmdir()
        lock.release()


def append_metrics(run_folder: Path, record: dict[str, Any]) -> None:
    """Adds one line to the run's `metrics.jsonl`."""
    with (run_folder / METRICS).open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`; a last line that was cut off by a kill is left out."""
    path = run_folder / METRICS
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
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


def check_same_experiment(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuses to resume a run under another experiment or seed: it would not be the same run any more.

    Args:
        saved: The experiment stored in the checkpoint.
        current: The experiment now asked for.

    Raises:
        ValueError: Names what differs.
    """
    saved, current = (_flat(json.loads(json.dumps(value))) for value in (saved, current))  # tuples become lists
    differing = [name for name in current if saved.get(name) != current[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{name} must be as in the checkpoint when resuming, {saved.get(name)!r}, got {current[name]!r}"
        )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """`{"decoder": {"dropout": 0.1}}` as `{"decoder.dropout": 0.1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def describe_data(
    dataset: str, split: str, image_column: str, rows: Sized | IterableDataset, shuffle_buffer: int | None
) -> dict[str, Any]:
    """What [`check_same_data`] compares.

    Args:
        dataset: Path or name.
        split: Its split.
        image_column: The column that holds the images.
        rows: The opened data set.
        shuffle_buffer: Images shuffled together when streaming; None for random access.
    """
    streaming, path = shuffle_buffer is not None, local_path(dataset)
    return {
        "dataset": str(path.resolve()) if path.exists() else dataset,
        "split": split,
        "image_column": image_column,
        "streaming": streaming,
        "shuffle_buffer": shuffle_buffer,
        "num_images": None if streaming else len(rows),
        "num_shards": rows.num_shards if streaming else None,
    }


def check_same_data(saved: dict[str, Any], current: dict[str, Any], warn: Callable[[str], None]) -> None:
    """Refuses to resume a run on other data. The data set may have moved: another `dataset` is only warned of.

    Args:
        saved: The data stored in the checkpoint: `dataset`, and what must be equal.
        current: The data now asked for.
        warn: Called with one line if `dataset` differs.

    Raises:
        ValueError: Names what differs.
    """
    check_same_experiment(*({**data, "dataset": None} for data in (saved, current)))
    if saved["dataset"] != current["dataset"]:
        warn(
            f"WARNING: the checkpoint was trained on {saved['dataset']}, this run goes on with {current['dataset']}: "
            "both must hold the same images"
        )
