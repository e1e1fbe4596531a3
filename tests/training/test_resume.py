"""A run that is killed, stopped or finds its newest checkpoint damaged ends with the weights of an undisturbed one."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffae_hub.training.checkpoints import checkpoint_files, examples_of, load_checkpoint

from .runner import Interruption, arguments, records, run, states, write_images

LENGTH = 768  # 48 steps; phase 1 ends after 192 examples
CALLS_OF_TWO_STEPS = 66_000
CALLS_OF_A_WRITE = 250_000


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
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same_tensors(a, b, f"{where}[{index}]")
    else:
        assert first == second, where


def assert_same_end(folder: Path, undisturbed: Path, same_data: bool = True) -> None:
    for component in ("encoder", "decoder"):
        name = f"pipeline/{component}/diffusion_pytorch_model.safetensors"
        assert_same_tensors(load_file(undisturbed / name), load_file(folder / name), component)
    ends = [load_checkpoint(checkpoint_files(f)[-1]) for f in (undisturbed, folder)]
    if not same_data:
        del ends[0]["data"], ends[1]["data"]
    assert_same_tensors(*ends)


def losses(folder: Path) -> dict[int, float]:
    """Loss by examples seen; each must be recorded once."""
    found = records(folder)
    assert len({record["examples"] for record in found}) == len(found)
    return {record["examples"]: record["loss"] for record in found}


def test_killed_at_any_moment(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, "--resume-from-checkpoint=latest", training_examples=LENGTH)
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
        calls = rng.randint(1, CALLS_OF_A_WRITE if writing else CALLS_OF_TWO_STEPS)
        code, text = run(argv, interruption=Interruption(after, calls, writing))
        assert code == -signal.SIGKILL, text
        assert not (folder / "pipeline").exists()
        resumed += "resumed from" in text
    code, text = run(argv)
    assert code == 0, text
    assert "resumed from" in text
    assert resumed >= 4, "too few kills came after a checkpoint"
    assert_same_end(folder, undisturbed)
    assert losses(folder) == losses(undisturbed)
    assert not list(folder.glob(".checkpoint-*"))


def test_damaged_newest_checkpoint(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, "--resume-from-checkpoint=latest", training_examples=LENGTH)
    code, text = run(argv, interruption=Interruption(after=400, calls=1))
    assert code == -signal.SIGKILL, text
    older, newest = checkpoint_files(folder)[-2:]
    content = bytearray(newest.read_bytes())
    weight = load_checkpoint(newest)["model"]["encoder.head.weight"].numpy().tobytes()
    content[content.index(weight)] ^= 1  # a single bit
    newest.write_bytes(content)

    code, text = run(argv)
    assert code == 0, text
    assert f"WARNING: checkpoint {newest}" in text
    assert f"resumed from {older}" in text
    assert_same_end(folder, undisturbed)


def test_sigterm_saves_and_ends(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Sent to the whole group, as a scheduler does, the loader's process too."""
    folder = tmp_path / "run"
    argv = arguments(
        image_folder, folder, "--resume-from-checkpoint=latest", "--num-workers=1", training_examples=LENGTH
    )
    calls = random.randint(1, CALLS_OF_TWO_STEPS)
    print(f"{calls} calls")
    code, text = run(argv, interruption=Interruption(80, calls, number=signal.SIGTERM))
    assert code == 0, text
    assert "stopped by SIGTERM" in text
    assert "Traceback" not in text
    reached = examples_of(checkpoint_files(folder)[-1])
    assert records(folder)[-1]["examples"] == reached
    assert not (folder / "pipeline").exists()

    code, text = run(argv)
    assert code == 0, text
    assert f"at {reached} examples" in text
    assert_same_end(folder, undisturbed)


def test_mean_losses_go_on(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    """A run that was stopped between two records of three steps each has the same record afterwards."""
    folder = tmp_path / "run"
    flags = ("--resume-from-checkpoint=latest", "--log-every=48")
    argv = arguments(image_folder, folder, *flags, training_examples=LENGTH)
    code, text = run(argv, interruption=Interruption(96, calls=1, number=signal.SIGTERM))
    assert code == 0, text
    assert 96 < examples_of(checkpoint_files(folder)[-1]) < 144
    code, text = run(argv)
    assert code == 0, text
    of_steps = losses(undisturbed)
    assert list(losses(folder)) == list(range(48, LENGTH + 1, 48))
    for examples, mean in losses(folder).items():
        assert mean == pytest.approx(sum(of_steps[examples - back] for back in (0, 16, 32)) / 3, rel=1e-12)


def test_full_disk_leaves_the_older_checkpoint(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, "--resume-from-checkpoint=latest", training_examples=LENGTH)
    code, text = run(argv, interruption=Interruption(after=144, calls=1))
    assert code == -signal.SIGKILL, text
    good = checkpoint_files(folder)[-1]
    before = good.read_bytes()

    code, text = run(argv, file_size_limit=50_000)  # a checkpoint has about 250,000 bytes
    assert code == 1, text
    assert f"the last good checkpoint is {good}" in text
    assert "Traceback" not in text
    assert checkpoint_files(folder)[-1] == good
    assert good.read_bytes() == before
    assert not list(folder.glob(".checkpoint-*"))

    code, text = run(argv)  # after space was made
    assert code == 0, text
    assert_same_end(folder, undisturbed)


def test_full_disk_at_the_end(image_folder: Path, tmp_path: Path) -> None:
    """The last checkpoint is written, the pipeline does not fit."""
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, "--resume-from-checkpoint=latest", training_examples=32)
    code, text = run(argv)
    assert code == 0, text
    shutil.rmtree(folder / "pipeline")
    code, text = run(argv, file_size_limit=10_000)
    assert code == 1, text
    assert "Traceback" not in text
    assert text.splitlines()[-1].endswith(f"the last good checkpoint is {folder / 'checkpoint-32.pt'}")
    assert not list(folder.glob("*pipeline*")) + list(folder.glob(".pipeline*"))
    code, text = run(argv)
    assert code == 0, text
    assert (folder / "pipeline" / "model_index.json").exists()


def test_another_experiment_or_other_data_is_refused(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    """And nothing of the run is touched."""
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    resume = ("--resume-from-checkpoint=latest",)
    other_images = write_images(tmp_path / "other", count=41)
    other_bytes = write_images(tmp_path / "renamed")
    (other_bytes / "000.png").rename(other_bytes / "0000.png")
    for dataset, flags, name in (
        (image_folder, [*resume, "--seed=1"], "seed"),
        (image_folder, [*resume, "--scaling-factor=2"], "scheduler.scaling_factor"),
        (image_folder, [*resume, "--streaming"], "streaming"),
        (image_folder, [*resume, "--split=test"], "split"),
        (image_folder, [*resume, "--training-examples=512"], "training_examples"),
        (other_images, resume, "num_images"),
        (other_bytes, resume, "fingerprint"),
        (image_folder, [], "--resume-from-checkpoint"),
    ):
        code, text = run([*arguments(dataset, undisturbed, training_examples=LENGTH), *flags])
        assert code == 2, text
        assert name in text.splitlines()[-1]
        assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before


def test_changed_data_may_be_allowed(tmp_path: Path) -> None:
    images, folder = write_images(tmp_path / "images"), tmp_path / "run"
    argv = arguments(images, folder, "--resume-from-checkpoint=latest", "--allow-changed-data", training_examples=64)
    assert run(argv)[0] == 0
    write_images(images, count=41)
    code, text = run([*argv, "--training-examples=128"])
    assert code == 0, text
    assert "WARNING: num_images" in text
    assert "at 64 examples" in text


def test_resumes_with_moved_data_and_spelled_out_defaults(
    image_folder: Path, tmp_path: Path, undisturbed: Path
) -> None:
    folder, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(image_folder, moved)
    folder.mkdir()
    shutil.copy(checkpoint_files(undisturbed)[-2], folder)
    defaults = ("--scaling-factor=4", "--prediction-type=v_prediction", "--set=encoder.norm_eps=1e-5")
    flags = ("--resume-from-checkpoint=latest", *defaults)
    code, text = run(arguments(moved, folder, *flags, training_examples=LENGTH))
    assert code == 0, text
    assert f"WARNING: dataset was '{image_folder}'" in text
    assert f"'{moved}'" in text
    assert_same_end(folder, undisturbed, same_data=False)


def test_going_back_to_an_older_checkpoint(image_folder: Path, tmp_path: Path) -> None:
    """What was recorded beyond it is recorded anew, in TensorBoard too, and `latest` is not the abandoned future's."""
    folder = tmp_path / "run"
    flags = ("--report-to=tensorboard", "--keep-checkpoints=9", "--resume-from-checkpoint=latest")
    argv = arguments(image_folder, folder, *flags, training_examples=160)
    code, text = run(argv, interruption=Interruption(after=32, calls=1))  # before the first checkpoint
    assert code == -signal.SIGKILL, text
    code, text = run(argv)
    assert code == 0, text
    first, second, third = checkpoint_files(folder)
    back = [*argv, f"--resume-from-checkpoint={first}"]
    code, text = run(back, interruption=Interruption(96, 1, number=signal.SIGTERM))
    assert code == 0, text
    assert f"resumed from {first} at 64 examples" in text
    assert (folder / "abandoned-checkpoint-160.pt").exists()
    assert not second.exists()
    assert not third.exists()
    stopped = checkpoint_files(folder)[-1]
    code, text = run(argv)
    assert code == 0, text
    assert f"resumed from {stopped} at" in text
    # The progress bar: examples, time left, examples a second, loss and phase.
    assert re.search(r"160/160 \[\d+:\d+<\d+:\d+, +[\d.]+img/s, loss=[\d.]+, phase=2\]", text), text
    assert [examples_of(path) for path in checkpoint_files(folder)][-2:] == [128, 160]
    events = EventAccumulator(str(folder / "logs" / "two_phase"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(16, 161, 16))
    assert [record["examples"] for record in records(folder)] == list(range(16, 161, 16))


def test_a_validation_that_was_missed_is_made_up_for(image_folder: Path, tmp_path: Path) -> None:
    """Killed after the last checkpoint, before the validation: the resumed run has the figures all the same."""
    flags = (f"--validation-dataset={image_folder}", "--validation-steps=2", "--resume-from-checkpoint=latest")
    argv = arguments(image_folder, tmp_path / "run", *flags, training_examples=64)
    assert run(argv)[0] == 0
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text().splitlines()
    assert "psnr_inversion" in whole[-1]
    metrics.write_text("\n".join(whole[:-1]) + "\n")
    for _ in range(2):  # once is enough
        code, text = run(argv)
        assert code == 0, text
        assert records(tmp_path / "run")[-1] == pytest.approx(json.loads(whole[-1]), rel=1e-6)
        assert len(records(tmp_path / "run")) == len(whole)


def test_streaming_resumes_to_the_same_weights(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ("--streaming", "--shuffle-buffer=7", "--keep-checkpoints=20", "--checkpoint-every=48")
    code, text = run(arguments(folder, whole, *flags, training_examples=144))
    assert code == 0, text
    # The state that a run which was killed after its first checkpoint leaves behind.
    broken.mkdir()
    (whole / "checkpoint-48.pt").rename(broken / "checkpoint-48.pt")
    code, text = run(arguments(folder, broken, *flags, "--resume-from-checkpoint=latest", training_examples=144))
    assert code == 0, text
    assert "at 48 examples" in text
    first, second = states(whole)[-1], states(broken)[-1]
    assert first["stream_positions"] == second["stream_positions"]
    assert first["stream_positions"][0]["epoch"] == 3  # 144 of 40
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
