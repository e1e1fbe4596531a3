"""A run that is killed, stopped or finds its newest checkpoint damaged ends with the weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffae_hub.training.checkpoints import checkpoint_folders, load_checkpoint

from .runner import arguments, run, start

LENGTH = 768  # 48 steps; phase 1 ends after 192 examples


@pytest.fixture(scope="module")
def undisturbed(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    code, text = run(arguments(image_folder, folder, training_examples=LENGTH))
    assert code == 0, text
    return folder


def assert_same_tensors(first: object, second: object, where: str = "state") -> None:
    """Equal to the last bit, at every depth."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, where
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        for key in first:
            assert_same_tensors(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), where
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same_tensors(a, b, f"{where}[{index}]")
    else:
        assert first == second, where


def assert_same_end(folder: Path, undisturbed: Path) -> None:
    for component in ("encoder", "decoder"):
        name = f"pipeline/{component}/diffusion_pytorch_model.safetensors"
        assert_same_tensors(load_file(undisturbed / name), load_file(folder / name), component)
    ends = [load_checkpoint(checkpoint_folders(f)[-1]) for f in (undisturbed, folder)]
    assert_same_tensors(*ends)


def losses(folder: Path) -> dict[int, float]:
    """Loss by examples seen; each must be recorded once."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len({record["examples"] for record in records}) == len(records)
    return {record["examples"]: record["loss"] for record in records}


def examples_recorded(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    complete = [line for line in lines if line.endswith("\n")]
    return json.loads(complete[-1])["examples"] if complete else 0


def being_written(folder: Path) -> bool:
    return next(folder.glob(".checkpoint-*.partial"), None) is not None


def test_killed_at_any_moment(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, "--resume_from_checkpoint=latest", training_examples=LENGTH)
    # Examples after which to kill, at a random moment or inside the next write of a checkpoint: before the first
    # checkpoint, in phase 1, in phase 2 with the newest checkpoint of phase 1 (written at 192), and later.
    moments = [
        (random.randint(16, 48), "any moment"),
        (random.randint(64, 120), "writing"),
        (random.randint(128, 184), "any moment"),
        (random.randint(208, 248), "any moment"),
        (random.randint(256, 400), "writing"),
        (random.randint(416, 560), "any moment"),
        (random.randint(576, 620), "writing"),
    ]
    resumed, partial_seen = 0, 0
    for after, moment in moments:
        checkpoints = checkpoint_folders(folder)
        expected = f"resumed from {checkpoints[-1]}" if checkpoints else "starting anew"
        process = start(argv)
        # A kill may have come so late that this many examples are recorded already: the run must have begun, too.
        process.wait_for(lambda p=process, expected=expected: expected in p.text())
        process.wait_for(lambda after=after: examples_recorded(folder) >= after)
        if moment == "writing":
            process.wait_for(lambda: being_written(folder))
        else:
            time.sleep(random.uniform(0, 0.03))
        os.kill(process.process.pid, signal.SIGKILL)
        code, text = process.wait()
        assert code == -signal.SIGKILL, text
        assert not (folder / "pipeline").exists()
        partial_seen += being_written(folder)
        resumed += "resumed from" in text
    code, text = run(argv)
    assert code == 0, text
    assert "resumed from" in text
    assert resumed >= 4, "too few kills came after a checkpoint"
    assert partial_seen >= 1, "no kill left a half-written checkpoint behind"
    assert_same_end(folder, undisturbed)
    assert losses(folder) == losses(undisturbed)
    assert not being_written(folder)


def test_damaged_newest_checkpoint(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, "--resume_from_checkpoint=latest", training_examples=LENGTH)
    process = start(argv)
    process.wait_for(lambda: examples_recorded(folder) >= 400)
    os.kill(process.process.pid, signal.SIGKILL)
    process.wait()
    older, newest = checkpoint_folders(folder)[-2:]
    content = bytearray((newest / "state.safetensors").read_bytes())
    content[len(content) // 2] ^= 1  # a single bit
    (newest / "state.safetensors").write_bytes(content)

    code, text = run(argv)
    assert code == 0, text
    assert f"WARNING: checkpoint {newest} is damaged" in text
    assert f"resumed from {older}" in text
    assert_same_end(folder, undisturbed)


def test_sigterm_saves_and_ends(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    argv = arguments(
        image_folder, folder, "--resume_from_checkpoint=latest", "--num_workers=1", training_examples=LENGTH
    )
    process = start(argv)
    process.wait_for(lambda: examples_recorded(folder) >= 80)
    os.killpg(process.process.pid, signal.SIGTERM)  # the whole group, as a scheduler does, the loader's process too
    code, text = process.wait()
    assert code == 0, text
    assert "stopped by SIGTERM" in text
    assert "Traceback" not in text
    reached = int(checkpoint_folders(folder)[-1].name.removeprefix("checkpoint-"))
    assert examples_recorded(folder) == reached
    assert not (folder / "pipeline").exists()

    code, text = run(argv)
    assert code == 0, text
    assert f"at {reached} examples" in text
    assert_same_end(folder, undisturbed)


def test_full_disk_leaves_the_older_checkpoint(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, "--resume_from_checkpoint=latest", training_examples=LENGTH)
    process = start(argv)
    process.wait_for(lambda: examples_recorded(folder) >= 144)
    os.kill(process.process.pid, signal.SIGKILL)
    process.wait()
    good = checkpoint_folders(folder)[-1]
    before = {path.name: path.read_bytes() for path in good.iterdir()}

    code, text = run(argv, file_size_limit=50_000)  # a checkpoint has about 250,000 bytes
    assert code == 1, text
    assert f"the last good checkpoint is {good}" in text
    assert "Traceback" not in text
    assert checkpoint_folders(folder)[-1] == good
    assert {path.name: path.read_bytes() for path in good.iterdir()} == before
    assert not being_written(folder)

    code, text = run(argv)  # after space was made
    assert code == 0, text
    assert_same_end(folder, undisturbed)


def test_another_experiment_is_refused(image_folder: Path, undisturbed: Path) -> None:
    argv = arguments(image_folder, undisturbed, "--resume_from_checkpoint=latest", training_examples=LENGTH)
    code, text = run([*argv, "--seed=1"])
    assert code == 2
    assert "seed must be as in the checkpoint when resuming, 0, got 1" in text.splitlines()[-1]
    code, text = run(argv[:-1])
    assert code == 2
    assert "holds checkpoints: continue with --resume_from_checkpoint latest" in text.splitlines()[-1]
