"""Writes model_cards/cifar10-32-small.md, its figures and its pictures from what was measured; no number is typed here.

    python model_cards/build_cifar10_32_small.py --train train.parquet --test test.parquet --metrics runs/X/metrics.jsonl \
        --stochastic runs/stochastic.jsonl --inversion runs/inversion.jsonl --ablation pool=runs/P/metrics.jsonl ...

The two evaluation files are those of examples/evaluate_reconstruction.py. The baselines (mean image, PCA of the size of the
latent code, fitted on the training images) are computed here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.evaluation.psnr import peak_signal_to_noise_ratio
from diffae_hub.evaluation.ssim import structural_similarity
from diffae_hub.hub.model_card import render_model_card
from diffae_hub.pretrained import bundled_model_path
from diffae_hub.tiles import film_strip, join_tiles
from diffae_hub.training.data import ImageTransform, load_rows
from diffae_hub.training.presets import preset_named

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from evaluate_reconstruction import summarize

NAME = "cifar10-32-small"
FOLDER = Path(__file__).parent


def load_images(path: str, split: str) -> torch.Tensor:
    rows, transform = load_rows(path, split), ImageTransform(32)
    return torch.stack([transform(rows[index]) for index in range(len(rows))]) / 2 + 0.5


def linear_baselines(train: torch.Tensor, test: torch.Tensor, dimension: int) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of the mean image and of PCA with `dimension` numbers, fitted on the training images."""
    flat = train.flatten(1).double()
    mean = flat.mean(dim=0)
    covariance = (flat - mean).T @ (flat - mean) / len(flat)
    basis = torch.linalg.eigh(covariance).eigenvectors[:, -dimension:]
    centred = test.flatten(1).double() - mean
    reconstructions = {"mean image": torch.zeros_like(centred), f"PCA, {dimension} numbers": centred @ basis @ basis.T}
    figures = {}
    for name, reconstruction in reconstructions.items():
        images = (reconstruction + mean).reshape(test.shape).clamp(0, 1).float()
        images = (images * 255).round() / 255
        figures[name] = {
            "psnr_db": float(peak_signal_to_noise_ratio(images, test).mean()),
            "ssim": float(
                torch.cat(
                    [structural_similarity(i, t) for i, t in zip(images.split(500), test.split(500), strict=True)]
                ).mean()
            ),  # fmt: skip  # noqa: E501
        }
    return figures


def draw_reconstructions(pipeline: DiffusionAutoencoderPipeline, test: torch.Tensor, path: Path) -> None:
    """Eight test images: originals, stochastic, inverted, one row each."""
    images = test[:8] * 2 - 1
    rows = [test[:8]]
    for mode in ("stochastic", "inversion"):
        generator = torch.Generator().manual_seed(0)
        rows.append(pipeline(images, mode=mode, generator=generator, output_type="pt").images)
    film_strip([join_tiles(torch.cat(rows), (3, 8))]).resize((1024, 384), resample=0).save(path)


def draw_training(records: list[dict[str, Any]], path: Path) -> None:
    """Loss and validation PSNR against examples seen."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
    losses = [r for r in records if "loss" in r]
    for phase in (1, 2):
        part = [r for r in losses if r["phase"] == phase]
        axes[0].plot([r["examples"] / 1000 for r in part], [r["loss"] for r in part], label=f"phase {phase}")
    axes[0].set(xlabel="thousands of examples", ylabel="training loss", yscale="log")
    axes[0].legend()
    for key, label in (
        ("psnr_one_step", "one step (phase 1)"),
        ("psnr_stochastic", "stochastic, 50 steps"),
        ("psnr_inversion", "inversion, 50 steps"),
    ):
        part = [r for r in records if key in r]
        axes[1].plot([r["examples"] / 1000 for r in part], [r[key] for r in part], marker="o", label=label)
    axes[1].set(xlabel="thousands of examples", ylabel="validation PSNR (dB)")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--stochastic", type=Path, nargs="+", required=True)
    parser.add_argument("--inversion", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--ablation", nargs="*", default=[], metavar="NAME=FILE", help="metrics of runs without options"
    )
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--hours", type=float, required=True)
    arguments = parser.parse_args()

    pipeline = DiffusionAutoencoderPipeline.from_pretrained(NAME)
    pipeline.set_progress_bar_config(disable=True)
    records = [json.loads(line) for line in arguments.metrics.read_text().splitlines()]
    train, test = load_images(arguments.train, "train"), load_images(arguments.test, "test")
    draw_reconstructions(pipeline, test, FOLDER / "images" / f"{NAME}_reconstructions.png")
    draw_training(records, FOLDER / "images" / f"{NAME}_training.png")

    measured = {"stochastic": summarize(arguments.stochastic), "inversion": summarize(arguments.inversion)}
    baselines = linear_baselines(train, test, pipeline.encoder.config.latent_dim)
    results = []
    for metric, key, unit in (("PSNR", "psnr_db", "dB"), ("SSIM", "ssim", "")):
        for name, figures in baselines.items():
            note = f"baseline, {len(test):,} images"
            results.append({"metric": metric, "mode": name, "value": figures[key], "unit": unit, "note": note})
        for mode, figures in measured.items():
            note = f"{figures['images']:,} images, standard error {figures[key + '_standard_error']:.2g}"
            results.append({"metric": metric, "mode": mode, "value": figures[key], "unit": unit, "note": note})

    def one_step_psnr(run: list[dict[str, Any]], examples: int) -> float:
        return next(r["psnr_one_step"] for r in run if r.get("examples") == examples and "psnr_one_step" in r)

    ablation = ""
    runs = {name: [json.loads(line) for line in Path(file).read_text().splitlines()] for name, file in (a.split("=") for a in arguments.ablation)}  # fmt: skip  # noqa: E501
    if runs:
        examples = max(r["examples"] for r in next(iter(runs.values())))
        rows = {name: one_step_psnr(run, examples) for name, run in runs.items()}
        rows["flatten head and spatial projection (this model)"] = one_step_psnr(records, examples)
        ablation = (
            f"\n\nThe two options beyond the paper at equal budget: validation PSNR of one-step decoding after {examples:,} "
            "examples of phase 1, same seed, same number of channels (32 test images):\n\n| encoder head, decoder | PSNR |\n|---|---|\n"
            + "\n".join(f"| {name} | {value:.2f} dB |" for name, value in rows.items())
        )
    weights = sum(path.stat().st_size for path in bundled_model_path(NAME).rglob("*.safetensors"))
    preset, paper = preset_named(NAME), preset_named("cifar10-32")
    with torch.device("meta"):
        paper_parameters = paper.build_encoder().num_parameters() + paper.build_decoder().num_parameters()
    own_parameters = pipeline.encoder.num_parameters() + pipeline.decoder.num_parameters()
    figures = {
        "model_name": NAME,
        "summary": "A small diffusion autoencoder for 32x32 images, trained by the two-phase method (velocity prediction, "
        "SC-4) on a CPU. It ships inside diffae_hub, for trying things out and for tests; it is no benchmark of the method."
        f"\n\n![Originals, stochastic reconstructions, reconstructions by inversion](images/{NAME}_reconstructions.png)"
        "\n\n*Test images: originals; stochastic autoencoding, 50 steps; inversion, 50 steps.*",
        "license": "apache-2.0",
        "dataset": {
            "name": "CIFAR-10, 50,000 training images",
            "note": "each re-encoded as JPEG of quality about 75 (30.4 dB from the true image on average), so figures are "
            "not comparable with published CIFAR-10 figures to the last decimal",
        },
        "experiment": preset.to_dict(),
        "parameters": {
            "encoder": pipeline.encoder.num_parameters(),
            "decoder": pipeline.decoder.num_parameters(),
        },
        "training": {
            "examples": max(r["examples"] for r in records),
            "hours": arguments.hours,
            "hardware": arguments.hardware,
            "weights as saved": f"{weights / 1e6:.1f} MB, float16",
        },
        "results": results,
        "evaluation": "Means over images of the CIFAR-10 test split (JPEG-recompressed likewise), in test order; 50 DDIM steps "
        "(inversion: 50 of inversion and 50 of decoding); averaged (EMA) weights; reconstructions rounded to 8 bits; images in "
        "[0, 1]; SSIM with an 11x11 Gaussian window, zero-padded. Command, once per mode:\n\n```sh\npython "
        "examples/evaluate_reconstruction.py --model cifar10-32-small --dataset test.parquet --mode stochastic --output "
        f"stochastic.jsonl\n```\n\nFor comparison, the paper's CIFAR-10 model, {paper_parameters / own_parameters:.0f} times the parameters and 64M examples: "
        "30.351 dB stochastic, 50.113 dB inversion (table 4, on the true images)." + ablation,
        "limitations": [
            "Far from converged: the stochastic reconstructions carry visible noise and colour errors, and PCA of the same "
            "size has a higher PSNR.",
            "The flatten head and the spatial projection fix the image size to 32x32; larger pictures go through in tiles.",
            "Trained on CIFAR-10 only; do not expect it to serve other kinds of images well.",
        ],
    }
    card = render_model_card(figures)
    card = card.replace("## Networks", f"![Loss and validation PSNR](images/{NAME}_training.png)\n\n## Networks")
    (FOLDER / f"{NAME}.json").write_text(json.dumps(figures, indent=2) + "\n")
    (FOLDER / f"{NAME}.md").write_text(card)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
