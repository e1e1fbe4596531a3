"""Folders of models that are malformed or hostile: one line, at once, and nothing but regular files is opened."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

INDEX, CONFIG, SCHEDULER = "model_index.json", "encoder/config.json", "scheduler/scheduler_config.json"
ENCODER = "encoder/diffusion_pytorch_model.safetensors"
DEEP = "[" * 100_000 + "]" * 100_000
HEADER = struct.pack("<Q", 2**60) + b"{}"
Change = str | bytes | dict[str, object] | Callable[[Path], object]


def shards(content: str) -> Change:
    return lambda path: path.with_name(f"{path.name}.index.json").write_text(content)


# A file, and what is in its place: other content, its JSON object with changes, or what a function of its path makes.
CASES: dict[str, tuple[str, Change]] = {
    "an empty index": (INDEX, "{}"),
    "an index that is a list": (INDEX, "[]"),
    "a deeply nested index": (INDEX, DEEP),
    "an index that is no text": (INDEX, b"\xff\xfe\x00"),
    "a component that is a number": (INDEX, {"encoder": 3}),
    "a foreign class": (INDEX, {"encoder": ["os", "system"]}),
    "a class that is no model": (INDEX, {"encoder": ["diffae_hub", "__version__"]}),
    "a missing class": (INDEX, {"encoder": ["diffae_hub", "Nothing"]}),
    "a swapped component": (INDEX, {"encoder": ["diffae_hub", "VPDDIMScheduler"]}),
    "a null component": (INDEX, {"encoder": [None, None]}),
    "a configuration of wrong types": (CONFIG, {"channel_multipliers": {"a": 1}}),
    "an enormous configuration": (CONFIG, {"latent_dim": 10**10}),
    "a schedule of words": (SCHEDULER, {"num_train_timesteps": "many"}),
    "shards in a list": (ENCODER, shards("[]")),
    "shards without a map": (ENCODER, shards("{}")),
    "shards elsewhere": (ENCODER, shards('{"metadata": {}, "weight_map": {"head.bias": "../../x.safetensors"}}')),
    "empty weights": (ENCODER, b""),
    "a header without end": (ENCODER, HEADER),
    "missing weights": (ENCODER, lambda path: None),
    "a pipe as configuration": (CONFIG, os.mkfifo),
    "a pipe as index": (INDEX, os.mkfifo),
    "a pipe as weights": (ENCODER, os.mkfifo),
    "a folder as configuration": (CONFIG, Path.mkdir),
    "a link to itself": (ENCODER, lambda path: path.symlink_to(path.name)),
    "enormous depth": (CONFIG, {"layers_per_block": 10**7}),
    "an enormous schedule": (SCHEDULER, {"num_train_timesteps": 2 * 10**9}),
}


def damage(path: Path, change: Change) -> None:
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change)
    path.unlink()
    if callable(change):
        change(path)
    else:
        path.write_bytes(change.encode() if isinstance(change, str) else change)


@pytest.mark.parametrize("case", CASES)
def test_malformed_model_is_one_line(case: str, model: str, tmp_path: Path, refusal) -> None:
    name, change = CASES[case]
    damage(Path(model, name), change)
    (tmp_path / "photo.ppm").write_bytes(b"P6 2 2 255 " + bytes(12))
    words = ("reconstruct", tmp_path / "photo.ppm", "--model", model, "--output", tmp_path / "out")
    assert str(tmp_path) in refusal(*words)
    assert not (tmp_path / "out").exists()
