"""Measure reconstruction: PSNR and SSIM per image of stochastic autoencoding or inversion, on any data set.

    python examples/evaluate_reconstruction.py --model cifar10-32-small --dataset test.parquet --split test \
        --mode stochastic --output runs/stochastic.jsonl

One line of JSON per image goes to the output file as it is measured, so an interrupted run continues where it stopped.
Every image has its own noise, seeded by its index: figures do not depend on the batch size. Reconstructions are rounded
to 8 bits before they are measured, as they would be in a PNG file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.evaluation.psnr import peak_signal_to_noise_ratio
from diffae_hub.evaluation.ssim import structural_similarity
from diffae_hub.training.data import ImageTransform, load_rows


def summarize(paths: list[Path]) -> dict[str, float]:
    """Number of images and mean PSNR and SSIM of output files, each with the standard error of the mean."""
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    records = list({record["index"]: record for record in records}.values())
    summary: dict[str, float] = {"images": len(records)}
    for name in ("psnr_db", "ssim"):
        values = torch.tensor([record[name] for record in records], dtype=torch.float64)
        summary[name] = float(values.mean())
        summary[f"{name}_standard_error"] = float(values.std() / len(values) ** 0.5)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-32-small")
    parser.add_argument("--dataset", required=True, help="folder of images, parquet file or Hub dataset")
    parser.add_argument("--split", default="test")
    parser.add_argument("--mode", choices=("stochastic", "inversion"), default="stochastic")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--first_image", type=int, default=0, help="index of the first image, to share a set between runs"
    )
    parser.add_argument("--num_images", type=int, help="number of images; default all that follow")
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    pipeline = DiffusionAutoencoderPipeline.from_pretrained(arguments.model).to(arguments.device)
    for network in (pipeline.encoder, pipeline.decoder):
        network.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.encoder.config
    rows = load_rows(arguments.dataset, arguments.split)
    to_tensor = ImageTransform(config.sample_size, config.in_channels)
    total = min(len(rows) - arguments.first_image, arguments.num_images or len(rows))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    done = len(arguments.output.read_text().splitlines()) if arguments.output.exists() else 0

    started = time.monotonic()
    with arguments.output.open("a") as file, tqdm(total=total, initial=done, unit="img", mininterval=10) as progress:
        for first in range(done, total, arguments.batch_size):
            indices = [arguments.first_image + i for i in range(first, min(first + arguments.batch_size, total))]
            images = torch.stack([to_tensor(rows[index]) for index in indices])
            reconstructions = pipeline(
                images,
                mode=arguments.mode,
                num_inference_steps=arguments.steps,
                generator=[torch.Generator().manual_seed(arguments.seed * 1_000_003 + index) for index in indices],
                output_type="pt",
            ).images.cpu()
            reconstructions = (reconstructions * 255).round() / 255
            originals = images / 2 + 0.5
            scores = zip(
                indices,
                peak_signal_to_noise_ratio(reconstructions, originals).tolist(),
                structural_similarity(reconstructions, originals).tolist(),
                strict=True,
            )
            lines = [json.dumps({"index": i, "psnr_db": psnr, "ssim": ssim}) for i, psnr, ssim in scores]
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            progress.update(len(indices))
    elapsed = time.monotonic() - started
    print(json.dumps({"mode": arguments.mode, "steps": arguments.steps, **summarize([arguments.output])}, indent=2))
    if total > done:
        print(f"{(total - done) / elapsed:.1f} images/s")


if __name__ == "__main__":
    main()
