"""Measures round trips of few steps on different time grids (`time_exponent`), for the page "How many steps".

    python benchmarks/measure_round_trips.py test.parquet --model cifar10-32-small --num-images 100

Each figure is the mean PSNR, in dB, of images that were inverted and decoded in K steps: 2 K + 1 evaluations.
The second table inverts in ten steps and decodes with other numbers of steps and solvers.
"""

import argparse

import torch
from datasets import load_dataset

from diffae_hub import DiffusionAutoencoderPipeline, VPDDIMScheduler, VPDPMSolverMultistepScheduler
from diffae_hub.metrics.psnr import peak_signal_to_noise_ratio

BATCH_SIZE = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="PARQUET", help="images, in a column `image`")
    parser.add_argument("--model", default="cifar10-32-small", metavar="NAME_OR_PATH", help="(default: %(default)s)")
    parser.add_argument("--num-images", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 6, 8, 10], help="(default: %(default)s)")
    parser.add_argument("--exponents", type=float, nargs="+", default=[1, 1.15, 1.5, 1.75, 2])
    options = parser.parse_args()

    pipe = DiffusionAutoencoderPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.decoder.to(memory_format=torch.channels_last)
    rows = load_dataset("parquet", data_files=options.data, split=f"train[:{options.num_images}]")["image"]
    images = torch.cat([pipe.image_processor.preprocess(image) for image in rows]) / 2 + 0.5
    print("| K | evaluations |", " | ".join(f"exponent {exponent:g}" for exponent in options.exponents), "|")
    print("|---" * (2 + len(options.exponents)) + "|")
    for steps in options.steps:
        cells = [str(steps), str(2 * steps + 1)]
        for exponent in options.exponents:
            pipe.scheduler = VPDDIMScheduler.from_config(pipe.scheduler.config, time_exponent=exponent)
            psnr = [
                peak_signal_to_noise_ratio(
                    pipe(batch, mode="inversion", num_inference_steps=steps, output_type="pt").images, batch
                )
                for batch in images.split(BATCH_SIZE)
            ]
            cells.append(f"{float(torch.cat(psnr).mean()):.1f}")
        print("|", " | ".join(cells), "|", flush=True)

    pipe.scheduler = VPDDIMScheduler.from_config(pipe.scheduler.config, time_exponent=1)
    codes = [pipe.encode(batch) for batch in images.split(BATCH_SIZE)]
    noises = [pipe.invert(*pair, num_inference_steps=10) for pair in zip(images.split(BATCH_SIZE), codes, strict=True)]
    print("\n| decoded by | steps | PSNR |\n|---|---|---|")
    for name, scheduler in (("ddim", VPDDIMScheduler), ("dpm", VPDPMSolverMultistepScheduler)):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        for steps in (5, 8, 10, 12, 20, 50):
            made = [
                pipe.decode(*pair, num_inference_steps=steps, output_type="pt").images
                for pair in zip(codes, noises, strict=True)
            ]
            psnr = float(peak_signal_to_noise_ratio(torch.cat(made), images).mean())
            print(f"| {name} | {steps} | {psnr:.1f} |", flush=True)


if __name__ == "__main__":
    main()
