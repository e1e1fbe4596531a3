"""Checkpoints of a training run: files `checkpoint-<examples>.pt`, written aside and renamed, read weights-only."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import new_file

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

_NAME = re.compile(r"checkpoint-([0-9]+)\.pt")
_CONTENT = ("model", "optimizer", "ema", "losses", "experiment", "data")  # each a dict


def examples_of(path: Path) -> int:
    """The number in a checkpoint's name."""
    return int(_NAME.fullmatch(path.name)[1])


def checkpoint_files(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; what an interrupted write has left is not among them."""
    return sorted((path for path in run_folder.glob("*.pt") if _NAME.fullmatch(path.name)), key=examples_of)


def save_checkpoint(run_folder: Path, examples_seen: int, state: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint, then deletes all but the newest `keep`.

    Args:
        run_folder: Folder of the run.
        examples_seen: Examples trained on; part of the name.
        state: Nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.
        keep: Number of checkpoints to keep, at least 1.

    Raises:
        OSError: If it cannot be written (a full disk); checkpoints written before are then untouched.
    """
    for leftover in run_folder.glob(".checkpoint-*"):  # of a run that was killed while it wrote
        leftover.unlink()
    path = run_folder / f"checkpoint-{examples_seen}.pt"
    with new_file(path) as temporary:
        try:
            torch.save({"examples_seen": examples_seen, **state}, temporary)
        except RuntimeError as error:  # torch's word for a full disk
            raise OSError(f"{path} cannot be written: {error}") from error
    # Newer ones, left by a run that was taken up again from an older checkpoint, may be damaged: they don't count.
    files = checkpoint_files(run_folder)
    for old in files[: max(files.index(path) + 1 - keep, 0)]:
        old.unlink()
    return path


def set_aside_newer(run_folder: Path, examples_seen: int) -> list[Path]:
    """Renames the checkpoints beyond one that a run is taken up again from: they are damaged, or another future's."""
    newer = [path for path in checkpoint_files(run_folder) if examples_of(path) > examples_seen]
    return [path.replace(path.with_name(f"abandoned-{path.name}")) for path in newer]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint back, its tensors to the CPU, from the disk as they are used.

    Raises:
        ValueError: If there is no such file, or it is damaged: it is cut off, a part does not match its checksum (CRC
            32), or it is no state of a training.
    """
    if not path.is_file():
        raise ValueError(
            f"resume_from_checkpoint must be 'latest' or a checkpoint's file (checkpoint-N.pt), got {path}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                raise ValueError(f"{part} does not match its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if odd := [name for name in _CONTENT if not isinstance(state[name], dict)]:
            raise ValueError(f"{odd[0]} is no dictionary")
        state["examples_seen"] + 0
    except Exception as error:  # damaged bytes raise almost anything
        raise ValueError(f"checkpoint {path} is damaged: {' '.join(str(error).split())[:200]}") from error
    return state


def load_latest_checkpoint(
    run_folder: Path, warn: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | tuple[None, None]:
    """The newest checkpoint that is intact, with its path; (None, None) if the run has none yet.

    Args:
        run_folder: Folder of the run.
        warn: Called with one line for each damaged checkpoint that is passed over.

    Raises:
        ValueError: If there are checkpoints and all are damaged, or of version 0.1, which wrote folders.
    """
    files = checkpoint_files(run_folder)
    for path in reversed(files):
        try:
            return path, load_checkpoint(path)
        except ValueError as error:
            warn(f"WARNING: {error}; going back to the checkpoint before it")
    if files:
        raise ValueError(f"resume_from_checkpoint must find an intact checkpoint, but all in {run_folder} are damaged")
    if next(run_folder.glob("checkpoint-*/state.json"), None):
        raise ValueError(
            f"resume_from_checkpoint must find checkpoints of this version, but those in {run_folder} are of "
            "diffae_hub 0.1: finish the run with 0.1, or name another output"
        )
    return None, None


def check_same_experiment(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuses to resume a run under another experiment or seed: it would not be the same run any more.

    It may be longer: `training_examples` may have grown.

    Args:
        saved: The experiment stored in the checkpoint.
        current: The experiment now asked for.

    Raises:
        ValueError: Names what differs.
    """
    if current["training_examples"] >= saved["training_examples"]:
        current = {**current, "training_examples": saved["training_examples"]}
    check_equal(saved, current)


def check_equal(saved: dict[str, Any], current: dict[str, Any], hint: str = "") -> None:
    """Refuses to resume with settings that are not the checkpoint's; ValueError names the first that differs."""
    saved, current = (_flat(json.loads(json.dumps(value))) for value in (saved, current))  # tuples become lists
    for name, value in current.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{name} must be as in the checkpoint when resuming, {saved.get(name)!r}, got {value!r}{hint}"
            )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """`{"decoder": {"dropout": 0.1}}` as `{"decoder.dropout": 0.1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def restore_state_layout(optimizer: torch.optim.Optimizer) -> None:
    """Gives an optimizer's loaded state the memory layout of its parameters.

    Fused optimizers walk a parameter and its averages by address, so that averages in another layout than a
    parameter's (channels_last or not) would silently be applied to the wrong weights.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def restore_averages(ema: EMAModel, state: dict[str, Any]) -> None:
    """Loads averaged weights to the device and memory layout they had; `load_state_dict` alone takes the state's."""
    before = ema.shadow_params
    ema.load_state_dict(state)
    ema.shadow_params = [torch.empty_like(old).copy_(new) for old, new in zip(before, ema.shadow_params, strict=True)]
