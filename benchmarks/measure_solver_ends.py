"""Compares the log-SNRs between which DPM-Solver++ takes its steps: `lambda_min` and `lambda_max`.

    python benchmarks/measure_solver_ends.py validation.parquet --model cifar10-32-small --num-images 128

Each figure is the mean PSNR, in dB, between images decoded in K steps and in 100 steps from the same codes and noise.
"""

import argparse

import torch
from datasets import load_dataset

from diffae_hub import DiffusionAutoencoderPipeline, VPDPMSolverMultistepScheduler
from diffae_hub.metrics.psnr import peak_signal_to_noise_ratio

BATCH_SIZE = 32
ENDS = [*((low, 4.0) for low in (-3.5, -3.0, -2.5, -2.0, -1.5)), *((-2.5, high) for high in (3.0, 3.5, 4.5, 5.0))]


def options_and_inputs(description: str, num_images: int):
    """Returns the flags, the pipeline, the codes of the images, and a noise for each."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="PARQUET", help="images, in a column `image`")
    parser.add_argument("--model", default="cifar10-32-small", metavar="NAME_OR_PATH", help="(default: %(default)s)")
    parser.add_argument("--num-images", type=int, default=num_images, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 10, 15], help="(default: %(default)s)")
    options = parser.parse_args()

    pipe = DiffusionAutoencoderPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.decoder.to(memory_format=torch.channels_last)
    rows = load_dataset("parquet", data_files=options.data, split=f"train[:{options.num_images}]")["image"]
    codes = torch.cat([pipe.encode(image) for image in rows])
    size, channels = pipe.decoder.config.sample_size, pipe.decoder.config.in_channels
    noise = torch.randn(len(codes), channels, size, size, generator=torch.Generator().manual_seed(0))
    return options, pipe, codes, noise


def main() -> None:
    options, pipe, codes, noise = options_and_inputs(__doc__, 128)

    def decode(steps: int, **ends: float) -> torch.Tensor:
        pipe.scheduler = VPDPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **ends)
        batches = zip(codes.split(BATCH_SIZE), noise.split(BATCH_SIZE), strict=True)
        return torch.cat([pipe.decode(*batch, num_inference_steps=steps, output_type="pt").images for batch in batches])

    converged = decode(100, lambda_min=-3.0, lambda_max=5.0)
    print("| lambda_min | lambda_max |", " | ".join(f"K = {steps}" for steps in options.steps), "|")
    print("|---" * (2 + len(options.steps)) + "|")
    for low, high in ENDS:
        images = [decode(steps, lambda_min=low, lambda_max=high) for steps in options.steps]
        psnr = [float(peak_signal_to_noise_ratio(batch, converged).mean()) for batch in images]
        print("|", " | ".join([f"{low:g}", f"{high:g}", *(f"{value:.1f}" for value in psnr)]), "|", flush=True)


if __name__ == "__main__":
    main()
