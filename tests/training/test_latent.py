"""Latent code models: a mixture that no Gaussian can fit, resuming, and what is refused."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from diffae_hub.training.latent import LatentOptions, LatentTrainer, train_latent

TINY = {"hidden_dim": 64, "num_layers": 3, "batch_size": 128, "learning_rate": 3e-3, "ema_decay": 0.99}


def two_modes(count: int = 2000) -> np.ndarray:
    """Returns codes of four numbers, all around 5 + 2 or all around 5 - 2, with a deviation of 0.3."""
    rng = np.random.default_rng(0)
    return (rng.choice([-2.0, 2.0], (count, 1)) + 0.3 * rng.normal(size=(count, 4))).astype(np.float32) + 5


@pytest.mark.parametrize("recipe", ["official", "velocity"])
def test_two_modes_are_learned(accelerator: Accelerator, tmp_path: Path, recipe: str) -> None:
    """A Gaussian with the same covariance would have 38 % of its codes within 1 of the middle of the modes."""
    length = {"training_examples": 64_000, "checkpoint_every": 64_000, "validation_samples": 500}
    options = LatentOptions(recipe=recipe, **length, **TINY)
    codes = two_modes()
    model, scheduler = train_latent(codes, options, tmp_path, accelerator)
    trainer = LatentTrainer(codes, options, accelerator)
    trainer.network.load_state_dict(model.state_dict())
    sampled = model.denormalize(trainer.sampled_codes(1000)) - 5
    middle = sampled.mean(dim=1)
    assert 0.4 < float((middle > 0).float().mean()) < 0.6
    assert float((middle.abs() < 1).float().mean()) < 0.03
    assert float((sampled - middle.sign()[:, None] * 2).std()) == pytest.approx(0.3, abs=0.12)
    assert scheduler.config.prediction_type == {"official": "epsilon", "velocity": "v_prediction"}[recipe]


def test_a_resumed_run_is_the_same_and_another_is_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    options = LatentOptions(training_examples=2560, checkpoint_every=1280, validation_samples=50, **TINY)
    whole, _ = train_latent(two_modes(), options, tmp_path, accelerator)
    (tmp_path / "checkpoint-2560.pt").unlink()
    resumed, _ = train_latent(two_modes(), options, tmp_path, accelerator)
    longer = tmp_path / "longer"
    train_latent(two_modes(), replace(options, training_examples=1280), longer, accelerator)
    for run in (resumed, train_latent(two_modes(), options, longer, accelerator)[0]):
        for ours, theirs in zip(run.state_dict().values(), whole.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["examples"] for line in lines] == [1280, 2560]
    for name, change in (
        ("training_examples", {"training_examples": 1280}),
        ("seed", {"seed": 1}),
        ("recipe", {"recipe": "velocity"}),
        ("codes", {}),
    ):
        codes = two_modes(1999) if name == "codes" else two_modes()
        with pytest.raises(ValueError, match=name):
            train_latent(codes, replace(options, **change), tmp_path, accelerator)


def test_a_stopped_run_goes_on_where_it_was(accelerator: Accelerator, tmp_path: Path, monkeypatch) -> None:
    options = LatentOptions(training_examples=1280, checkpoint_every=1280, validation_samples=50, **TINY)
    whole, _ = train_latent(two_modes(), options, tmp_path / "whole", accelerator)
    ordinary, step = signal.signal(signal.SIGINT, signal.SIG_IGN), LatentTrainer.step  # as in a background job

    def disturbed(trainer: LatentTrainer) -> torch.Tensor:
        if trainer.examples_seen == 256:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer)

    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(LatentTrainer, "step", disturbed)
            train_latent(two_modes(), options, tmp_path / "run", accelerator)
    finally:
        signal.signal(signal.SIGINT, ordinary)
    assert (tmp_path / "run" / "checkpoint-384.pt").is_file()
    resumed, _ = train_latent(two_modes(), options, tmp_path / "run", accelerator)
    for ours, theirs in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_codes_that_cannot_be_used(accelerator: Accelerator) -> None:
    options = LatentOptions(**TINY, validation_fraction=0.95)
    for codes in (np.full((50, 4), np.nan), np.zeros((5, 4)), np.zeros(50)):
        with pytest.raises(ValueError, match="^codes"):
            LatentTrainer(codes, options, accelerator)
    with pytest.raises(ValueError, match="validation_fraction"):  # too much is held out
        LatentTrainer(two_modes(12), options, accelerator)
