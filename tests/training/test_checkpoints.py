"""Checkpoints come back as written, damage is found, and older ones stay until the newer one is complete."""

import pickle
from pathlib import Path

import pytest
import torch

from diffae_hub.training.checkpoints import (
    check_equal,
    checkpoint_files,
    load_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
    set_aside_newer,
)

STATE = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "scalar": torch.tensor(1.5, dtype=torch.float64)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
}
STATE |= {"experiment": {"name": "text", "nothing": None}, "ema": {}, "scaler": None, "data": {}}


def save(folder: Path, examples: int, keep: int = 9, **more: object) -> Path:
    return save_checkpoint(folder, {"examples_seen": examples, **STATE, **more}, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_read_from_the_disk_outlives_the_file(tmp_path: Path) -> None:
    """A resumed run deletes the checkpoint that it came from, and changes its tensors in place."""
    path = save(tmp_path, 128)
    before, state = path.read_bytes(), load_checkpoint(path)
    assert (path.name, state["examples_seen"]) == ("checkpoint-128.pt", 128)
    assert state["model"]["scalar"].dtype == torch.float64
    assert (state["optimizer"], state["experiment"]) == (STATE["optimizer"], STATE["experiment"])
    state["model"]["weight"] += 1
    assert path.read_bytes() == before
    path.unlink()
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"] + 1)


def test_keeps_the_newest(tmp_path: Path) -> None:
    assert load_latest_checkpoint(tmp_path, pytest.fail) is None
    for name in ("checkpoint-²", "checkpoint-", ".checkpoint-9"):
        (tmp_path / f"{name}.pt").write_bytes(b"no checkpoint")  # the last one is what a kill left
    for seen in (64, 128, 1024, 256 * 1024):  # by number, not by name
        save(tmp_path, seen, keep=2)
    for name in ("checkpoint-²", "checkpoint-"):
        (tmp_path / f"{name}.pt").unlink()
    assert names(tmp_path) == ["checkpoint-1024.pt", "checkpoint-262144.pt"]


def test_a_future_that_is_given_up(tmp_path: Path) -> None:
    for seen in (64, 128, 192):
        save(tmp_path, seen, tries=1)
    for tries in (2, 3):
        assert set_aside_newer(tmp_path, 128) == [tmp_path / "abandoned-checkpoint-192.pt"]
        assert [path.name for path in checkpoint_files(tmp_path)] == ["checkpoint-64.pt", "checkpoint-128.pt"]
        assert load_checkpoint(tmp_path / "abandoned-checkpoint-192.pt")["tries"] == tries - 1
        save(tmp_path, 192, tries=tries)
    assert set_aside_newer(tmp_path, 192) == []


def test_every_flipped_bit_is_found_or_does_no_harm(tmp_path: Path) -> None:
    """One bit of every 11th byte is flipped in turn. What still loads has the same values."""
    path = save(tmp_path, 64)
    good, harmless = path.read_bytes(), 0
    positions = range(0, len(good), 11)
    for position in positions:
        path.write_bytes(good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :])
        try:
            state = load_checkpoint(path)
        except ValueError:
            pass
        else:
            harmless += 1
            assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
            assert state["optimizer"] == STATE["optimizer"]
            assert state["examples_seen"] == 64
    assert harmless < len(positions) * 0.9  # of so small a checkpoint most is padding


@pytest.mark.parametrize("damage", ["empty", "truncated", "pickle", "list", "parts"])
def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 64)
    newest = save(tmp_path, 128)
    content = newest.read_bytes()
    if damage in ("list", "parts"):
        torch.save([1, 2] if damage == "list" else {"examples_seen": 128}, newest)
    else:
        newest.write_bytes({"empty": b"", "truncated": content[:-20], "pickle": pickle.dumps({"lr": 1})}[damage])
    reports: list[str] = []
    assert load_latest_checkpoint(tmp_path, reports.append)["examples_seen"] == 64
    assert str(newest) in reports[0]
    save(tmp_path, 64).write_text("")
    with pytest.raises(ValueError, match="resume_from_checkpoint"):
        load_latest_checkpoint(tmp_path, reports.append)


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "executed")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    path = save(tmp_path, 64, data=Command(tmp_path / "proof"))
    with pytest.raises(ValueError, match="checkpoint-64"):
        load_checkpoint(path)
    assert not (tmp_path / "proof").exists()


def test_what_differs_is_named() -> None:
    saved = {"training_examples": 100, "decoder": {"dropout": 0.1, "sizes": [1, 2]}}
    check_equal(saved, {"training_examples": 100, "decoder": {"dropout": 0.1, "sizes": (1, 2)}})
    with pytest.raises(ValueError, match=r"decoder\.dropout"):
        check_equal(saved, {**saved, "decoder": {"dropout": 0}})
