"""Peak memory of `diffae-hub encode` against the number of images: it should not grow.

    python benchmarks/benchmark_encode_memory.py
    python benchmarks/benchmark_encode_memory.py --dataset test.parquet --counts 1000 10000

Every run is a process of its own; its peak is the resident set that the operating system reports at its end, which
includes mapped pages of the data file. Without `--dataset`, PNG files of random pixels are made, the largest kind. A
shard stays in memory until it is written, so all runs use one shard size.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32


def make_images(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / f"{index:06d}.png")


def encode(dataset: str, count: int, output: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Returns the peak memory in MiB and the seconds of one run."""
    command = [sys.executable, "-m", "diffae_hub.cli", "encode", dataset, "--model", options.model, "--json"]
    command += ["--num-images", str(count), "--output", str(output), "--shard-size", str(options.shard_size)]
    command += ["--streaming"] * options.streaming
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss / 1024, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--dataset", help="as in `diffae-hub encode`")
    parser.add_argument("--shard-size", type=int, default=1_000, help="as in `diffae-hub encode`")
    parser.add_argument("--streaming", action="store_true", help="as in `diffae-hub encode`")
    parser.add_argument("--model", default="cifar10-32-small")
    options = parser.parse_args()
    print("| images | peak memory, MiB | seconds, start included |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        dataset = options.dataset
        if dataset is None:
            dataset = f"{name}/images"
            Path(dataset).mkdir()
            make_images(Path(dataset), max(options.counts))
        for count in options.counts:
            memory, seconds = encode(dataset, count, Path(name) / f"codes-{count}", options)
            print(f"| {count:,} | {memory:,.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
