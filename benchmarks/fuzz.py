"""Runs commands on damaged and hostile files, for as long as you like, and prints what should not happen.

    python benchmarks/fuzz.py --minutes 60

Each case is a child process that runs one command on a damaged copy of a sound file: bytes changed, cut, doubled or
inserted, values of a JSON file replaced. A *finding* is a traceback, more than one line on stderr, an exit code other
than 0 and 2, a crash, more than 30 seconds of processor time, more than 2 GB above the start, a file left half-written,
or the marker that hostile pickles write when they run. Findings are kept in `--output`, with the file that caused them.
"""

import argparse
import collections
import json
import os
import pickle
import random
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from diffae_hub import ConditionedUNet2DModel, DiffusionAutoencoderPipeline, SemanticEncoderModel, VPDDIMScheduler
from diffae_hub.cli.main import main as command_line

CPU_SECONDS, MEMORY = 30, 2 * 2**30
NUMBERS = [True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, -1e-9, float("nan")]
TEXTS = ["", "../..", "\x1b[31m", "é" * 300, "shifted_cosine"]
STRANGE = [None, *NUMBERS, *TEXTS, [], [[]], {}, {"a": {}}, [10**9] * 3, ["diffusers", "UNet2DModel"], ["os", "system"]]
LIBTIFF = re.compile(r"(tempfile\.tif|TIFF\w+|\w+Decode): ")  # Pillow lets libtiff write to stderr by itself
FORMATS = {"png": {}, "jpeg": {}, "webp": {}, "gif": {}, "bmp": {}, "tiff": {"compression": "tiff_lzw"}, "ppm": {}}


class Hostile:
    """An object that would write the marker if it were unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def sound_files(folder: Path, marker: Path) -> dict[str, list[Path]]:
    """Writes sound files of each kind that the commands read."""
    images = []
    for suffix, options in FORMATS.items():
        for mode in ("RGB", "L") if suffix != "webp" else ("RGB",):
            images.append(folder / f"{mode}.{suffix}")
            Image.radial_gradient("L").resize((40, 33)).convert(mode).save(images[-1], suffix, **options)
    sizes = {"sample_size": 16, "latent_dim": 8, "base_channels": 8, "channel_multipliers": (1, 2),
             "layers_per_block": 1, "attention_resolutions": (8,), "norm_num_groups": 4}  # fmt: skip
    parts = SemanticEncoderModel(**sizes), ConditionedUNet2DModel(**sizes, time_embed_dim=16), VPDDIMScheduler()
    DiffusionAutoencoderPipeline(*parts).save_pretrained(folder / "model")
    weights = {f"ema_model.layer{index}.weight": torch.randn(4, 4) for index in range(20)}
    checkpoints = []
    for name, content in {
        "plain": {"state_dict": weights, "epoch": 3, "hyper_parameters": {"lr": 1e-4}},
        "hostile": {"state_dict": weights, "callbacks": Hostile(marker)},
        "odd": {"state_dict": weights, "classes": {int: [Path("x"), complex(1, 2), range(3)], "d": {1, 2}}},
    }.items():
        for zipped in (True, False):
            checkpoints.append(folder / f"{name}-{zipped}.ckpt")
            torch.save(content, checkpoints[-1], _use_new_zipfile_serialization=zipped)
    checkpoints.append(folder / "pickle.ckpt")
    checkpoints[-1].write_bytes(pickle.dumps({"state_dict": Hostile(marker)}))
    return {"image": images, "model": [folder / "model"], "checkpoint": checkpoints}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Makes a few changes at random places, more often near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = int(len(changed) * rng.random() ** rng.choice((1, 4)))
        kind = rng.randrange(6)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            changed[place:place] = rng.randbytes(rng.choice((1, 4, 4096)))
        elif kind == 2:
            changed[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        elif kind == 3:
            start = rng.randrange(len(changed) + 1)
            changed[place:place] = changed[start : start + rng.choice((8, 64, 1024))]
        else:
            changed[place : place + 1] = rng.randbytes(1)
        if not changed:
            break
    return bytes(changed)


def strange_json(path: Path, rng: random.Random) -> None:
    """Adds, replaces or removes one value; sometimes nests the document."""
    document = json.loads(path.read_text())
    name = rng.choice(list(document))
    kind = rng.randrange(4)
    if kind == 0:
        del document[name]
    elif kind == 1:
        document[rng.choice(["extra", "_class_name", "../x", "decoder"])] = rng.choice(STRANGE)
    else:
        document[name] = rng.choice(STRANGE)
    path.write_text(json.dumps(document) if kind != 3 else "[" * rng.choice((10, 100_000)) + json.dumps(document))


def image_case(sound: list[Path], folder: Path, rng: random.Random) -> list[str]:
    """Makes a damaged image, sometimes under another format's name."""
    source = rng.choice(sound)
    path = folder / f"image.{rng.choice((source.suffix[1:], 'png'))}"
    path.write_bytes(damaged(source.read_bytes(), rng))
    return ["reconstruct", str(path), "--steps=1", f"--output={folder / 'out'}"]


def model_case(sound: list[Path], folder: Path, rng: random.Random) -> list[str]:
    """Makes a pipeline folder with one bad file."""
    model = shutil.copytree(sound[0], folder / "model")
    path = rng.choice(sorted(path for path in model.rglob("*") if path.is_file()))
    if path.suffix == ".json" and rng.random() < 0.7:
        strange_json(path, rng)
    else:
        path.write_bytes(damaged(path.read_bytes(), rng))
    image = folder / "image.png"
    Image.new("RGB", (20, 20)).save(image)
    return ["reconstruct", str(image), f"--model={model}", "--steps=1", f"--output={folder / 'out'}"]


def checkpoint_case(sound: list[Path], folder: Path, rng: random.Random) -> list[str]:
    """Makes a damaged checkpoint; one in five is undamaged."""
    source, path = rng.choice(sound), folder / "last.ckpt"
    path.write_bytes(source.read_bytes() if rng.random() < 0.2 else damaged(source.read_bytes(), rng))
    return ["convert", str(path), str(folder / "out")]


def run(command: list[str], folder: Path) -> str | None:
    """Runs a case in a child process. Returns what is wrong, or None."""
    messages = folder / "stderr"
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        os.dup2(os.open(messages, os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 99
        try:
            code = command_line(command)
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    text = messages.read_text(errors="replace")
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}"
    if "Traceback" in text or os.WEXITSTATUS(status) not in (0, 2):
        return f"exit code {os.WEXITSTATUS(status)}: {text[-300:]}"
    lines = [line for line in text.strip().splitlines() if not LIBTIFF.match(line)]
    if os.WEXITSTATUS(status) == 2 and len(lines) != 1:
        return f"{len(text.splitlines())} lines: {text[-300:]}"
    grown = usage.ru_maxrss * 1024 - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if grown > MEMORY:
        return f"{grown / 2**30:.1f} GB"
    if os.WEXITSTATUS(status) == 2 and any((folder / "out").rglob("*")):
        return f"left {sorted(str(path) for path in (folder / 'out').rglob('*'))[:3]}"
    return None


def main() -> int:
    """Runs cases until the time is up. The exit code is 1 if there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("findings"), metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked child would wait for threads that it does not have
    makers: dict[str, Callable[..., list[str]]] = {
        "image": image_case,
        "model": model_case,
        "checkpoint": checkpoint_case,
    }
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        work, marker = Path(name), Path(name) / "marker"
        (work / "sound").mkdir()
        sound, started, seed = sound_files(work / "sound", marker), time.monotonic(), options.seed
        while time.monotonic() - started < 60 * options.minutes:
            rng, folder = random.Random(seed), work / "case"
            kind = rng.choice(list(makers))
            folder.mkdir()
            finding = run(makers[kind](sound[kind], folder, rng), folder)
            counts[kind] += 1
            if marker.exists():
                marker.unlink()
                finding = "executed"
            if finding is not None:
                counts[f"{kind}: findings"] += 1
                shutil.copytree(folder, options.output / f"{seed}", dirs_exist_ok=True)
                print(f"seed {seed}, {kind}: {finding}", flush=True)
            shutil.rmtree(folder)
            seed += 1
    print(f"{time.monotonic() - started:.0f} s, seeds {options.seed} to {seed - 1}: {dict(counts)}")
    return int(any("findings" in name for name in counts))


if __name__ == "__main__":
    sys.exit(main())
