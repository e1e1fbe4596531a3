"""Folders of models that are malformed or hostile: one line, at once, and nothing but regular files is opened."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from diffae_hub.cli.main import main

ENCODER = "encoder/diffusion_pytorch_model.safetensors"


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def in_place_of(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def shards(content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / ENCODER).unlink()
        (folder / f"{ENCODER}.index.json").write_text(content)

    return change


DEEP = "[" * 100_000 + "]" * 100_000
HEADER = struct.pack("<Q", 2**60) + b"{}"

CASES = {
    "an empty index": write("model_index.json", "{}"),
    "an index that is a list": write("model_index.json", "[]"),
    "a deeply nested index": write("model_index.json", DEEP),
    "an index that is no text": write("model_index.json", b"\xff\xfe\x00"),
    "a component that is a number": edit("model_index.json", encoder=3),
    "a component of numbers": edit("model_index.json", encoder=[1, 2]),
    "a foreign class": edit("model_index.json", encoder=["os", "system"]),
    "a class that is no model": edit("model_index.json", encoder=["diffae_hub", "__version__"]),
    "a missing class": edit("model_index.json", encoder=["diffae_hub", "Nothing"]),
    "a swapped component": edit("model_index.json", encoder=["diffae_hub", "VPDDIMScheduler"]),
    "a null component": edit("model_index.json", encoder=[None, None]),
    "a deeply nested configuration": write("encoder/config.json", DEEP),
    "a configuration that is a list": write("encoder/config.json", "[]"),
    "a configuration of wrong types": edit("encoder/config.json", channel_multipliers={"a": 1}),
    "an enormous configuration": edit("encoder/config.json", latent_dim=10**10),
    "a schedule of words": edit("scheduler/scheduler_config.json", num_train_timesteps="many"),
    "shards in a list": shards("[]"),
    "shards without a map": shards("{}"),
    "shards elsewhere": shards(json.dumps({"metadata": {}, "weight_map": {"head.bias": "../../x.safetensors"}})),
    "empty weights": write(ENCODER, b""),
    "weights that are text": write(ENCODER, "weights" * 99),
    "a header without end": write(ENCODER, HEADER),
    "missing weights": lambda folder: (folder / ENCODER).unlink(),
    "a pipe as configuration": in_place_of("encoder/config.json", os.mkfifo),
    "a pipe as index": in_place_of("model_index.json", os.mkfifo),
    "a pipe as weights": in_place_of(ENCODER, os.mkfifo),
    "a device as weights": in_place_of(ENCODER, lambda path: path.symlink_to("/dev/zero")),
    "a folder as configuration": in_place_of("encoder/config.json", Path.mkdir),
    "a link to itself": in_place_of(ENCODER, lambda path: path.symlink_to(path.name)),
    "enormous depth": edit("encoder/config.json", layers_per_block=10**7),
    "an enormous schedule": edit("scheduler/scheduler_config.json", num_train_timesteps=2 * 10**9),
}


@pytest.mark.parametrize("case", CASES)
def test_malformed_model_is_one_line(case: str, model: str, tmp_path: Path, capfd) -> None:
    CASES[case](Path(model))
    (tmp_path / "photo.ppm").write_bytes(b"P6 2 2 255 " + bytes(12))
    output = tmp_path / "out"
    assert main(["reconstruct", str(tmp_path / "photo.ppm"), "--model", model, "--output", str(output)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert str(tmp_path) in captured.err
    assert not output.exists()
