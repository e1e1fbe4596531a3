"""Writes a bundled model's page, its figures and its pictures from what was measured; no number is typed here.

    python model_cards/build_card.py cifar10-32-small --run runs/small --evaluation evaluation --hardware "one CPU core"

`--run` is the folder of `diffae-hub train`, and `--earlier` the metrics.jsonl of a training that it went on from with
other options. `--evaluation` is the folder of `diffae-hub evaluate`, whose report and pictures also go into
model_cards/. `--further` names more evaluations, of other modes or fewer images, for what the first lacks.
`--editing` is the file of `benchmarks/measure_editing.py`, `--sampling` the folder of `benchmarks/measure_sampling.py`,
`--codes` the metrics.jsonl of `diffae-hub train-latent`, and `--tables` the folder of `examples/replicate_tables.py`,
for the options beyond the paper.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from diffae_hub import AttributeClassifier, DiffusionAutoencoderPipeline
from diffae_hub.codes import weights_fingerprint
from diffae_hub.evaluation.paper_tables import TABLE_4, TWO_PHASE
from diffae_hub.evaluation.report import METRIC_NAMES, baseline_title
from diffae_hub.files import read_json_lines, write_text
from diffae_hub.model_card import render_model_card
from diffae_hub.pretrained import bundled_model_path
from diffae_hub.training.presets import preset_named
from diffae_hub.training.validation import draw_curves

FOLDER = Path(__file__).parent
# What the figures do not say about a model.
MODELS: dict[str, dict[str, Any]] = {
    "cifar10-32-small": {
        "summary": "A small diffusion autoencoder for 32x32 images, trained by the two-phase method (velocity "
        "prediction, SC-4) on a CPU. It ships with diffae_hub, for trying things out and for tests. It is not a "
        "benchmark of the method.",
        "license": "apache-2.0",
        "dataset": {
            "name": "CIFAR-10, 50,000 training images",
            "note": "each re-encoded as JPEG of quality about 75 (30.4 dB from the true image on average), so figures "
            "are not comparable with published CIFAR-10 figures to the last decimal",
        },
        "training": {
            "the first 560,000 examples": "Adam at a constant rate, batch size 64, bfloat16 where autocast allows it, EMA "
            "decay 0.9995; the first 140,000 with t = 1",
            "the last 230,400 examples": "Muon, the loss weighted by sigma (none before)",
            "curves": "they jump where the second part begins: another loss weighting, and validation on 128 images by the "
            "predictor-corrector (before, on 32 by the plain rule)",
        },
        "phase1_examples": 140_000,
        "test data": "CIFAR-10, test images (JPEG-recompressed)",
        "test images": "the CIFAR-10 test split (JPEG-recompressed like the training images)",
        "paper": "cifar10-32",
        "limitations": [
            "The flatten head and the spatial projection fix the image size to 32x32; larger pictures are processed "
            "in tiles.",
            "Trained on CIFAR-10 only; do not expect good results on other kinds of images.",
        ],
    },
    "noto-emoji-64": {
        "summary": "A small diffusion autoencoder for 64x64 emoji on white, with a classifier of their attributes "
        "for editing and a latent code model for new images. Trained by the two-phase method (velocity prediction, SC-4) "
        "on a CPU.",
        "license": "apache-2.0",
        "dataset": {
            "name": "Noto Color Emoji, 2,973 training images",
            "note": "by Google, Apache-2.0 (googlefonts/noto-emoji, 128x128, on white); an emoji and its variants in "
            "skin tone and hair are on one side of the split",
        },
        "training": {
            "learning rate over time": "cosine, whose end was moved: planned for 150,000 examples, from 38,656 on for 100,000, from "
            "57,600 on for 120,000, where it was 0; then for 300,000, from 142,528 on for 232,000, from 202,432 on for 224,000, "
            "where it was 0 again; then from 224,000 on for 332,000, from 225,088 on for 290,000; then anew over the last 44,800",
            "the last 44,800 examples": "mirrored at random, the loss weighted by sigma (none before, so the curve of the loss jumps), EMA decay 0.9999 (0.9995 before)",
            "attributes": "logistic regression (penalty 1,000) on the codes of the training images; edits follow the mean "
            "difference of pairs with the same subject and other attributes",
            "latent code model": "velocity prediction on SC-1, on the codes of the training images and of their mirror images; "
            "AdamW, 1e-3, 256 codes a step",
        },
        "phase1_examples": 37_500,
        "test data": "Noto Color Emoji, 362 test images",
        "test images": "the test families, 362 emoji, which played no part in training or in any choice",
        "limitations": [
            "Trained for a short time: images decoded from random noise are rougher than the originals. With the image's own "
            "noise (round trips, edits, interpolation) this does not show.",
            "About half of the new images can be recognised. These are similar to training images: see the picture.",
            "So small a training set is soon memorised: training images are reconstructed better than others.",
            "Skin tones and hair are as Noto draws them. The classifier uses the words of Unicode's names.",
            "Hair and beard were learnt from 12 to 19 images each, all portraits. Edits towards them change portraits, and "
            "little else. The test families have 6 images of blond hair, 6 of beards and none of the others, so these figures "
            "say little. The classifier gives such rare attributes low probabilities, which edits hardly change.",
            "In the middle of an interpolation the parts of both images are mixed rather than morphed.",
            "The flatten head and the spatial projection fix the image size to 64x64.",
        ],
    },
}
PRECISION = {"no": "float32", "bf16": "bfloat16 where autocast allows it"}
METHODS = {"stochastic": "stochastic", "inversion": "inversion"}


def card_results(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Makes a line of the card from every measured figure."""
    lines = []
    baselines = {name: f"{baseline_title(name, report)} (baseline)" for name in report["baselines"]}
    for metric, title in METRIC_NAMES.items():
        unit = "dB" if metric == "psnr_db" else ""
        for method, name in (METHODS | baselines).items():
            figure = report["results"].get(method, {}).get(metric)
            if figure is None or "unavailable" in figure:
                continue
            note = f"{figure['count']:,} images"
            if "interval" in figure:
                low, high = figure["interval"]
                note += f", 95 % interval {low:.4g} to {high:.4g}"
            value = figure["mean"] if "mean" in figure else figure["value"]
            line = {"metric": title.replace(" (dB)", ""), "mode": name, "value": value, "unit": unit, "note": note}
            lines.append(line | ({"baseline": True} if method in baselines else {}))
    path_length = report["results"].get("perceptual_path_length", {})
    if "mean" in path_length:
        note = f"{path_length['count']} pairs, {report['path_length_intervals']} sub-intervals"
        lines.append(
            {"metric": "PPL ↓ (LPIPS-VGG)", "mode": "interpolation", "value": path_length["mean"], "note": note}
        )
        fade = path_length["cross_fade"]["mean"]
        line = {"metric": "PPL ↓ (LPIPS-VGG)", "mode": "cross-fade (baseline)", "value": fade, "note": note}
        lines.append(line | {"baseline": True})
    if "accuracy" in (probe := report["results"].get("probe", {})):
        note = f"linear probe of the code, {probe['test_codes']:,} test images"
        lines.append({"metric": "accuracy ↑", "mode": "latent code", "value": probe["accuracy"], "note": note})
        lines.append({"metric": "AUROC ↑, macro", "mode": "latent code", "value": probe["auroc_macro"], "note": note})
    return lines


def copy_report(folder: Path, name: str, pipeline: DiffusionAutoencoderPipeline) -> dict[str, Any]:
    """Copies the page and the pictures of an evaluation into this folder. Returns its figures."""
    report = json.loads((folder / "report.json").read_text())
    if report["weights"] != weights_fingerprint(pipeline):
        raise SystemExit(f"{folder} must be of the bundled weights")
    page = (folder / "report.md").read_text()
    for picture in report["pictures"]:
        shutil.copy(folder / picture, FOLDER / "images" / f"{name}_{picture}")
        page = page.replace(f"]({picture})", f"](images/{name}_{picture})")
    (FOLDER / f"{name}.md").write_text(page)
    return report


def options_beyond_the_paper(tables: Path) -> str:
    """Compares the two options with the paper's at equal budget, from two rows of `examples/replicate_tables.py`."""
    rows = {
        "pooled code, modulation only (the paper's)": "v_prediction-SC4-2phase",
        "flattened code, spatial projection (this model's)": "v_prediction-SC4-2phase-flatten-spatial",
    }
    figures = {title: json.loads((tables / row / "results.json").read_text()) for title, row in rows.items()}
    first = next(iter(figures.values()))
    lines = []
    for title, row in figures.items():
        psnr, ssim = (row["results"]["stochastic"][metric]["mean"] for metric in ("psnr_db", "ssim"))
        lines.append(f"| {title} | {psnr:.2f} dB | {ssim:.4f} |")
    return (
        "\n\nThe two options beyond the paper, at equal budget: stochastic autoencoding after "
        f"{first['training']['training_examples']:,} examples in two phases, same seed and channels, "
        f"{first['num_images']:,} test images:\n\n| encoder head, decoder | PSNR | SSIM |\n|---|---|---|\n"
        + "\n".join(lines)
    )


def attribute_results(classifier: AttributeClassifier | None) -> list[dict[str, Any]]:
    """Scores of the classifier on families that the fit did not see."""
    if classifier is None:
        return []
    named = zip(classifier.config.attribute_names, classifier.config.attribute_scores, strict=True)
    note = "linear classifier, training families that the fit did not see"
    return [
        {"metric": f"AUROC ↑, {name}", "mode": "latent code", "value": scores["auroc"], "note": note}
        for name, scores in named
        if "auroc" in scores
    ]


def editing_table(document: dict[str, Any]) -> str:
    """Renders a table of what edits of each strength change."""
    columns = ("attribute", "auroc", "strength", "target", "side effect", "on", "lpips")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in document["rows"]:
        cells = (f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in columns)
        lines.append(f"| {' | '.join(cells)} |")
    return (
        "\n\n### Edits\n\nTest images without the attribute were edited towards it and encoded again "
        f"({document['rows'][0]['images']} images each, {document['mode']}, {document['steps']} steps; "
        "`benchmarks/measure_editing.py`). *auroc*: of the classifier on the test families; *target*: mean change of the "
        "attribute's probability; *side effect*: the largest mean absolute change of another attribute; *on*: which one; "
        "*lpips*: to the unedited reconstruction.\n\n" + "\n".join(lines)
    )


def sampling_table(figures: dict[str, Any], training: dict[str, Any]) -> str:
    """Renders a table of samples' Fréchet distances, and of their distance to training codes."""
    titles = {
        "latent_code_model": "latent code model",
        "gaussian": "Gaussian codes, decoded",
        "held_out": "test images",
    }
    lines = ["| images | FD-VGG16 | nearest training code |", "|---|---|---|"]
    for name, title in titles.items():
        row = figures[name]
        lines.append(f"| {title}, {row['num_images']:,} | {row['fd_vgg16']:.1f} | {row['nearest']:.2f} |")
    return (
        f"\n\n### New images\n\n`pipe.sample()`, with a latent code model that saw {training['examples']:,} codes; "
        f"{figures['steps']} steps of DPM-Solver++ (`benchmarks/measure_sampling.py`). *FD-VGG16*: to the training images; it "
        "falls with the number of images. *nearest training code*: the median distance to it, divided by that of test images; "
        "far below 1 would mean copies.\n\n" + "\n".join(lines)
    )


def draw_editing(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draws the table's figures: AUROC by attribute, target and LPIPS over strength."""
    attributes = list(dict.fromkeys(row["attribute"] for row in rows))
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    bars, *panels = figure.subplots(1, 3)
    bars.barh(attributes, [next(row["auroc"] for row in rows if row["attribute"] == name) for name in attributes])
    bars.set(title="AUROC, test families", xlim=(0.5, 1))
    for axes, column, title in zip(panels, ("target", "lpips"), ("change of probability", "LPIPS"), strict=True):
        for name in attributes:
            points = [(row["strength"], row[column]) for row in rows if row["attribute"] == name]
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set(title=title, xlabel="strength")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--earlier", type=Path)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--further", type=Path, nargs="*", default=[])
    parser.add_argument("--editing", type=Path)
    parser.add_argument("--sampling", type=Path)
    parser.add_argument("--codes", type=Path)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--hardware", required=True, help="hardware that the training ran on")
    arguments = parser.parse_args()

    name, about = arguments.name, MODELS[arguments.name]
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(name)
    configuration = json.loads((arguments.run / "configuration.json").read_text())
    records, experiment = read_json_lines(arguments.run / "metrics.jsonl"), configuration["experiment"]
    if arguments.earlier:
        earlier = read_json_lines(arguments.earlier)
        start = earlier[-1]["examples"]
        records = earlier + [record | {"examples": start + record["examples"]} for record in records]
        experiment["phase1_fraction"] = about["phase1_examples"] / records[-1]["examples"]
    write_text(FOLDER / f"{name}_training.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    draw_curves(FOLDER / "images" / f"{name}_training.png", records)
    report = copy_report(arguments.evaluation, f"{name}_evaluation", pipeline)
    links = f"[{name}_evaluation.md]({name}_evaluation.md)"
    picture = f"images/{name}_evaluation_reconstructions.png"
    for folder in arguments.further:
        further = json.loads((folder / "report.json").read_text())
        page = f"{name}_{'_'.join(further['modes'])}_{further['num_images']}"
        copy_report(folder, page, pipeline)
        links += f", [{page}.md]({page}.md)"
        if "perceptual_path_length" in further["results"]:
            report["path_length_intervals"] = further["path_length_intervals"]
        for method, measured in further["results"].items():
            report["results"][method] = measured | report["results"].get(method, {})
        if len(further["modes"]) > len(report["modes"]):
            report |= {"modes": further["modes"], "pictures": further["pictures"]}
            picture = f"images/{page}_reconstructions.png"
    results = [{**line, "dataset": about["test data"]} for line in card_results(report)]
    results += attribute_results(pipeline.attribute_classifier)  # measured on parts of the training set
    seconds = examples = 0
    for record in records:  # a line's rate holds since the line before it
        if "examples_per_second" in record:
            seconds += (record["examples"] - examples) / record["examples_per_second"]
            examples = record["examples"]
    evaluation = (
        f"Means over images of {about['test images']}, in their order; {report['steps']} steps (for inversion, in "
        f"each direction); averaged (EMA) weights. The full reports, with their commands: {links}."
    )
    if "paper" in about:
        evaluation += comparison_with_the_paper(about["paper"], pipeline)
    if arguments.tables:
        evaluation += options_beyond_the_paper(arguments.tables)
    if arguments.editing:
        document, drawn = json.loads(arguments.editing.read_text()), f"images/{name}_editing.png"
        evaluation += editing_table(document)
        draw_editing(FOLDER / drawn, document["rows"])
        evaluation += f"\n\n![AUROC by attribute; change of probability and LPIPS over strength]({drawn})"
        evaluation += (
            "\n\n![Emoji, from the code alone, round trips, two edits, an interpolation, new ones](images/emoji.png)\n\n"
            "*Test images, from the top: originals, from the code alone, round trips, edits towards medium-dark and light "
            "skin (strengths 0 to 0.5), an interpolation, new images (`examples/demo.py`).*"
        )
    if arguments.sampling:
        drawn = f"images/{name}_samples.png"
        shutil.copy(arguments.sampling / "samples.png", FOLDER / drawn)
        lines = arguments.codes.read_text().splitlines()
        evaluation += sampling_table(
            json.loads((arguments.sampling / "figures.json").read_text()), json.loads(lines[-1])
        )
        evaluation += f"\n\n![Samples, each above the training image of the nearest code]({drawn})"
    psnr = {method: figure["psnr_db"]["mean"] for method, figure in report["results"].items() if "psnr_db" in figure}
    limitations = list(about["limitations"])
    if psnr.get("pca", 0) > psnr["stochastic"]:
        limitations.insert(0, "Far from converged: PCA of the same size has a higher PSNR than the code alone.")
    title = report["pictures"]["reconstructions.png"]
    weights = sum(path.stat().st_size for path in bundled_model_path(name).rglob("*.safetensors"))
    components = {part: getattr(pipeline, part) for part in ("encoder", "decoder", "latent_code_model")}
    figures = {
        "model_name": name,
        "summary": f"{about['summary']}\n\n![{title}]({picture})\n\n"
        f"*Test images, from the top: {title.lower()}; {report['steps']} steps.*",
        "license": about["license"],
        "dataset": about["dataset"],
        "experiment": experiment,
        "parameters": {part: network.num_parameters() for part, network in components.items() if network is not None},
        "training": {
            "examples": max(r["examples"] for r in records),
            "hours": round(seconds / 3600, 2),
            "hardware": f"{arguments.hardware}, {PRECISION[configuration['run']['mixed_precision']]}",
            "weights as saved": f"{weights / 1e6:.1f} MB, float16",
            **about.get("training", {}),
        },
        "results": results,
        "evaluation": evaluation,
        "limitations": limitations,
    }
    card = render_model_card(figures)
    card = card.replace("## Networks", f"![Loss and validation PSNR](images/{name}_training.png)\n\n## Networks")
    (FOLDER / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    (FOLDER / f"{name}.md").write_text(card)
    # For the card of a push without `--card`, which has no pictures.
    own = {key: figures[key] for key in ("license", "dataset", "parameters", "training", "results", "limitations")}
    bundled = json.dumps({"summary": about["summary"], **own}, indent=2) + "\n"
    (bundled_model_path(name) / "figures.json").write_text(bundled)
    print(json.dumps(results, indent=2))


def comparison_with_the_paper(preset: str, pipeline: DiffusionAutoencoderPipeline) -> str:
    """Describes the paper's CIFAR-10 model and its figures."""
    paper = preset_named(preset)
    with torch.device("meta"):
        paper_parameters = paper.build("encoder").num_parameters() + paper.build("decoder").num_parameters()
    own_parameters = pipeline.encoder.num_parameters() + pipeline.decoder.num_parameters()
    psnr = {mode: figures[0] for mode, figures in zip(METHODS, TABLE_4["CIFAR-10 32"][TWO_PHASE], strict=True)}
    return (
        f"\n\nFor comparison: the paper's CIFAR-10 model, with {paper_parameters / own_parameters:.0f} times the parameters "
        f"and {paper.training_examples / 1e6:.0f}M examples, reaches {psnr['stochastic']:.3f} dB stochastic and "
        f"{psnr['inversion']:.3f} dB by inversion (table 4, on the original images). JPEG does so well here because these images "
        "have been JPEG files before."
    )


if __name__ == "__main__":
    main()
