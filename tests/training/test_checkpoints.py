"""Checkpoints: what is written comes back; what is damaged is found; the older ones stay until the newer one stands."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel

from diffae_hub.training.checkpoints import (
    check_same_experiment,
    checkpoint_files,
    load_checkpoint,
    load_latest_checkpoint,
    restore_averages,
    restore_state_layout,
    save_checkpoint,
    set_aside_newer,
)

STATE = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "scalar": torch.tensor(1.5, dtype=torch.float64)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
    "ema": {"shadow_params": [torch.tensor([1.0, 2.0], dtype=torch.bfloat16)], "decay": 0.9},
    "losses": {"sum": 1.0},
    "experiment": {"name": "text", "nothing": None},
    "data": {"streaming": True},
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 128, STATE, keep=1)
    assert path == tmp_path / "checkpoint-128.pt"
    state = load_checkpoint(path)
    assert state["examples_seen"] == 128
    for name in ("weight", "scalar"):
        assert state["model"][name].dtype == STATE["model"][name].dtype
        assert torch.equal(state["model"][name], STATE["model"][name])
    assert state["optimizer"] == STATE["optimizer"]
    assert torch.equal(state["ema"]["shadow_params"][0], STATE["ema"]["shadow_params"][0])
    for name in ("losses", "experiment", "data"):
        assert state[name] == STATE[name]


def test_what_is_read_from_the_disk_outlives_the_file(tmp_path: Path) -> None:
    """A run that goes on deletes the checkpoint that it came from, and changes its tensors in place."""
    path = save_checkpoint(tmp_path, 1, STATE, keep=1)
    before, state = path.read_bytes(), load_checkpoint(path)
    state["model"]["weight"] += 1
    assert path.read_bytes() == before
    path.unlink()
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"] + 1)


def test_keeps_the_newest(tmp_path: Path) -> None:
    for seen in (64, 128, 1024, 256 * 1024):  # by number, not by name
        save_checkpoint(tmp_path, seen, STATE, keep=2)
    assert names(tmp_path) == ["checkpoint-1024.pt", "checkpoint-262144.pt"]


def test_going_back_does_not_delete_the_good_ones(tmp_path: Path) -> None:
    for seen in (64, 128, 192):
        save_checkpoint(tmp_path, seen, STATE, keep=3)
    (tmp_path / "checkpoint-192.pt").write_text("")
    save_checkpoint(tmp_path, 160, STATE, keep=1)
    assert names(tmp_path) == ["checkpoint-160.pt", "checkpoint-192.pt"]
    assert load_latest_checkpoint(tmp_path, lambda line: None)[0].name == "checkpoint-160.pt"


def test_a_future_that_is_given_up(tmp_path: Path) -> None:
    for seen in (64, 128, 192):
        save_checkpoint(tmp_path, seen, {**STATE, "losses": {"tries": 1}}, keep=3)
    for tries in (2, 3):
        assert set_aside_newer(tmp_path, 128) == [tmp_path / "abandoned-checkpoint-192.pt"]
        assert [path.name for path in checkpoint_files(tmp_path)] == ["checkpoint-64.pt", "checkpoint-128.pt"]
        assert load_checkpoint(tmp_path / "abandoned-checkpoint-192.pt")["losses"]["tries"] == tries - 1
        save_checkpoint(tmp_path, 192, {**STATE, "losses": {"tries": tries}}, keep=3)
    assert set_aside_newer(tmp_path, 192) == []


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 16
    path.write_bytes(content)


def test_every_flipped_bit_is_found_or_does_no_harm(tmp_path: Path) -> None:
    """One of each byte of the file in turn: what loads has the very values."""
    path = save_checkpoint(tmp_path, 64, STATE, keep=1)
    good, harmless = path.read_bytes(), 0
    positions = range(0, len(good), 7)
    for position in positions:
        flip_bit(path, position)
        try:
            state = load_checkpoint(path)
        except ValueError:
            pass
        else:
            harmless += 1
            assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
            assert state["optimizer"] == STATE["optimizer"]
            assert state["examples_seen"] == 64
        path.write_bytes(good)
    assert harmless < len(positions) * 0.9  # of so small a checkpoint most is padding


@pytest.mark.parametrize("damage", ["empty", "truncated", "tensor", "null", "missing", "pickle"])
def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, 64, STATE, keep=2)
    newest = save_checkpoint(tmp_path, 128, STATE, keep=2)
    if damage == "empty":
        newest.write_bytes(b"")
    elif damage == "truncated":
        newest.write_bytes(newest.read_bytes()[:-20])
    elif damage == "tensor":
        flip_bit(newest, newest.read_bytes().index(STATE["model"]["weight"].numpy().tobytes()))
    elif damage == "null":
        save_checkpoint(tmp_path, 128, {**STATE, "experiment": None}, keep=2)
    elif damage == "missing":
        save_checkpoint(tmp_path, 128, {name: part for name, part in STATE.items() if name != "ema"}, keep=2)
    else:
        newest.write_bytes(pickle.dumps(STATE["losses"]))
    with pytest.raises(ValueError, match="checkpoint-128"):
        load_checkpoint(newest)
    warnings: list[str] = []
    path, state = load_latest_checkpoint(tmp_path, warnings.append)
    assert (path.name, state["examples_seen"]) == ("checkpoint-64.pt", 64)
    assert len(warnings) == 1
    assert str(newest) in warnings[0]


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "executed")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 64, {**STATE, "data": Command(tmp_path / "proof")}, keep=1)
    with pytest.raises(ValueError, match="checkpoint-64"):
        load_checkpoint(path)
    assert not (tmp_path / "proof").exists()


def test_none_there_or_all_damaged_or_of_another_version(tmp_path: Path) -> None:
    assert load_latest_checkpoint(tmp_path, pytest.fail) == (None, None)
    with pytest.raises(ValueError, match="resume_from_checkpoint"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, 64, STATE, keep=1).write_text("")
    with pytest.raises(ValueError, match="resume_from_checkpoint"):
        load_latest_checkpoint(tmp_path, lambda line: None)
    old = tmp_path / "old" / "checkpoint-64"
    old.mkdir(parents=True)
    (old / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"0\.1"):
        load_latest_checkpoint(tmp_path / "old", pytest.fail)


def test_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 64, STATE, keep=1)
    for name in (
        "checkpoint-².pt",
        "checkpoint-٣.pt",
        "checkpoint-.pt",
        "checkpoint-9.pt.old",
        ".checkpoint-9.pt.partial",
    ):
        (tmp_path / name).write_bytes(path.read_bytes())
    assert checkpoint_files(tmp_path) == [path]
    save_checkpoint(tmp_path, 128, STATE, keep=2)
    assert ".checkpoint-9.pt.partial" not in names(tmp_path), "what a kill left is removed"
    assert zipfile.is_zipfile(path)


def test_fused_optimizer_after_loading_matches_one_that_never_stopped(tmp_path: Path) -> None:
    """A convolution under fused Adam, saved contiguous and gone on with in channels_last."""

    def steps(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, which: range) -> None:
        for step in which:
            gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
            weight.grad = torch.empty_like(weight).copy_(gradient)
            optimizer.step()

    def fresh(layout: torch.memory_format) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.ones(4, 3, 3, 3).contiguous(memory_format=layout))
        return parameter, torch.optim.Adam([parameter], lr=0.1, fused=True)

    undisturbed, optimizer = fresh(torch.channels_last)
    steps(undisturbed, optimizer, range(6))
    weight, optimizer = fresh(torch.contiguous_format)
    steps(weight, optimizer, range(3))
    path = save_checkpoint(tmp_path, 3, {**STATE, "model": {"w": weight}, "optimizer": optimizer.state_dict()}, keep=1)

    state = load_checkpoint(path)
    resumed, optimizer = fresh(torch.channels_last)
    with torch.no_grad():
        resumed.copy_(state["model"]["w"])
    optimizer.load_state_dict(state["optimizer"])
    restore_state_layout(optimizer)
    steps(resumed, optimizer, range(3, 6))
    torch.testing.assert_close(resumed, undisturbed, rtol=0, atol=1e-6)


def test_averages_stay_on_their_device(tmp_path: Path) -> None:
    """A checkpoint is read to the CPU; the weights here are on another device, the one that every machine has."""
    saved = EMAModel([torch.nn.Parameter(torch.ones(2))])
    saved.optimization_step = 7
    path = save_checkpoint(tmp_path, 1, {**STATE, "ema": saved.state_dict()}, keep=1)
    averages = EMAModel([torch.nn.Parameter(torch.ones(2, device="meta"))])
    restore_averages(averages, load_checkpoint(path)["ema"])
    assert [average.device.type for average in averages.shadow_params] == ["meta"]
    assert averages.optimization_step == 7


def test_a_run_may_grow_and_nothing_else() -> None:
    saved = {"training_examples": 100, "decoder": {"dropout": 0.1, "sizes": [1, 2]}}
    check_same_experiment(saved, {"training_examples": 200, "decoder": {"dropout": 0.1, "sizes": (1, 2)}})
    for changed, name in (
        ({"training_examples": 99}, "training_examples"),
        ({"decoder": {"dropout": 0}}, "decoder.dropout"),
    ):
        with pytest.raises(ValueError, match=name):
            check_same_experiment(saved, {**saved, **changed})
