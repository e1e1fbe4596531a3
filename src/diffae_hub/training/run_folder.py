"""The plain files of a run's folder: the configuration and the record of figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIGURATION = "configuration.json"
METRICS = "metrics.jsonl"


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name, then renames it."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text)
    temporary.replace(path)


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
    saved, current = (json.loads(json.dumps(value)) for value in (saved, current))  # tuples become lists
    differing = [name for name in current if saved.get(name) != current[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{name} must be as in the checkpoint when resuming, {saved.get(name)!r}, got {current[name]!r}"
        )
