"""A run that is killed, stopped or finds its newest checkpoint damaged ends with the weights of an undisturbed one."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffae_hub.training.checkpoints import checkpoint_folders, load_checkpoint

from .runner import Interruption, arguments, run, write_images

LENGTH = 768  # 48 steps; phase 1 ends after 192 examples
CALLS_OF_TWO_STEPS = 66_000


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


def assert_same_end(folder: Path, undisturbed: Path, same_data: bool = True) -> None:
    for component in ("encoder", "decoder"):
        name = f"pipeline/{component}/diffusion_pytorch_model.safetensors"
        assert_same_tensors(load_file(undisturbed / name), load_file(folder / name), component)
    ends = [load_checkpoint(checkpoint_folders(f)[-1]) for f in (undisturbed, folder)]
    if not same_data:
        del ends[0]["data"], ends[1]["data"]
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
    seed = random.randrange(2**32)
    print(f"random.Random({seed})")  # shown if the test fails
    rng = random.Random(seed)
    # Examples after which to kill, at a random moment or inside the next write of a checkpoint: before the first
    # checkpoint, in phase 1, in phase 2 with the newest checkpoint of phase 1 (written at 192), and later.
    moments = [
        (rng.randint(1, 16), False),
        (rng.randint(64, 128), True),
        (rng.randint(144, 160), False),
        (rng.randint(193, 208), False),
        (rng.randint(256, 400), True),
        (rng.randint(416, 560), False),
        (rng.randint(576, 640), True),
    ]
    resumed = 0
    for after, writing in moments:
        calls = rng.randint(1, 7 if writing else CALLS_OF_TWO_STEPS)
        code, text = run(argv, interruption=Interruption(after, calls, writing))
        assert code == -signal.SIGKILL, text
        assert not (folder / "pipeline").exists()
        assert being_written(folder) or not writing
        resumed += "resumed from" in text
    code, text = run(argv)
    assert code == 0, text
    assert "resumed from" in text
    assert resumed >= 4, "too few kills came after a checkpoint"
    assert_same_end(folder, undisturbed)
    assert losses(folder) == losses(undisturbed)
    assert not being_written(folder)


def test_damaged_newest_checkpoint(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, "--resume_from_checkpoint=latest", training_examples=LENGTH)
    code, text = run(argv, interruption=Interruption(after=400, calls=1))
    assert code == -signal.SIGKILL, text
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
    """Sent to the whole group, as a scheduler does, the loader's process too."""
    folder = tmp_path / "run"
    argv = arguments(
        image_folder, folder, "--resume_from_checkpoint=latest", "--num_workers=1", training_examples=LENGTH
    )
    calls = random.randint(1, CALLS_OF_TWO_STEPS)
    print(f"{calls} calls")
    code, text = run(argv, interruption=Interruption(80, calls, number=signal.SIGTERM))
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


def test_mean_losses_go_on(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    """A run that was stopped between two records of three steps each has the same record afterwards."""
    folder = tmp_path / "run"
    flags = ("--resume_from_checkpoint=latest", "--log_every=48")
    argv = arguments(image_folder, folder, *flags, training_examples=LENGTH)
    code, text = run(argv, interruption=Interruption(96, calls=1, number=signal.SIGTERM))
    assert code == 0, text
    assert 96 < int(checkpoint_folders(folder)[-1].name.removeprefix("checkpoint-")) < 144
    code, text = run(argv)
    assert code == 0, text
    of_steps = losses(undisturbed)
    assert list(losses(folder)) == list(range(48, LENGTH + 1, 48))
    for examples, mean in losses(folder).items():
        assert mean == pytest.approx(sum(of_steps[examples - back] for back in (0, 16, 32)) / 3, rel=1e-12)


def test_full_disk_leaves_the_older_checkpoint(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, "--resume_from_checkpoint=latest", training_examples=LENGTH)
    code, text = run(argv, interruption=Interruption(after=144, calls=1))
    assert code == -signal.SIGKILL, text
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


def test_full_disk_at_the_end(image_folder: Path, tmp_path: Path) -> None:
    """The last checkpoint is written, the pipeline does not fit."""
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, "--resume_from_checkpoint=latest", training_examples=32)
    code, text = run(argv)
    assert code == 0, text
    shutil.rmtree(folder / "pipeline")
    code, text = run(argv, file_size_limit=10_000)
    assert code == 1, text
    assert "Traceback" not in text
    assert text.splitlines()[-1].endswith(f"the last good checkpoint is {folder / 'checkpoint-32'}")
    assert not list(folder.glob("*pipeline*")) + list(folder.glob(".pipeline*"))
    code, text = run(argv)
    assert code == 0, text
    assert (folder / "pipeline" / "model_index.json").exists()


def test_another_experiment_or_other_data_is_refused(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    """And nothing of the run is touched."""
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    resume = ("--resume_from_checkpoint=latest",)
    other_images = write_images(tmp_path / "other", count=41)
    for dataset, flags, message in (
        (image_folder, [*resume, "--seed=1"], "seed must be as in the checkpoint when resuming, 0, got 1"),
        (image_folder, [*resume, "--scaling_factor=2"], "scheduler.scaling_factor must be as in the checkpoint"),
        (
            image_folder,
            [*resume, "--streaming"],
            "streaming must be as in the checkpoint when resuming, False, got True",
        ),
        (image_folder, [*resume, "--split=test"], "split must be as in the checkpoint when resuming, 'train'"),
        (other_images, resume, "num_images must be as in the checkpoint when resuming, 40, got 41"),
        (image_folder, [], "holds checkpoints: continue with --resume_from_checkpoint latest"),
    ):
        code, text = run(arguments(dataset, undisturbed, *flags, training_examples=LENGTH))
        assert code == 2, text
        assert message in text.splitlines()[-1]
        assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before


def test_resumes_with_moved_data_and_spelled_out_defaults(
    image_folder: Path, tmp_path: Path, undisturbed: Path
) -> None:
    folder, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(image_folder, moved)
    folder.mkdir()
    shutil.copytree(checkpoint_folders(undisturbed)[-2], folder / checkpoint_folders(undisturbed)[-2].name)
    defaults = ("--scaling_factor=4", "--prediction_type=v_prediction", "--set=encoder.norm_eps=1e-5")
    flags = ("--resume_from_checkpoint=latest", *defaults)
    code, text = run(arguments(moved, folder, *flags, training_examples=LENGTH))
    assert code == 0, text
    assert f"WARNING: the checkpoint was trained on {image_folder}, this run goes on with {moved}" in text
    assert_same_end(folder, undisturbed, same_data=False)
