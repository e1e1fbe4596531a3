"""Compares training recipes that differ in one thing, at a small budget: phases, loss weighting, SC-S, optimizer, head.

    python benchmarks/study_recipes.py train.parquet test.parquet --output recipes --training-examples 40000
    python benchmarks/study_recipes.py train.parquet test.parquet --output recipes --recipes base one-phase --seeds 1 2

Each recipe and seed is one run of `diffae-hub train` in a folder of its own. Apart from what its name says, it has the
networks of `cifar10-32-small` with SC-4, a first phase of a quarter, Muon and a cosine to zero. Finished runs are kept,
so the command can be repeated. The first test images are reconstructed by DDIM from the code and random noise, and from
the code and the inverted noise. The probe learns the classes from the first 10,000 training codes. Writes table.md:
means over the seeds, with 95 % t-intervals if there are several. Needs the extras `train` and `eval`.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from scipy.stats import t as student

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.evaluation.report import markdown_table
from diffae_hub.files import SETTINGS, keep_settings, read_json_lines, write_text
from diffae_hub.metrics.linear_probe import multiclass_probe
from diffae_hub.metrics.lpips import PerceptualDistance
from diffae_hub.metrics.psnr import peak_signal_to_noise_ratio
from diffae_hub.training.run_folder import METRICS

POOLED = ["--set", "encoder.latent_head=pool", "--set", "decoder.latent_spatial_size=null"]
ONE_PHASE = ["--phase1-fraction", "0"]
SIGMA = ["--loss-weighting", "sigma"]
RECIPES = {
    "base": [],
    "sigma": SIGMA,
    "one-phase": ONE_PHASE,
    "one-phase-sigma": [*ONE_PHASE, *SIGMA],
    "one-phase-sigma-batch-32": [*ONE_PHASE, *SIGMA, "--batch-size", "32"],
    "one-phase-sigma-batch-16": [*ONE_PHASE, *SIGMA, "--batch-size", "16"],
    "one-phase-sigma-rate-2e-3": [*ONE_PHASE, *SIGMA, "--learning-rate", "2e-3"],
    "phase-1-8": ["--phase1-fraction", "0.125"],
    "phase-1-2": ["--phase1-fraction", "0.5"],
    "SC-1": ["--scaling-factor", "1"],
    "SC-2": ["--scaling-factor", "2"],
    "SC-8": ["--scaling-factor", "8"],
    "adam": ["--optimizer", "adam"],
    "adam-one-phase": [*ONE_PHASE, "--optimizer", "adam"],
    "adam-constant": ["--optimizer", "adam", "--lr-scheduler", "constant"],
    "pooled": POOLED,
    "pooled-one-phase": [*POOLED, *ONE_PHASE],
}
FIGURES = {
    "stochastic_psnr": ("stochastic, dB ↑", "{:.2f}"),
    "stochastic_lpips": ("LPIPS ↓", "{:.4f}"),
    "inversion_psnr": ("inversion, dB ↑", "{:.2f}"),
    "inversion_lpips": ("LPIPS ↓", "{:.5f}"),
    "probe_accuracy": ("probe ↑", "{:.3f}"),
    "examples_per_second": ("examples/s", "{:.0f}"),
}
BATCH_SIZE = 50
PROBE_IMAGES = 10_000


def train(recipe: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """Runs `diffae-hub train`, or the rest of an interrupted run."""
    command = [sys.executable, "-m", "diffae_hub.cli", "train", "--preset", "cifar10-32-small"]
    command += ["--loss-weighting", "none", "--seed", str(seed), "--num-workers", "0"]
    command += ["--dataset", options.train, "--split", "train", "--output", str(folder), "--keep-checkpoints", "1"]
    command += ["--training-examples", str(options.training_examples), "--resume-from-checkpoint", "latest"]
    command += ["--warmup-examples", str(options.training_examples // 20), *RECIPES[recipe]]
    subprocess.run(command, check=True)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Measures a finished run."""
    pipe = DiffusionAutoencoderPipeline.from_pretrained(folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    pipe.decoder.to(memory_format=torch.channels_last)
    lpips = PerceptualDistance("alex")

    def read(file: str, number: int) -> tuple[torch.Tensor, list[int]]:
        rows = load_dataset("parquet", data_files=file, split=f"train[:{number}]")
        images = torch.cat([pipe.image_processor.preprocess(image) for image in rows["image"]]) / 2 + 0.5
        return images, rows["label"]

    def codes(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([pipe.encode(batch) for batch in images.split(BATCH_SIZE)])

    def compare(images: torch.Tensor, originals: torch.Tensor, mode: str) -> dict[str, float]:
        pairs = list(zip(images.split(BATCH_SIZE), originals.split(BATCH_SIZE), strict=True))
        psnr = torch.cat([peak_signal_to_noise_ratio(*pair) for pair in pairs]).mean()
        distance = torch.cat([lpips(*pair) for pair in pairs]).mean()
        return {f"{mode}_psnr": float(psnr), f"{mode}_lpips": float(distance)}

    train_images, train_labels = read(options.train, PROBE_IMAGES)
    test_images, test_labels = read(options.test, PROBE_IMAGES)
    test_codes = codes(test_images)
    probe = multiclass_probe(codes(train_images).numpy(), train_labels, test_codes.numpy(), test_labels)

    originals = test_images[: options.num_images]
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(0))
    decoded: dict[str, list[torch.Tensor]] = {"stochastic": [], "inversion": []}
    for batch, code, start in zip(
        *(tensor.split(BATCH_SIZE) for tensor in (originals, test_codes[: options.num_images], noise)), strict=True
    ):
        inverted = pipe.invert(batch, code, num_inference_steps=options.steps, inversion="plain")
        for mode, x_T in (("stochastic", start), ("inversion", inverted)):
            decoded[mode].append(pipe.decode(code, x_T, num_inference_steps=options.steps, output_type="pt").images)
    records = read_json_lines(folder / METRICS)
    speeds = [record["examples_per_second"] for record in records if "examples_per_second" in record]
    return {
        **compare(torch.cat(decoded["stochastic"]), originals, "stochastic"),
        **compare(torch.cat(decoded["inversion"]), originals, "inversion"),
        "probe_accuracy": probe["accuracy"],
        "examples_per_second": statistics.median(speeds),
    }


def summary(values: list[float], form: str) -> str:
    """Formats the mean, and for several values half the width of its 95 % interval (Student's t)."""
    text = form.format(statistics.mean(values))
    if len(values) == 1:
        return text
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{text} ± {form.format(half)}"


def table(folder: Path) -> str:
    """Returns a table with a line per recipe that has results, in the order of RECIPES."""
    rows = []
    for recipe in RECIPES:
        paths = sorted(folder.glob(f"{recipe}-seed*/results.json"))
        if runs := [json.loads(path.read_text()) for path in paths]:
            cells = [summary([run[key] for run in runs], form) for key, (_, form) in FIGURES.items()]
            rows.append([recipe, str(len(runs)), *cells])
    return markdown_table(["recipe", "seeds", *(title for title, _ in FIGURES.values())], rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", metavar="TRAIN_PARQUET", help="images and a column `label`")
    parser.add_argument("test", metavar="TEST_PARQUET")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--training-examples", type=int, default=40_000, help="per run (default: %(default)s)")
    parser.add_argument("--num-images", type=int, default=500, help="test images (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps of DDIM (default: %(default)s)")
    options = parser.parse_args()
    same = {name: getattr(options, name) for name in ("train", "test", "training_examples", "num_images", "steps")}
    keep_settings(options.output / SETTINGS, same, "runs")
    for seed in options.seeds:
        for recipe in options.recipes:
            folder = options.output / f"{recipe}-seed{seed}"
            if (folder / "results.json").is_file():
                continue
            train(recipe, seed, folder, options)
            write_text(folder / "results.json", json.dumps(measure(folder, options), indent=2) + "\n")
    page = table(options.output)
    write_text(options.output / "table.md", page)
    print(page)


if __name__ == "__main__":
    main()
