"""Runs `diffae-hub train` in separate processes, which can be killed, without importing torch again for each.

A fork server imports the libraries once; each run is a real process, forked from it.
"""

import argparse
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffae_hub.cli.main import main
from diffae_hub.flags import add_flags, from_values, with_hyphens
from diffae_hub.training import loop
from diffae_hub.training.checkpoints import checkpoint_files, load_checkpoint
from diffae_hub.training.options import TrainingOptions, resolve_experiment
from diffae_hub.training.presets import TrainingPreset

SECONDS = 900  # against hanging only

# About 15,000 parameters: a step takes milliseconds.
_ENCODER = {"sample_size": 8, "in_channels": 1, "latent_dim": 8, "base_channels": 8, "channel_multipliers": [1, 2]}
_ENCODER |= {"layers_per_block": 1, "attention_resolutions": [], "norm_num_groups": 4}
_DECODER = {**_ENCODER, "out_channels": 1, "time_embed_dim": 16, "dropout": 0.1}
TINY_EXPERIMENT = {"encoder": _ENCODER, "decoder": _DECODER, "batch_size": 16, "training_examples": 512}
TINY_EXPERIMENT |= {"warmup_examples": 64, "learning_rate": 1e-3, "horizontal_flip": True}
WITHOUT_DROPOUT = {"encoder": _ENCODER, "decoder": {**_DECODER, "dropout": 0.0}}


def write_images(folder: Path, count: int = 40, size: int = 8, seed: int = 0) -> Path:
    """Writes grayscale PNG files of smooth random patterns."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    for index in range(count):
        a, b, c = rng.uniform(-3, 3, size=3)
        pixels = (127.5 + 127.5 * np.sin(a * x + b * y + c)).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def arguments(dataset: Path, output: Path, *extra: str, **experiment: object) -> list[str]:
    output.parent.mkdir(parents=True, exist_ok=True)
    config = output.with_suffix(".json")
    config.write_text(json.dumps({**TINY_EXPERIMENT, **experiment}))
    flags = ["--preset=cifar10-32", f"--config={config}", f"--dataset={dataset}", f"--output={output}"]
    return [*flags, "--num-workers=0", "--log-every=16", "--checkpoint-every=64", *extra]


def interrupt(after: int, calls: int = 1, writing: bool = False, number: int = signal.SIGKILL) -> None:
    """Makes the loop send a signal to its own process group, at a place that does not depend on the machine's speed.

    It comes at a call (the number `calls`) of a Python or C function after the record of `after` examples, or, if
    `writing`, after the write of that checkpoint has begun; of a write with fewer calls, at its end.
    """
    left = calls
    save, append = loop.save_checkpoint, loop.append_json_lines

    def strike() -> None:
        sys.setprofile(None)
        os.killpg(0, number)

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            strike()

    def save_checkpoint(run_folder: Path, state: dict, keep: int) -> None:
        hit = writing and state["examples_seen"] >= after
        if hit:
            sys.setprofile(count)
        save(run_folder, state, keep)
        if hit:
            strike()

    def append_json_lines(path: Path, records: list[dict]) -> None:
        append(path, records)
        if not writing and records[-1]["examples"] >= after and left == calls:
            sys.setprofile(count)

    loop.save_checkpoint, loop.append_json_lines = save_checkpoint, append_json_lines


def _child(argv: list[str], output: str, environment: dict[str, str], prepare: Callable[[], object] | None) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # what a script started by hand has
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.update(environment)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    code = main(["train", *argv] if argv[0].startswith("--") else argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["diffae_hub.training.loop", "diffae_hub.cli.train", "datasets", "matplotlib.figure", "torch.utils.tensorboard"]
)


def run(argv: list[str], prepare: Callable[[], object] | None = None, processes: int = 1, code: int = 0) -> str:
    """Calls `prepare`, runs a command line, or `train` with these flags, to the end, and returns what it printed.

    Several `processes` get the environment of a launcher; the largest of their exit codes counts.
    """
    output = Path(next(a for a in argv if a.startswith("--output=")).partition("=")[2])
    launched = {}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
        launched["WORLD_SIZE"] = str(processes)
    started = []
    for rank in map(str, range(processes)):
        log = output.parent / f"{output.name}.{rank}.log"
        log.touch()
        environment = {"ACCELERATE_USE_CPU": "true", **launched}
        environment |= {"RANK": rank, "LOCAL_RANK": rank} if launched else {}
        started.append((_context.Process(target=_child, args=(argv, str(log), environment, prepare)), log))
        started[-1][0].start()
    for process, _ in started:
        process.join(SECONDS)
    codes = [process.exitcode for process, _ in started]
    for process, _ in started:
        process.kill()
    text = "".join(re.sub(r"[^\n]*\r", "", log.read_text()) for _, log in started)
    assert None not in codes, f"still running after {SECONDS} s: {text}"
    assert max(codes, key=abs) == code, text
    assert "Traceback" not in text, text
    return text


def parsed(argv: list[str]) -> tuple[TrainingOptions, TrainingPreset]:
    parser = argparse.ArgumentParser()
    add_flags(parser, TrainingOptions)
    options = from_values(TrainingOptions, vars(parser.parse_args(with_hyphens(argv))))
    return options, resolve_experiment(options)


def states(folder: Path) -> list[dict]:
    return [load_checkpoint(path) for path in checkpoint_files(folder)]


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
