"""Checkpoints of a training run: a safetensors file, a JSON file and their checksums, written aside and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

_PREFIX = "checkpoint-"
_TENSORS = "state.safetensors"
_STRUCTURE = "state.json"
# In the format of sha256sum, so that `sha256sum -c` checks a folder too. Written last: without it nothing is complete.
_CHECKSUMS = "SHA256SUMS"


def _flatten(value: Any, prefix: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Replaces each tensor in nested containers by its name in `tensors`, so that the rest can be written as JSON."""
    if isinstance(value, torch.Tensor):
        tensors[prefix] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": prefix}
    if isinstance(value, dict):
        # Pairs, because an optimizer's state has integer keys.
        return {"__dict__": [[key, _flatten(item, f"{prefix}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_flatten(item, f"{prefix}.{index}", tensors) for index, item in enumerate(value)]
    return value


def _unflatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {key: _unflatten(item, tensors) for key, item in value["__dict__"]}
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Deletes a checkpoint; it loses its name first, so that a half-deleted one is never taken for a checkpoint."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def checkpoint_folders(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; leftovers of interrupted writes are not among them."""
    folders = [f for f in run_folder.glob(f"{_PREFIX}*") if f.name.removeprefix(_PREFIX).isdigit()]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix(_PREFIX)))


def save_checkpoint(run_folder: Path, examples_seen: int, state: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint under a temporary name, renames it, then deletes all but the newest `keep`.

    Args:
        run_folder: Folder of the run.
        examples_seen: Examples trained on; part of the name.
        state: Nested dicts and lists of tensors, numbers, strings, booleans and None.
        keep: Number of checkpoints to keep, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If it cannot be written (a full disk); checkpoints written before are then untouched.
    """
    folder = run_folder / f"{_PREFIX}{examples_seen}"
    temporary = run_folder / f".{folder.name}.partial"
    for leftover in run_folder.glob(f".{_PREFIX}*"):  # of a run that was killed while it wrote or deleted
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        tensors: dict[str, torch.Tensor] = {}
        structure = _flatten({"examples_seen": examples_seen, **state}, "state", tensors)
        try:
            save_file(tensors, temporary / _TENSORS)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        (temporary / _STRUCTURE).write_text(json.dumps(structure))
        sums = [f"{_sha256(temporary / name)}  {name}\n" for name in (_TENSORS, _STRUCTURE)]
        (temporary / _CHECKSUMS).write_text("".join(sums))
        for path in [*temporary.iterdir(), temporary]:
            _flush_to_disk(path)
        _remove(folder)
        temporary.rename(folder)
        _flush_to_disk(run_folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # Newer ones, left by a run that was taken up again from an older checkpoint, may be damaged: they don't count.
    folders = checkpoint_folders(run_folder)
    for old in folders[: max(folders.index(folder) + 1 - keep, 0)]:
        _remove(old)
    return folder


def set_aside_newer(run_folder: Path, examples_seen: int) -> list[Path]:
    """Renames the checkpoints beyond one that a run is taken up again from: they are damaged, or another future's.

    Returns:
        Their folders, which are no checkpoints of the run any more.
    """
    aside = []
    for folder in checkpoint_folders(run_folder):
        if int(folder.name.removeprefix(_PREFIX)) > examples_seen:
            target = folder.with_name(f"abandoned-{folder.name}")
            _remove(target)
            folder.rename(target)
            aside.append(target)
    return aside


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint back.

    Raises:
        ValueError: If there is no such folder, or it is damaged: a file is missing, truncated, or does not match its
            checksum.
    """
    if not folder.is_dir():
        raise ValueError(f"resume_from_checkpoint must be 'latest' or a checkpoint's folder, got {folder}")
    if checkpoints := checkpoint_folders(folder):
        raise ValueError(
            f"resume_from_checkpoint must be 'latest' or a checkpoint's folder, such as {checkpoints[-1]}, got {folder}"
        )
    try:
        sums = dict(reversed(line.split(maxsplit=1)) for line in (folder / _CHECKSUMS).read_text().splitlines())
        for name in (_TENSORS, _STRUCTURE):
            if _sha256(folder / name) != sums[name]:
                raise ValueError(f"{name} does not match its checksum")
        structure = json.loads((folder / _STRUCTURE).read_text())
        return _unflatten(structure, load_file(folder / _TENSORS))
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"checkpoint {folder} is damaged: {error}") from error


def load_latest_checkpoint(
    run_folder: Path, warn: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | tuple[None, None]:
    """The newest checkpoint that is intact.

    Args:
        run_folder: Folder of the run.
        warn: Called with one line for each damaged checkpoint that is passed over.

    Returns:
        (folder, state), or (None, None) if the run has no checkpoint yet.

    Raises:
        ValueError: If there are checkpoints and all are damaged.
    """
    folders = checkpoint_folders(run_folder)
    for folder in reversed(folders):
        try:
            return folder, load_checkpoint(folder)
        except ValueError as error:
            warn(f"WARNING: {error}; going back to the checkpoint before it")
    if folders:
        raise ValueError(f"resume_from_checkpoint must find an intact checkpoint, but all in {run_folder} are damaged")
    return None, None


def restore_state_layout(optimizer: torch.optim.Optimizer) -> None:
    """Gives an optimizer's loaded state the memory layout of its parameters.

    A checkpoint holds contiguous tensors. Fused optimizers walk a parameter and its averages by address, so that
    averages in another layout than a channels_last parameter's would silently be applied to the wrong weights.
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
