"""Checkpoints: what is written comes back; what is damaged is found; the older ones stay until the newer one stands."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel

from diffae_hub.training.checkpoints import (
    checkpoint_folders,
    load_checkpoint,
    load_latest_checkpoint,
    restore_averages,
    restore_state_layout,
    save_checkpoint,
    set_aside_newer,
)

STATE = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "scalar": torch.tensor(1.5, dtype=torch.float64)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "fused": None}]},
    "half": [torch.tensor([1.0, 2.0], dtype=torch.bfloat16), True, "text", None],
}


def test_round_trip(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 128, STATE, keep=1)
    assert folder == tmp_path / "checkpoint-128"
    state = load_checkpoint(folder)
    assert state["examples_seen"] == 128
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    assert state["model"]["scalar"].dtype == torch.float64
    assert state["optimizer"]["state"][0]["step"].item() == 3.0
    assert state["optimizer"]["param_groups"] == STATE["optimizer"]["param_groups"]
    assert torch.equal(state["half"][0], STATE["half"][0])
    assert state["half"][1:] == [True, "text", None]


def test_checksums_are_sha256sums(tmp_path: Path) -> None:
    """The independent reader: coreutils."""
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum on this machine")
    folder = save_checkpoint(tmp_path, 1, STATE, keep=1)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)


def test_keeps_the_newest(tmp_path: Path) -> None:
    for seen in (64, 128, 1024, 256 * 1024):  # by number, not by name
        save_checkpoint(tmp_path, seen, STATE, keep=2)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["checkpoint-1024", "checkpoint-262144"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1024", "checkpoint-262144"]


def test_going_back_does_not_delete_the_good_ones(tmp_path: Path) -> None:
    for seen in (64, 128, 192):
        save_checkpoint(tmp_path, seen, STATE, keep=3)
    (tmp_path / "checkpoint-192" / "state.json").write_text("")
    save_checkpoint(tmp_path, 160, STATE, keep=1)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["checkpoint-160", "checkpoint-192"]
    assert load_latest_checkpoint(tmp_path, lambda line: None)[0].name == "checkpoint-160"


def test_a_future_that_is_given_up(tmp_path: Path) -> None:
    for seen in (64, 128, 192):
        save_checkpoint(tmp_path, seen, {"tries": 1}, keep=3)
    for tries in (2, 3):
        assert set_aside_newer(tmp_path, 128) == [tmp_path / "abandoned-checkpoint-192"]
        assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["checkpoint-64", "checkpoint-128"]
        kept = load_checkpoint(tmp_path / "abandoned-checkpoint-192")
        assert kept == {"examples_seen": 192, "tries": tries - 1}
        save_checkpoint(tmp_path, 192, {"tries": tries}, keep=3)
    assert set_aside_newer(tmp_path, 192) == []


def test_a_run_is_no_checkpoint(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 64, STATE, keep=1)
    with pytest.raises(ValueError, match=f"a checkpoint's folder, such as {re.escape(str(folder))}, got"):
        load_checkpoint(tmp_path)


def damage_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "bit"])
def test_damage_is_found(tmp_path: Path, name: str, damage: str) -> None:
    save_checkpoint(tmp_path, 64, STATE, keep=2)
    newest = save_checkpoint(tmp_path, 128, STATE, keep=2)
    path = newest / name
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        damage_bit(path)
    with pytest.raises(ValueError, match="checkpoint-128 is damaged"):
        load_checkpoint(newest)
    warnings: list[str] = []
    folder, state = load_latest_checkpoint(tmp_path, warnings.append)
    assert folder.name == "checkpoint-64"
    assert state["examples_seen"] == 64
    assert len(warnings) == 1
    assert str(newest) in warnings[0]


def test_all_damaged_or_none_there(tmp_path: Path) -> None:
    assert load_latest_checkpoint(tmp_path, pytest.fail) == (None, None)
    damage_bit(save_checkpoint(tmp_path, 64, STATE, keep=1) / "state.safetensors")
    with pytest.raises(ValueError, match="all in .* are damaged"):
        load_latest_checkpoint(tmp_path, lambda line: None)


def test_leftovers_of_a_kill_are_no_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 64, STATE, keep=2)
    shutil.copytree(tmp_path / "checkpoint-64", tmp_path / ".checkpoint-128.partial")
    shutil.copytree(tmp_path / "checkpoint-64", tmp_path / ".checkpoint-32.deleted")
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["checkpoint-64"]
    save_checkpoint(tmp_path, 128, STATE, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-128", "checkpoint-64"]


def test_fused_optimizer_after_loading_matches_one_that_never_stopped(tmp_path: Path) -> None:
    """A channels_last convolution under fused Adam, saved and loaded halfway."""

    def steps(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, which: range) -> None:
        for step in which:
            gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
            weight.grad = gradient.contiguous(memory_format=torch.channels_last)
            optimizer.step()

    def fresh() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        weight = torch.ones(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
        parameter = torch.nn.Parameter(weight)
        return parameter, torch.optim.Adam([parameter], lr=0.1, fused=True)

    undisturbed, optimizer = fresh()
    steps(undisturbed, optimizer, range(6))
    weight, optimizer = fresh()
    steps(weight, optimizer, range(3))
    folder = save_checkpoint(tmp_path, 3, {"weight": weight, "optimizer": optimizer.state_dict()}, keep=1)

    state = load_checkpoint(folder)
    resumed, optimizer = fresh()
    with torch.no_grad():
        resumed.copy_(state["weight"])
    optimizer.load_state_dict(state["optimizer"])
    restore_state_layout(optimizer)
    steps(resumed, optimizer, range(3, 6))
    assert torch.equal(resumed, undisturbed)


def test_averages_stay_on_their_device(tmp_path: Path) -> None:
    """A checkpoint is read to the CPU; the weights here are on another device, the one that every machine has."""
    saved = EMAModel([torch.nn.Parameter(torch.ones(2))])
    saved.optimization_step = 7
    folder = save_checkpoint(tmp_path, 1, {"ema": saved.state_dict()}, keep=1)
    averages = EMAModel([torch.nn.Parameter(torch.ones(2, device="meta"))])
    restore_averages(averages, load_checkpoint(folder)["ema"])
    assert [average.device.type for average in averages.shadow_params] == ["meta"]
    assert averages.optimization_step == 7
