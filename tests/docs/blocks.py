"""Runs the blocks of a page of the documentation as a reader does: one after another, in one folder, on tiny data."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from diffae_hub.cli import main as command_line

from ..conftest import pattern

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs"

# Lines that are not run, and why.
NOT_RUN = {
    "pip install": "the environment of the tests has everything",
    "hf auth login": "asks for a token; the tests have one in HF_TOKEN",
}

# (page, text on it, text that is run): the same command on less. Each text must be there.
_TRAIN = "--config tiny.json --training-examples 16 --num-workers 0 --validation-images 2 --validation-steps 2"
SMALLER = [
    ("index.md", "--tiles 4", "--tiles 1 --steps 5"),
    ("index.md", "num_images=4", "num_images=2, num_inference_steps=5"),
    ("index.md", "num_frames=9", "num_frames=3, num_inference_steps=5"),
    ("guides/train.md", "--preset small-64", f"--preset cifar10-32-small {_TRAIN}"),
    ("guides/fine_tune.md", "--training-examples 100000", "--training-examples 16 --batch-size 8 --num-workers 0"),
    ("guides/fine_tune.md", "--metrics lpips_alex", "--metrics --steps 2"),
    ("guides/fine_tune.md", "--num-images 50", "--num-images 2"),
    ("guides/edit.md", '"smiling": 0.3}).images', '"smiling": 0.3}, num_inference_steps=5).images'),
    ("guides/edit.md", "--output edited", "--output edited --steps 5"),
    (
        "guides/generate.md",
        "--output with_samples",
        "--output with_samples --training-examples 512 --hidden-dim 32 --num-layers 2 --validation-samples 50",
    ),
    ("guides/generate.md", "num_images=4", "num_images=2, num_inference_steps=5, latent_num_inference_steps=5"),
    ("guides/evaluate.md", "held_out --output evaluation\n", "held_out --output evaluation --metrics --steps 2\n"),
    ("guides/evaluate.md", "--metrics lpips_alex", "--metrics --steps 2"),
    (
        "guides/replicate.md",
        "40000 --rows v_prediction-SC4-2phase v_prediction-SC4-1phase",
        "64 --rows v_prediction-SC4-1phase --num-images 2 --steps 2 --metrics",
    ),
    ("guides/publish.md", "me/my-autoencoder", "tester/my-autoencoder"),
    ("guides/many_gpus.md", "accelerate launch --num_processes 4 -m diffae_hub.cli", "diffae-hub"),
    ("guides/many_gpus.md", "--preset celeba-64", f"--preset cifar10-32-small {_TRAIN}"),
    ("guides/many_gpus.md", "--preset small-64", f"--preset cifar10-32-small {_TRAIN}"),
    ("guides/many_gpus.md", "--dataset held_out --output", "--dataset held_out --metrics --steps 2 --output"),
    ("official_checkpoints.md", '"cuda"', '"cpu"'),
    *(
        ("official_checkpoints.md", f"num_inference_steps={steps}", "num_inference_steps=10")
        for steps in (250, 20, 100)
    ),
    ("guides/streaming.md", "--preset small-64", f"--preset cifar10-32-small {_TRAIN}"),
]

# Small networks for any preset of 32 pixels.
_NETWORK = {"base_channels": 8, "channel_multipliers": [1, 2], "norm_num_groups": 4, "latent_dim": 16}
TINY_EXPERIMENT = {"encoder": _NETWORK, "decoder": {**_NETWORK, "latent_spatial_size": 16}, "batch_size": 8}


def prepare(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    places = {"photos": 12, "held_out": 4, "faces/neutral": 12, "faces/smiling": 12}
    for name, count in places.items():
        Path(folder, name).mkdir(parents=True)
        for index in range(count):
            pattern(rng, 0.65 if name == "faces/smiling" else 0.35, 40).save(Path(folder, name, f"{index:03d}.png"))
    for name in ("photo.jpg", "other.jpg"):
        pattern(rng, 0.5, 40).save(folder / name)
    for name in ("train", "test"):
        pictures = [{"bytes": path.read_bytes(), "path": None} for path in sorted((folder / "photos").iterdir())]
        pq.write_table(pa.table({"image": pictures}), folder / f"{name}.parquet")
    Path(folder, "tiny.json").write_text(json.dumps(TINY_EXPERIMENT))
    Path(folder, "examples").symlink_to(ROOT / "examples")
    shutil.copytree(ROOT / "src" / "diffae_hub" / "pretrained" / "cifar10-32-small", folder / "runs/mine/pipeline")
    (folder / "runs/mine/pipeline/README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")


def blocks_of(page: str) -> list[tuple[str, str]]:
    """(language, text) of the blocks that a reader would run, made smaller."""
    text = (PAGES / page).read_text()
    for name, original, smaller in SMALLER:
        if name == page:
            assert original in text, f"{page} no longer has {original!r}"
            text = text.replace(original, smaller)
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL)
    return [block for block in blocks if not block[1].startswith(tuple(NOT_RUN))]


def run_page(page: str) -> dict[str, Any]:
    """Runs a page in the present folder; the variables of its Python blocks."""
    if page == "guides/train.md":
        shutil.rmtree("runs/mine")
    if page == "guides/streaming.md":
        Path("shards").mkdir()
    namespace: dict[str, Any] = {}
    for language, block in blocks_of(page):
        if language == "python":
            exec(compile(block, page, "exec"), namespace)
        elif block.startswith("diffae-hub "):
            for line in block.replace("\\\n", " ").splitlines():
                assert command_line.main(shlex.split(line)[1:]) == 0, line
        elif block.startswith("python "):
            _, script, *words = shlex.split(block.replace("\\\n", " "))
            try:
                with mock.patch("sys.argv", [script, *words]):
                    runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                assert not end.code, block
        else:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
            subprocess.run(["bash", "-ec", block], env=environment, check=True, timeout=900)
    return namespace
