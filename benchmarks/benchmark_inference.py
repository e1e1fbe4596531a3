"""Speed and memory of encode, decode, invert and one training step, against a plain implementation in the same run.

    python benchmarks/benchmark_inference.py
    python benchmarks/benchmark_inference.py --sizes small --batch-sizes 1 --quick

Each row is the median of several repetitions. Only `--steps-timed` steps of a trajectory are timed and scaled up,
because every step does the same work; the work done once is added. The column `timed` has the number of steps. `ratio`
is the throughput over that of the plain float32, NCHW, eager implementation in benchmarks/baseline.py with the same
weights, at equal quality if fewer steps reach it ("decode10"; "trip10" and "trip6", an inversion and a decoding).
`difference` is the largest absolute difference of their predictions. A training step (forward, backward, Adam; eager)
is in float32 or, for bfloat16, has float32 weights under autocast. The plain one uses the plain decoder, and the
encoder in float32 and NCHW. PyTorch counts the operations that are executed. Memory is the growth of the resident set
during the operation on the CPU, and the allocator's peak on CUDA.
"""

import argparse
import copy
import json
import math
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil
import torch
from baseline import plain_decoder
from diffusers.utils import logging
from torch.utils.flop_counter import FlopCounterMode

from diffae_hub import VPDDIMInverseScheduler, VPDDIMScheduler, VPDPMSolverMultistepScheduler
from diffae_hub.training.objective import DiffusionAutoencoder, denoising_loss
from diffae_hub.training.presets import preset_named

SIZES = {"small": "cifar10-32-small", "celeba64": "official-celeba64"}
# Scheduler, evaluations of the network, and those of a plain loop of the same quality (measured in
# docs/concepts/steps.md): 10 steps of DPM-Solver++ count as 50 of DDIM, and a round trip of 11 + 10, or of 7 + 6 with a
# fitting `time_exponent`, as one of 50 + 50.
TRAJECTORIES = {
    "decode20": (VPDDIMScheduler, 20, 20),
    "decode50": (VPDDIMScheduler, 50, 50),
    "invert50": (VPDDIMInverseScheduler, 50, 50),
    "decode10": (VPDPMSolverMultistepScheduler, 10, 50),
    "trip10": (VPDDIMInverseScheduler, 21, 100),
    "trip6": (VPDDIMInverseScheduler, 13, 100),
}
OPERATIONS = ("encode", *TRAJECTORIES, "train")
MIB = 2**20


class PlainAutoencoder(DiffusionAutoencoder):
    """The training forward pass through the plain decoder."""

    def forward(self, images: torch.Tensor, noisy_images: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return plain_decoder(self.decoder, noisy_images, timesteps, self.encoder(images).latent_code)


class PeakMemory:
    """Peak memory of a block, in MiB above what was in use before it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return self
        self.process, self.running = psutil.Process(), True
        self.start = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def _sample(self) -> None:
        while self.running:
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.mebibytes = (torch.cuda.max_memory_allocated() - self.start) / MIB
            return
        self.running = False
        self.thread.join()
        self.mebibytes = (self.peak - self.start) / MIB


def median_seconds(function: Callable[[], object], device: torch.device, repetitions: int) -> float:
    """Returns the median time of several calls, after one call to warm up."""
    times = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def training_step(
    model: DiffusionAutoencoder, images: torch.Tensor, dtype: torch.dtype, repetitions: int
) -> tuple[float, float]:
    """Returns seconds and peak memory (MiB) of a training step; a `dtype` other than float32 means autocast."""
    device = images.device
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-4, fused=True)
    scheduler, timesteps = VPDDIMScheduler(), torch.rand(len(images), device=device) * 1000

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = denoising_loss(model, scheduler, images, torch.randn_like(images), timesteps).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with PeakMemory(device) as memory:
        seconds = median_seconds(step, device, repetitions)
    return seconds, memory.mebibytes


def machine_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of a large matrix product and of a 3x3 convolution (128 channels, 32x32, batch 16, channels_last)."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    conv = torch.nn.Conv2d(128, 128, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(16, 128, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        matmul = 2 * size**3 / median_seconds(lambda: a @ b, device, 5)
        convolution = 2 * 9 * 128 * 128 * 32 * 32 * 16 / median_seconds(lambda: conv(x), device, 5)
    return {"matmul": matmul / 1e9, "convolution": convolution / 1e9}


def benchmark_size(
    size: str, device: torch.device, dtype: torch.dtype, batch: int, compiled: bool, options: argparse.Namespace
) -> list[dict[str, object]]:
    """Measures the rows of one configuration."""
    torch._dynamo.reset()  # else later configurations reach the limit on recompilations and run eagerly
    preset = preset_named(SIZES[size])
    torch.manual_seed(0)
    encoder, decoder = preset.build("encoder"), preset.build("decoder")
    for parameter in decoder.parameters():  # zero-initialised layers would hide differences
        torch.nn.init.normal_(parameter, std=0.02) if not parameter.any() else None
    encoder, decoder = encoder.to(device).eval(), decoder.to(device).eval()
    resolution = preset.encoder["sample_size"]
    images = torch.rand(batch, 3, resolution, resolution, device=device) * 2 - 1
    timestep = torch.tensor(500.0, device=device)
    rows: list[dict[str, object]] = []

    def row(implementation: str, operation: str, images_per_second: float, memory: float, timed: str, **more) -> None:
        rows.append(
            {
                "size": size, "device": device.type, "dtype": str(dtype).removeprefix("torch."), "batch": batch,
                "implementation": implementation, "operation": operation, "images_per_second": images_per_second,
                "peak_mib": memory, "timed": timed, **more,
            }
        )  # fmt: skip
        print(format_row(rows[-1]), flush=True)

    # The plain implementation: decode (per step) and training step, before the networks are converted.
    with torch.no_grad():
        code = encoder(images).latent_code
        plain_prediction = plain_decoder(decoder, images, timestep, code)
        plain_step = median_seconds(lambda: plain_decoder(decoder, images, timestep, code), device, options.repetitions)
        flops = FlopCounterMode(display=False)
        with flops:
            decoder(images, timestep, code)
    gigaflop_per_image = flops.get_total_flops() / batch / 1e9
    for operation, steps in (("decode20", 20), ("decode50", 50)):
        if operation in options.operations:
            row("plain float32", operation, batch / plain_step / steps, float("nan"), f"1 of {steps} steps")

    if "train" in options.operations and not compiled:
        plain = PlainAutoencoder(copy.deepcopy(encoder), copy.deepcopy(decoder))
        plain_seconds, memory = training_step(plain, images, torch.float32, options.repetitions)
        row("plain float32", "train", batch / plain_seconds, memory, "all")
        model = DiffusionAutoencoder(copy.deepcopy(encoder), copy.deepcopy(decoder))
        channels_last = images.contiguous(memory_format=torch.channels_last)
        seconds, memory = training_step(
            model.to(memory_format=torch.channels_last), channels_last, dtype, options.repetitions
        )
        row("diffae_hub", "train", batch / seconds, memory, "all", ratio=plain_seconds / seconds)
        del plain, model

    encoder, decoder = (m.to(dtype=dtype, memory_format=torch.channels_last) for m in (encoder, decoder))
    network, embed = (torch.compile(decoder), torch.compile(encoder)) if compiled else (decoder, encoder)
    name = f"diffae_hub{' compiled' if compiled else ''}"
    typed = images.to(dtype).contiguous(memory_format=torch.channels_last)

    with torch.no_grad():
        code = encoder(typed).latent_code
        conditioning = decoder.prepare_latent(code)
        prediction = network(typed, timestep, None, latent_conditioning=conditioning).sample
        difference = float((prediction.float() - plain_prediction).abs().max())
        if "encode" in options.operations:
            with PeakMemory(device) as memory:
                seconds = median_seconds(lambda: embed(typed), device, options.repetitions)
            row(name, "encode", batch / seconds, memory.mebibytes, "all")

        def trajectory(scheduler: VPDDIMScheduler, steps: int) -> Callable[[], None]:
            def run() -> None:
                scheduler.set_timesteps(steps, device=device)
                sample = images
                for t in scheduler.timesteps[: options.steps_timed]:
                    output = network(sample.to(dtype), t, None, latent_conditioning=conditioning, return_dict=False)[0]
                    sample = scheduler.step(output.float(), t, sample, return_dict=False)[0]

            return run

        for operation, (scheduler, steps, plain_steps) in TRAJECTORIES.items():
            if operation not in options.operations:
                continue
            timed = min(options.steps_timed, steps)
            with PeakMemory(device) as memory:
                seconds = median_seconds(trajectory(scheduler(), steps), device, options.repetitions) * steps / timed
                seconds += median_seconds(lambda: decoder.prepare_latent(code), device, options.repetitions)
            rate = gigaflop_per_image * batch * steps / seconds
            more = {"gflops": rate, "difference": difference, "ratio": plain_step * plain_steps / seconds}
            row(name, operation, batch / seconds, memory.mebibytes, f"{timed} of {steps} steps", **more)

    return rows


COLUMNS = {
    "size": 9, "device": 6, "dtype": 9, "batch": 5, "implementation": 20, "operation": 9, "images_per_second": 10,
    "peak_mib": 9, "ratio": 6, "difference": 10, "gflops": 8, "timed": 14,
}  # fmt: skip


def format_row(row: dict[str, object]) -> str:
    """Formats one line of the table; cells of columns that do not apply are empty."""
    cells = []
    for column, width in COLUMNS.items():
        value = row.get(column, "")
        if isinstance(value, float):
            value = "" if value != value else f"{value:.1e}" if column == "difference" else f"{value:.3g}"
        cells.append(f"{value!s:>{width}}")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    parser.add_argument("--devices", nargs="+", default=devices)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--compile", choices=("no", "yes", "both"), default="no")
    parser.add_argument("--steps-timed", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    if options.quick:
        options.repetitions = 1

    logging.set_verbosity_error()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    rows = []
    for device in map(torch.device, options.devices):
        if device.type == "cuda":
            print(torch.cuda.get_device_name())
        for dtype in (getattr(torch, name) for name in options.dtypes):
            rates = ", ".join(f"{name} {rate:.0f}" for name, rate in machine_rates(device, dtype).items())
            print(f"GFLOP/s of this machine, {device.type}, {dtype}: {rates}")
        print(
            " | ".join(f"{name:>{width}}" for name, width in COLUMNS.items()).replace("images_per_second", "  images/s")
        )
        for size in options.sizes:
            for dtype in (getattr(torch, name) for name in options.dtypes):
                for batch in options.batch_sizes:
                    for compiled in {"no": (False,), "yes": (True,), "both": (False, True)}[options.compile]:
                        rows += benchmark_size(size, device, dtype, batch, compiled, options)
    if options.json:
        finite = [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
            for row in rows
        ]
        Path(options.json).write_text(json.dumps(finite, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
