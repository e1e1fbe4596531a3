"""Writes model_cards/cifar10-32-small.md, its figures and its pictures from what was measured; no number is typed here.

    python model_cards/build_cifar10_32_small.py --evaluation evaluation --metrics runs/X/metrics.jsonl \
        --ablation "pooled=runs/P/metrics.jsonl" ... --hardware "one CPU core" --hours 0.7

`evaluation` is the folder of `diffae-hub evaluate`; its report and pictures go into model_cards/ too.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.evaluation.report import METRIC_NAMES
from diffae_hub.hub.model_card import render_model_card
from diffae_hub.pretrained import bundled_model_path
from diffae_hub.training.presets import preset_named

NAME = "cifar10-32-small"
FOLDER = Path(__file__).parent
METHODS = {
    "stochastic": "stochastic",
    "inversion": "inversion",
    "mean_image": "mean image (baseline)",
    "pca": "PCA, 512 numbers (baseline)",
    "jpeg": "JPEG, 1,024 bytes (baseline)",
}


def card_results(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every measured figure as a line of the card."""
    lines = []
    for metric, title in METRIC_NAMES.items():
        unit = "dB" if metric == "psnr_db" else ""
        for method, name in METHODS.items():
            figure = report["results"].get(method, {}).get(metric)
            if figure is None or "unavailable" in figure:
                continue
            note = f"{figure['count']:,} images"
            if "interval" in figure:
                low, high = figure["interval"]
                note += f", 95 % interval {low:.4g} to {high:.4g}"
            value = figure["mean"] if "mean" in figure else figure["value"]
            lines.append(
                {"metric": title.replace(" (dB)", ""), "mode": name, "value": value, "unit": unit, "note": note}
            )
    path_length = report["results"]["perceptual_path_length"]
    lines.append(
        {
            "metric": "PPL ↓ (LPIPS-VGG)",
            "mode": "interpolation",
            "value": path_length["mean"],
            "note": f"{path_length['count']} pairs, {report['path_length_intervals']} sub-intervals",
        }
    )
    probe = report["results"]["probe"]
    note = f"linear probe of the code, {probe['test_codes']:,} test images"
    lines.append({"metric": "accuracy ↑", "mode": "latent code", "value": probe["accuracy"], "note": note})
    lines.append({"metric": "AUROC ↑, macro", "mode": "latent code", "value": probe["auroc_macro"], "note": note})
    return lines


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
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument(
        "--ablation", nargs="*", default=[], metavar="NAME=FILE", help="metrics of runs without options"
    )
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--hours", type=float, required=True)
    arguments = parser.parse_args()

    pipeline = DiffusionAutoencoderPipeline.from_pretrained(NAME)
    records = [json.loads(line) for line in arguments.metrics.read_text().splitlines()]
    draw_training(records, FOLDER / "images" / f"{NAME}_training.png")
    report = json.loads((arguments.evaluation / "report.json").read_text())
    page = (arguments.evaluation / "report.md").read_text()
    for picture in report["pictures"]:
        shutil.copy(arguments.evaluation / picture, FOLDER / "images" / f"{NAME}_{picture}")
        page = page.replace(f"]({picture})", f"](images/{NAME}_{picture})")
    (FOLDER / f"{NAME}_evaluation.md").write_text(page)
    results = card_results(report)

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
        f"\n\n![{report['pictures']['reconstructions.png']}](images/{NAME}_reconstructions.png)"
        f"\n\n*Test images, from the top: {report['pictures']['reconstructions.png'].lower()}; 50 steps.*",
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
        "evaluation": "Means over images of the CIFAR-10 test split (JPEG-recompressed likewise), in test order; "
        f"{report['num_inference_steps']} DDIM steps (inversion: as many of inversion and of decoding); averaged (EMA) "
        f"weights. The whole report, with the command: [{NAME}_evaluation.md]({NAME}_evaluation.md).\n\n"
        f"For comparison, the paper's CIFAR-10 model, {paper_parameters / own_parameters:.0f} times the parameters and "
        "64M examples: 30.351 dB stochastic, 50.113 dB inversion (table 4, on the true images). JPEG does so well because "
        "these images have been JPEG files before." + ablation,
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
