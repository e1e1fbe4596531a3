"""A run that is killed or stopped, or whose newest checkpoint is damaged, ends with an undisturbed run's weights."""

import json
import random
import resource
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._pytree import keystr, tree_map_with_path

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.training.checkpoints import checkpoint_files, examples_of, load_checkpoint

from .runner import arguments, interrupt, records, run, write_images

LENGTH = 256  # 16 steps; phase 1 ends after 64 examples
CALLS_OF_TWO_STEPS = 66_000
CALLS_OF_A_WRITE = 250_000
LATEST = "--resume-from-checkpoint=latest"


@pytest.fixture(scope="module")
def undisturbed(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(arguments(image_folder, folder, "--keep-checkpoints=9", training_examples=LENGTH))
    return folder


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """The folder of a run that was killed after 192 examples."""
    folder = tmp_path / "run"
    folder.mkdir()
    for examples in (128, 192):
        shutil.copy(undisturbed / f"checkpoint-{examples}.pt", folder)
    shutil.copy(undisturbed / "metrics.jsonl", folder)
    return folder


def assert_same_tensors(first: object, second: object) -> None:
    def check(where: tuple, a: object, b: object) -> None:
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, msg=keystr(where))
        else:
            assert a == b, keystr(where)

    tree_map_with_path(check, first, second)


def assert_same_end(folder: Path, undisturbed: Path, same_data: bool = True) -> None:
    for component in ("encoder", "decoder"):
        name = f"pipeline/{component}/diffusion_pytorch_model.safetensors"
        assert_same_tensors(load_file(undisturbed / name), load_file(folder / name))
    ends = [load_checkpoint(checkpoint_files(path)[-1]) for path in (undisturbed, folder)]
    if not same_data:
        del ends[0]["data"], ends[1]["data"]
    assert_same_tensors(*ends)
    assert losses(folder) == losses(undisturbed)


def losses(folder: Path) -> dict[int, float]:
    """Returns the losses by examples seen; each must be recorded once."""
    found = records(folder)
    assert len({record["examples"] for record in found}) == len(found)
    return {record["examples"]: record["loss"] for record in found}


def test_killed_at_any_moment_and_damaged(image_folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, LATEST, training_examples=LENGTH)
    seed = random.randrange(2**32)
    print(f"random.Random({seed})")  # shown if the test fails
    rng = random.Random(seed)
    # Examples after which to kill, at a random moment or inside the next write of a checkpoint: before the first
    # checkpoint, at the end of phase 1, in phase 2 with the newest checkpoint of phase 1, and later.
    moments = [(rng.randint(1, 16), False), (64, True), (rng.randint(81, 94), False), (rng.randint(129, 192), True)]
    for after, writing in moments:
        calls = rng.randint(1, CALLS_OF_A_WRITE if writing else CALLS_OF_TWO_STEPS)
        run(argv, partial(interrupt, after, calls, writing), code=-signal.SIGKILL)
        assert not (folder / "pipeline").exists()
    older, newest = checkpoint_files(folder)
    content = bytearray(newest.read_bytes())
    weight = load_checkpoint(newest)["model"]["encoder.head.weight"].numpy().tobytes()
    content[content.index(weight)] ^= 1  # a single bit
    newest.write_bytes(content)
    text = run(argv)
    assert f"WARNING: checkpoint {newest}" in text
    assert f"resumed from {older}" in text
    assert_same_end(folder, undisturbed)
    assert not list(folder.glob(".checkpoint-*"))


def test_sigterm_saves_and_ends(image_folder: Path, folder: Path, undisturbed: Path) -> None:
    """The whole group gets it, as from a scheduler, including the loader's process."""
    argv = arguments(image_folder, folder, LATEST, "--num-workers=1", training_examples=LENGTH)
    calls = random.randint(1, 10_000)  # about a step's: the loader's process has most of them
    print(f"{calls} calls")
    text = run(argv, partial(interrupt, 208, calls, number=signal.SIGTERM), code=128 + signal.SIGTERM)
    assert "stopped by SIGTERM" in text
    reached = examples_of(checkpoint_files(folder)[-1])
    assert records(folder)[-1]["examples"] == reached
    assert not (folder / "pipeline").exists()
    stopped = DiffusionAutoencoderPipeline.from_pretrained(folder / "pipeline-unfinished")
    averages = load_checkpoint(checkpoint_files(folder)[-1])["ema"]["shadow_params"]
    parameters = [*stopped.encoder.parameters(), *stopped.decoder.parameters()]
    for parameter, average in zip(parameters, averages, strict=True):
        assert torch.equal(parameter, average)

    text = run(argv)
    assert not (folder / "pipeline-unfinished").exists()
    assert f"at {reached} examples" in text
    assert_same_end(folder, undisturbed)


def test_full_disk_leaves_the_older_checkpoint(image_folder: Path, folder: Path, undisturbed: Path) -> None:
    argv = arguments(image_folder, folder, LATEST, training_examples=LENGTH)
    good = checkpoint_files(folder)[-1]
    before = good.read_bytes()
    full_disk = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    text = run(argv, full_disk, code=1)  # a checkpoint has about 250,000 bytes
    assert text.splitlines()[-1].endswith(f"the last good checkpoint is {good}")
    assert checkpoint_files(folder)[-1] == good
    assert good.read_bytes() == before
    assert not list(folder.glob(".checkpoint-*"))

    run(argv)  # after space was made
    assert_same_end(folder, undisturbed)


def test_another_experiment_or_other_data_is_refused(
    image_folder: Path, tmp_path: Path, undisturbed: Path, refusal, on_cpu: None
) -> None:
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    other_images = write_images(tmp_path / "other", count=41)
    other_bytes = write_images(tmp_path / "renamed")
    (other_bytes / "000.png").rename(other_bytes / "0000.png")
    for dataset, flags, name in (
        (image_folder, [LATEST, "--seed=1"], "seed"),
        (image_folder, [LATEST, "--scaling-factor=2"], "scheduler.scaling_factor"),
        (image_folder, [LATEST, "--streaming"], "streaming"),
        (image_folder, [LATEST, "--training-examples=128"], "training_examples"),
        (other_images, [LATEST], "num_images"),
        (other_bytes, [LATEST], "fingerprint"),
        (image_folder, [], "--resume-from-checkpoint"),
    ):
        assert name in refusal("train", *arguments(dataset, undisturbed, training_examples=LENGTH), *flags)
        assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before


def test_moved_data_and_spelled_out_defaults(
    image_folder: Path, tmp_path: Path, folder: Path, undisturbed: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(image_folder, moved)
    defaults = ("--scaling-factor=4", "--prediction-type=v_prediction", "--set=encoder.norm_eps=1e-5")
    argv = arguments(moved, folder, LATEST, *defaults, training_examples=LENGTH)
    text = run(argv)
    assert f"WARNING: dataset was '{image_folder}'" in text
    assert_same_end(folder, undisturbed, same_data=False)

    write_images(moved, count=41)
    text = run([*argv, "--allow-changed-data", "--training-examples=272"])
    assert "WARNING: num_images" in text
    assert f"at {LENGTH} examples" in text


def test_going_back_to_an_older_checkpoint(image_folder: Path, tmp_path: Path) -> None:
    """Later records are made again, also in TensorBoard, and `latest` ignores the abandoned checkpoints."""
    folder = tmp_path / "run"
    flags = ("--report-to=tensorboard", "--keep-checkpoints=9", LATEST)
    argv = arguments(image_folder, folder, *flags, training_examples=160)
    run(argv)
    first, second, third = checkpoint_files(folder)
    stop = partial(interrupt, 96, number=signal.SIGTERM)
    text = run([*argv, f"--resume-from-checkpoint={first}"], stop, code=128 + signal.SIGTERM)
    assert f"resumed from {first} at 64 examples" in text
    assert (folder / "abandoned-checkpoint-160.pt").exists()
    assert not second.exists()
    assert not third.exists()
    stopped = checkpoint_files(folder)[-1]
    text = run(argv)
    assert f"resumed from {stopped} at" in text
    assert [examples_of(path) for path in checkpoint_files(folder)][-2:] == [128, 160]
    events = EventAccumulator(str(folder / "logs" / "two_phase"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(16, 161, 16))
    assert list(losses(folder)) == list(range(16, 161, 16))


def test_a_validation_that_was_missed_is_made_up_for(every_step: Path, image_folder: Path, tmp_path: Path) -> None:
    """A run that was killed between its last checkpoint and validation is validated when it is resumed."""
    folder = tmp_path / "run"
    shutil.copytree(every_step, folder, ignore=shutil.ignore_patterns("logs", "pipeline"))
    *others, last = records(folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in others))
    flags = (LATEST, f"--validation-dataset={image_folder}", "--validation-steps=2", "--more-ema-decays=0.25")
    for _ in range(2):  # once is enough
        run(arguments(image_folder, folder, *flags, training_examples=128, ema_decay=0.5))
        *before, made = records(folder)
        assert (before, made["validation"]) == (others, last["validation"] | {"dataset": str(image_folder)})
        assert made == {
            **{name: pytest.approx(value) for name, value in last.items()},
            "validation": made["validation"],
        }


def test_averages_that_are_not_finite_are_not_published(every_step: Path, image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(every_step, folder, ignore=shutil.ignore_patterns("logs", "pipeline*"))
    *_, poisoned, last = checkpoint_files(folder)
    last.unlink()
    state = torch.load(poisoned, weights_only=True)
    state["ema"]["shadow_params"][0].fill_(torch.nan)
    torch.save(state, poisoned)
    flags = (LATEST, "--more-ema-decays=0.25")
    run(arguments(image_folder, folder, *flags, training_examples=128, ema_decay=0.5), code=1)
    assert checkpoint_files(folder)[-1] == poisoned
    assert not (folder / "pipeline").exists()
