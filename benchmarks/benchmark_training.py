"""Speed and memory of a training step, against the plain loop in the same run, and of the data loader alone.

    python benchmarks/benchmark_training.py
    python benchmarks/benchmark_training.py --presets cifar10-32 --batch-size 256 --device cuda --compile

The plain loop is a first simple version: eager, float32, NCHW, Adam and averaged weights with their default settings,
no accelerate. The other rows are the step of training/trainer.py with the options named. Both do the whole step
(timesteps and noise, loss, gradients, clipping, Adam, averaged weights) on the same weights and images. Variants take
turns, `--rounds` times, so that a machine that slows down affects all of them; the best round counts. Memory on the CPU
is the peak resident set of a process of its own, above its size before the networks, and on CUDA the allocator's peak.
`MFU` is the step's floating-point operations (counted by PyTorch) over the matmul rate on the same machine in the same
dtype. The last table times only the loader, on images of the preset's size or JPEGs of the size `--photographs`: files
with random access, and a parquet file as a stream, where `--num-workers` are threads of one process.
"""

import argparse
import json
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from benchmark_inference import PeakMemory
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from diffae_hub.data.loader import ImageTensorDataset, ResumableBatchSampler, TrainingDataLoader
from diffae_hub.data.open_dataset import load_rows, open_dataset
from diffae_hub.data.streaming import StreamedBatches, streaming_loader
from diffae_hub.data.transform import ImageTransform
from diffae_hub.training.objective import DiffusionAutoencoder, denoising_loss
from diffae_hub.training.options import TrainingOptions
from diffae_hub.training.presets import TrainingPreset, preset_named
from diffae_hub.training.trainer import TwoPhaseTrainer

MIB = 2**20


def plain_step(preset: TrainingPreset, batch_size: int, device: torch.device) -> Callable[[torch.Tensor], None]:
    """Builds the step of a first simple loop."""
    model = DiffusionAutoencoder(preset.build("encoder"), preset.build("decoder")).to(device).train()
    scheduler = preset.build("scheduler")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    ema = EMAModel(model.parameters(), decay=preset.ema_decay)

    def step(images: torch.Tensor) -> None:
        images = images.to(device)
        timesteps = torch.rand(batch_size, device=device) * 1000
        noise = torch.randn_like(images)
        loss = denoising_loss(model, scheduler, images, noise, timesteps).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), preset.max_grad_norm)
        optimizer.step()
        ema.step(model.parameters())

    return step


def script_step(
    preset: TrainingPreset, batch_size: int, device: torch.device, variant: str
) -> Callable[[torch.Tensor], None]:
    """Builds the step of training/trainer.py, with the options named in `variant`."""
    AcceleratorState._reset_state(reset_partial_state=True)  # the last variant may have had another precision
    accelerator = Accelerator(mixed_precision="bf16" if "bf16" in variant else "no", cpu=device.type == "cpu")
    preset = preset.with_overrides({"batch_size": batch_size, "phase1_fraction": 0.0, "optimizer": "adam"})
    words = {"compile": "compile" in variant, "gradient_checkpointing": "checkpointing" in variant}
    options = TrainingOptions(dataset="none", output=Path("none"), **words)
    return TwoPhaseTrainer(preset, options, accelerator).step


def build_step(
    variant: str, preset: TrainingPreset, batch_size: int, device: torch.device
) -> Callable[[torch.Tensor], None]:
    torch.manual_seed(0)
    if variant == "plain loop":
        return plain_step(preset, batch_size, device)
    return script_step(preset, batch_size, device, variant)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measures floating-point operations per second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 1024  # many CPUs emulate bfloat16: they take seconds for that
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def step_operations(preset: TrainingPreset) -> float:
    """Counts floating-point operations of forward and backward pass per example, without computing anything."""
    with torch.device("meta"):
        model = DiffusionAutoencoder(preset.build("encoder"), preset.build("decoder"))
        size, channels = preset.encoder["sample_size"], preset.encoder.get("in_channels", 3)
        images = torch.empty(1, channels, size, size)
        with FlopCounterMode(display=False) as counter:
            model(images, images, torch.empty(1)).sum().backward()
    return float(counter.get_total_flops())


def peak_memory(variant: str, preset: TrainingPreset, batch_size: int, images: torch.Tensor, threads: int) -> float:
    """Measures the MiB that two steps add to a fresh process (CPU)."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(sender, variant, preset, batch_size, images, threads))
    process.start()
    sender.close()
    value = receiver.recv()
    process.join()
    return value


def _measure_memory(sender, variant: str, preset: TrainingPreset, batch_size: int, images, threads: int) -> None:  # noqa: ANN001
    torch.set_num_threads(threads)
    with PeakMemory(torch.device("cpu")) as memory:
        step = build_step(variant, preset, batch_size, torch.device("cpu"))
        for _ in range(2):
            step(images)
    sender.send(memory.mebibytes)


def benchmark_steps(name: str, arguments: argparse.Namespace, device: torch.device) -> list[dict]:
    preset = preset_named(name)
    batch_size = arguments.batch_size or preset.batch_size
    size, channels = preset.encoder["sample_size"], preset.encoder.get("in_channels", 3)
    images = torch.rand(batch_size, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if device.type == "cuda":
        images = images.pin_memory()
    variants = ["plain loop", "script", "script bf16"]
    if arguments.compile:
        variants += ["script compile", "script bf16 compile"]
    best = dict.fromkeys(variants, float("inf"))
    memory: dict[str, float] = {}
    rates = dict.fromkeys((torch.float32, torch.bfloat16), 0.0)
    for _ in range(arguments.rounds):
        for dtype in rates:  # in every round, like the variants, as the machine may be slow in one
            rates[dtype] = max(rates[dtype], matmul_rate(device, dtype))
        for variant in variants:
            torch.compiler.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            step = build_step(variant, preset, batch_size, device)
            for _ in range(arguments.warmup):
                step(images)
            for _ in range(arguments.steps):
                wait(device)
                start = time.perf_counter()
                step(images)
                wait(device)
                best[variant] = min(best[variant], time.perf_counter() - start)
            if device.type == "cuda":
                memory[variant] = torch.cuda.max_memory_allocated() / MIB
            del step
    operations = step_operations(preset) * batch_size
    rows = []
    for variant, seconds in best.items():
        if device.type == "cpu" and not arguments.no_memory and "compile" not in variant:
            memory[variant] = peak_memory(variant, preset, batch_size, images, arguments.threads)
        rate = rates[torch.bfloat16 if "bf16" in variant else torch.float32]
        rows.append(
            {
                "preset": name,
                "variant": variant,
                "batch": batch_size,
                "examples/s": batch_size / seconds,
                "ratio": best["plain loop"] / seconds,
                "peak MiB": memory.get(variant),
                "MFU %": 100 * operations / seconds / rate,
            }
        )
    return rows


def benchmark_loader(name: str, arguments: argparse.Namespace) -> list[dict]:
    preset = preset_named(name)
    size = preset.encoder["sample_size"]
    transform = ImageTransform(size, horizontal_flip=preset.horizontal_flip)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        images = Path(folder) / "images"
        images.mkdir()
        for index in range(512):
            if arguments.photographs:  # smooth, so that a JPEG is as small as a photograph's
                width, height = arguments.photographs
                pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
                resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
                resized.save(images / f"{index:04d}.jpg", quality=90)
            else:
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / f"{index:04d}.png")
        # Eight copies of each make one block of the script's default size: a stream is slow at the end of a block.
        encoded = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(images.iterdir())] * 8
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": encoded}, features=features).to_parquet(Path(folder) / "train.parquet")
        for workers in arguments.num_workers:
            dataset = ImageTensorDataset(load_rows(images), transform)
            sampler = ResumableBatchSampler(len(dataset), 64, start=0, stop=64 * 500, seed=0)
            rows_in_order = open_dataset(str(Path(folder) / "train.parquet"), "train", "image", streaming=True)
            stream = StreamedBatches(rows_in_order, "image", transform, batch_size=64, buffer_size=4096, seed=0)
            loaders = {
                "random access": TrainingDataLoader(dataset, workers, batch_sampler=sampler),
                "streaming": streaming_loader(stream, workers),
            }
            for reading, loader in loaders.items():
                batches = iter(loader)
                next(batches)
                start = now = time.perf_counter()
                seconds: list[float] = []  # of waiting for each batch
                while now - start < 10 and len(seconds) < 400:
                    next(batches)
                    seconds.append(time.perf_counter() - now)
                    now += seconds[-1]
                rows.append(
                    {
                        "preset": name,
                        "reading": reading,
                        "num_workers": workers,
                        "examples/s": 64 * len(seconds) / (now - start),
                        "slowest batch, ms": 1000 * max(seconds),
                    }
                )
                del batches
    return rows


def print_table(rows: list[dict]) -> None:
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        cells = (f"{v:,.2f}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values())
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["cifar10-32-small"])
    parser.add_argument("--batch-size", type=int, help="default: the preset's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="also with torch.compile (minutes per variant)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--num-workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--photographs", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="load JPEGs of this size")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--loader-only", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{machine}, {arguments.threads} thread(s), torch {torch.__version__}\n")
    steps = []
    if not arguments.loader_only:
        steps = [row for name in arguments.presets for row in benchmark_steps(name, arguments, device)]
        print_table(steps)
        print()
    loader = [row for name in arguments.presets for row in benchmark_loader(name, arguments)]
    print_table(loader)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "steps": steps, "loader": loader}, indent=2))


if __name__ == "__main__":
    main()
