"""Checkpoints of a training run: files `checkpoint-<examples>.pt`, written aside, then renamed; read weights-only."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..files import new_file

_NAME = re.compile(r"checkpoint-([0-9]+)\.pt")


def examples_of(path: Path) -> int:
    """Returns the number of examples in a checkpoint's name."""
    return int(_NAME.fullmatch(path.name)[1])


def checkpoint_files(run_folder: Path) -> list[Path]:
    """Returns the checkpoints of a run, oldest first, without the leftovers of interrupted writes."""
    return sorted((path for path in run_folder.glob("*.pt") if _NAME.fullmatch(path.name)), key=examples_of)


def save_checkpoint(run_folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Writes the state of a run as a checkpoint, then deletes all checkpoints except the newest `keep`."""
    path = run_folder / f"checkpoint-{state['examples_seen']}.pt"
    for leftover in run_folder.glob(".checkpoint-*"):  # from a run that was killed while writing
        leftover.unlink()
    with new_file(path) as temporary:
        torch.save(state, temporary)
    for old in checkpoint_files(run_folder)[:-keep]:
        old.unlink()
    return path


def set_aside_newer(run_folder: Path, examples_seen: int) -> list[Path]:
    """Renames the checkpoints that are newer than the resumed one: they are damaged, or no longer the run's."""
    newer = [path for path in checkpoint_files(run_folder) if examples_of(path) > examples_seen]
    return [path.replace(path.with_name(f"abandoned-{path.name}")) for path in newer]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint to the CPU. Tensors are read from the disk when they are used.

    Raises ValueError if the file does not exist, is cut off or incomplete, or if a part does not match its checksum
    (CRC 32).
    """
    if not path.is_file():
        raise ValueError(f"resume_from_checkpoint must be 'latest' or a checkpoint file, got {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                raise ValueError(f"{part} does not match its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if state["examples_seen"] < 1 or not {"model", "optimizer", "ema", "scaler", "experiment", "data"} <= {*state}:
            raise ValueError("parts of the state are missing")
        return state
    except Exception as error:  # damaged bytes raise almost anything
        raise ValueError(f"checkpoint {path} is damaged: {' '.join(str(error).split())[:200]}") from error


def load_latest_checkpoint(run_folder: Path, report: Callable[[str], None]) -> dict[str, Any] | None:
    """Loads the newest intact checkpoint. Returns None if there is none yet; raises ValueError if all are damaged."""
    files = checkpoint_files(run_folder)
    for path in reversed(files):
        try:
            state = load_checkpoint(path)
        except ValueError as error:
            report(f"WARNING: {error}; going back to the checkpoint before it")
        else:
            report(f"resumed from {path} at {state['examples_seen']} examples")
            return state
    if files:
        raise ValueError(f"resume_from_checkpoint must find an intact checkpoint, but all in {run_folder} are damaged")
    return None


def check_equal(saved: dict[str, Any], current: dict[str, Any], hint: str = "", parent: str = "") -> None:
    """Raises ValueError if settings differ from the checkpoint's; the message names the first that differs.

    A run may be made longer: `training_examples` may be more than the checkpoint's.
    """
    saved, current = (json.loads(json.dumps(settings)) for settings in (saved, current))  # tuples become lists
    for name, value in current.items():
        if isinstance(value, dict):
            check_equal(saved.get(name) or {}, value, hint, f"{name}.")
        elif saved.get(name) != value and not (name == "training_examples" and value > saved[name]):
            raise ValueError(
                f"{parent}{name} must be {saved.get(name)!r}, as in the checkpoint to resume, got {value!r}{hint}"
            )
