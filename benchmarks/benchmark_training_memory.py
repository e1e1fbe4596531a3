"""Memory of a training step on the CPU: what the networks, gradients and averages take, and what each example adds.

    python benchmarks/benchmark_training_memory.py --presets cifar10-32 --batch-sizes 2 4

Each cell runs two steps of training/trainer.py in a process of its own; its figure is the peak resident set above the
size of the process before the networks. The line through the two batch sizes gives the memory per example and, at
batch 0, the memory that does not depend on the batch. The last column extends that line to the preset's batch, as an
estimate.
"""

import argparse
import platform

import torch
from benchmark_training import peak_memory, print_table

from diffae_hub.training.presets import preset_named

VARIANTS = ["script", "script bf16", "script bf16 checkpointing"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["cifar10-32-small", "cifar10-32"])
    parser.add_argument("--batch-sizes", type=int, nargs=2, default=[1, 2], help="two sizes, the smaller first")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    small, large = arguments.batch_sizes
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}\n")
    rows = []
    for name in arguments.presets:
        preset = preset_named(name)
        size, channels = preset.encoder["sample_size"], preset.encoder["in_channels"]
        for variant in arguments.variants:
            peaks = {
                batch_size: peak_memory(
                    variant, preset, batch_size, torch.zeros(batch_size, channels, size, size), arguments.threads
                )
                for batch_size in (small, large)
            }
            slope = (peaks[large] - peaks[small]) / (large - small)
            rows.append(
                {
                    "preset": name,
                    "variant": variant,
                    f"peak MiB, batch {small}": peaks[small],
                    f"batch {large}": peaks[large],
                    "MiB per example": slope,
                    "MiB, batch 0": peaks[small] - small * slope,
                    "batch": preset.batch_size,
                    "GiB at that batch (estimated)": (peaks[small] + (preset.batch_size - small) * slope) / 1024,
                }
            )
            print_table(rows[-1:])
    print()
    print_table(rows)


if __name__ == "__main__":
    main()
