"""Two processes give the same result as one, and end together."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from diffae_hub.training import trainer

from .runner import WITHOUT_DROPOUT, arguments, records, run, states, write_images


def test_accumulation_and_two_processes_equal_one(image_folder: Path, tmp_path: Path) -> None:
    """A batch of 15 is taken as a whole, in accumulated parts of 5, 5 and 5, and as 7 and 8 in two processes.

    After four steps, the optimizer's averages compare the gradients.
    """
    common = {"training_examples": 60, "batch_size": 15, "max_grad_norm": 1e9, "warmup_examples": 0, **WITHOUT_DROPOUT}
    whole, parts, two = (tmp_path / name for name in ("whole", "parts", "two"))
    for folder, flags, processes in ((whole, (), 1), (parts, ("--gradient-accumulation-steps=3",), 1), (two, (), 2)):
        run(arguments(image_folder, folder, *flags, **common), processes=processes)
        assert json.loads((folder / "configuration.json").read_text())["num_processes"] == processes

    expected = states(whole)[-1]
    assert float(max(s["exp_avg"].abs().max() for s in expected["optimizer"]["state"].values())) > 1e-3
    for folder in (parts, two):
        state = states(folder)[-1]
        for index, average in expected["optimizer"]["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                ours, theirs = state["optimizer"]["state"][index][name], average[name]
                scale = float(theirs.abs().max())
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * scale + 1e-9)
        assert records(folder)[-1]["loss"] == pytest.approx(records(whole)[-1]["loss"], rel=1e-5)


def test_unreadable_image_in_one_of_two_processes(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    (folder / "007.png").write_bytes(b"broken")
    text = run(arguments(folder, tmp_path / "run", training_examples=48), processes=2, code=1)
    messages = re.findall(r"diffae-hub[^\n]*: [^\n]*", text)
    assert sum("007.png" in message for message in messages) == 1, text


def stop_after_48() -> None:
    """Sends SIGTERM twice, as a scheduler and torchrun do, and only to the second process."""
    rate = trainer.learning_rate_at

    def signalled_rate(examples_seen: int, *rest: object) -> float:
        for _ in range(2 if examples_seen == 48 and os.environ["RANK"] == "1" else 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(examples_seen, *rest)

    trainer.learning_rate_at = signalled_rate


def test_two_streaming_processes_are_stopped_and_resumed(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", count=41)  # 21 and 20 of them
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ("--streaming", "--shuffle-buffer=7", "--checkpoint-every=1000", "--resume-from-checkpoint=latest")
    run(arguments(folder, whole, *flags, training_examples=96), processes=2)

    argv = arguments(folder, broken, *flags, training_examples=96)
    text = run(argv, stop_after_48, processes=2)
    assert "stopped by a signal at 48 examples" in text
    (state,) = states(broken)
    assert state["stream_positions"][0] != state["stream_positions"][1]

    text = run(argv, code=2)
    assert "processes" in text.splitlines()[-1]

    text = run(argv, processes=2)
    assert "at 48 examples" in text
    first, second = states(whole)[-1], states(broken)[-1]
    assert first["stream_positions"] == second["stream_positions"]
    for name, weight in first["model"].items():
        torch.testing.assert_close(second["model"][name], weight, rtol=1e-5, atol=1e-7)
