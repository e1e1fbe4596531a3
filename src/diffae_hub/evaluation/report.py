"""Step 3 of an evaluation: from report.json and the files in its folder to a Markdown page in the layout of the paper.

Tables of the paper's figures beside ours, plots and pictures. Neither the model nor a metric is needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import new_file, read_json, write_png, write_text
from ..images import film_strip
from .evaluation_folder import ORIGINALS, EvaluationFolder
from .options import PATH_LENGTH, EvaluationOptions
from .paper_tables import (
    HUDSON,
    METRIC_TITLES,
    METRICS,
    PROBE_ACCURACY,
    TABLE_4,
    TABLE_5,
    TABLE_9,
    TABLE_10,
    TABLE_10_AVERAGE,
    TABLE_11,
    TABLE_11_AVERAGE,
    TrainingMethod,
    format_papers,
)
from .reconstruct import interpolations

METRIC_NAMES = {
    **METRIC_TITLES,
    "lpips_vgg": "LPIPS-VGG ↓",
    "fd_vgg16": "FD-VGG16 ↓",
    "fd_dinov2": "FD-DINOv2 ↓",
    "sharpness": "Sharpness → 1",
}
_DECIMALS = {"psnr_db": 2, "ssim": 4, "lpips_alex": 6, "lpips_vgg": 6}
_PAPER_DATASETS = {32: "CIFAR-10 32", 64: "CelebA 64", 128: "Bedroom 128"}
_NUM_PICTURES = 10
_GAP = 4


def write_report(path: Path, command: str | None = None) -> dict[str, Any]:
    """Writes report.md and the pictures; adds to report.json which these are, and how the evaluation was called.

    Args:
        path: The evaluation's folder, measured by `measure.py`.
        command: How it was called.

    Returns:
        What report.json holds.
    """
    figures = read_json(path / "report.json", ("results", "modes", "timings"))
    folder, options = EvaluationFolder(path), EvaluationOptions.load(path)
    pictures = _pictures(folder, options, figures["num_images"])
    figures |= {"command": command, "pictures": pictures | _plots(folder, options, figures)}
    page = render_report(figures)
    write_text(path / "report.json", json.dumps(figures, indent=2) + "\n")
    write_text(path / "report.md", page)
    return figures


def render_report(figures: Mapping[str, Any]) -> str:
    """The Markdown page of an evaluation, from what report.json holds."""
    paper_dataset = figures["paper_dataset"] or _PAPER_DATASETS.get(figures["sample_size"], "CIFAR-10 32")
    results = figures["results"]
    sections = [f"# Evaluation of {figures['model']}", _what(figures)]
    if figures["command"]:
        sections.append(f"```sh\n{figures['command']}\n```")
    for mode in figures["modes"]:
        title = "Stochastic autoencoding" if mode == "stochastic" else "Inversion"
        sections += [f"## {title}", _reconstruction_table(figures, mode, paper_dataset)]
    sections.append(_notes(figures, paper_dataset))
    if PATH_LENGTH in results:
        sections += ["## Perceptual path length", _path_length_table(figures, paper_dataset)]
    if "probe" in results:
        sections += ["## Linear probe of the latent code", _probe_section(results["probe"])]
    sections += ["## Time", _time_table(figures["timings"]), "## Pictures"]
    sections += [f"{caption}:\n\n![{caption}]({name})" for name, caption in figures["pictures"].items()]
    return "\n\n".join(sections) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ---- pictures: file name -> caption ----------------------------------------------------------------------------------


def _pictures(folder: EvaluationFolder, options: EvaluationOptions, count: int) -> dict[str, str]:
    """Originals over reconstructions and errors; interpolations."""
    indices = range(min(_NUM_PICTURES, count))
    originals = folder.read(ORIGINALS, indices)
    rows, names = [originals], ["originals"]
    for mode in options.modes:
        reconstructions = folder.read(mode, indices)
        rows += [reconstructions, (5 * (reconstructions - originals).abs()).clamp(0, 1)]
        names += ["inverted" if mode == "inversion" else mode, "its error x 5"]
    _save_rows([film_strip(list(row)) for row in rows], folder.path / "reconstructions.png")
    pictures = {"reconstructions.png": ", ".join(names).capitalize()}
    if "inversion" in options.modes:
        strips = [Image.open(path) for _, path in interpolations(options, count)]
        _save_rows(strips, folder.path / "interpolation.png")
        pictures["interpolation.png"] = "Interpolation of code and noise between the images at both ends"
    return pictures


def _save_rows(strips: Sequence[Image.Image], path: Path) -> None:
    height = sum(strip.height + _GAP for strip in strips) - _GAP
    picture = Image.new(strips[0].mode, (strips[0].width, height), "white")
    for row, strip in enumerate(strips):
        picture.paste(strip, (0, row * (strip.height + _GAP)))
    write_png(path, picture)


def _plots(folder: EvaluationFolder, options: EvaluationOptions, figures: Mapping[str, Any]) -> dict[str, str]:
    """PSNR per image and AUROC per label, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return {}
    plots = {"psnr.png": "PSNR per image"}
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for method in options.methods:
        values = [score["psnr_db"] for index, score in folder.scores(method).items() if index < figures["num_images"]]
        axes.hist(values, bins=40, histtype="step", label=method.replace("_", " "))
    axes.set(xlabel="PSNR (dB)", ylabel="images")
    axes.legend()
    with new_file(folder.path / "psnr.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    names, aurocs = _aurocs(figures["results"].get("probe", {"task": None}))
    if names:
        plots["auroc.png"] = "AUROC of linear probes"
        figure = Figure(figsize=(7, 1 + 0.2 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(names[::-1], [value or 0 for value in aurocs[::-1]])
        axes.set(xlabel="AUROC", xlim=(0.5, 1))
        with new_file(folder.path / "auroc.png") as temporary:
            figure.savefig(temporary, format="png", dpi=110)
    return plots


def _aurocs(probe: Mapping[str, Any]) -> tuple[list[str], list[float | None]]:
    """Labels and the AUROC of each."""
    if probe["task"] == "multiclass":
        return [str(name) for name in probe.get("class_names", probe["classes"])], probe["auroc_per_class"]
    if probe["task"] == "multilabel":
        return probe["labels"], probe["auroc_per_attribute"]
    return [], []


# ---- sections --------------------------------------------------------------------------------------------------------


def _what(figures: Mapping[str, Any]) -> str:
    machine, parameters = figures["machine"], figures["parameters"]
    rows = [
        ["data", f"{figures['dataset']}, split {figures['split']}, the first {figures['num_images']:,} images"],
        *([["about the data", figures["data_note"]]] if figures.get("data_note") else []),
        ["training", figures.get("budget") or "not stated"],
        ["parameters", f"encoder {parameters['encoder']:,}, decoder {parameters['decoder']:,}"],
        ["latent code", f"{figures['latent_dim']} numbers"],
        ["steps", f"{figures['steps']} (decoding by {figures['solver'].upper()}, and plain DDIM inversion)"],
        ["seed", str(figures["seed"])],
        ["networks in", figures["dtype"]],
        [
            "measured on",
            f"{machine['device']}, {machine['processes']} process(es) of {machine['threads']} thread(s), "
            f"torch {machine['torch']}",
        ],
    ]
    return markdown_table(["", ""], rows)


def format_figure(metric: str, figure: Mapping[str, Any] | None, interval: bool = True) -> str:
    """A measured figure as a cell: mean and 95 % interval, a value, or n/a."""
    if figure is None or figure.get("value", figure.get("mean")) is None:
        return "n/a"
    decimals = _DECIMALS.get(metric, 2)
    if "value" in figure:
        return f"{figure['value']:.{decimals}f}"
    text = f"{figure['mean']:.{decimals}f}"
    low, high = figure["interval"]
    if interval and low is not None and math.isfinite(low):
        text += f" [{low:.{decimals}f}, {high:.{decimals}f}]"
    return text


def _measured_metrics(results: Mapping[str, Any], mode: str) -> list[str]:
    return [metric for metric in METRIC_NAMES if metric in results[mode] or metric in METRICS]


def _reconstruction_table(figures: Mapping[str, Any], mode: str, paper_dataset: str) -> str:
    results = figures["results"]
    metrics = _measured_metrics(results, mode)

    def row(title: str, method: str) -> list[str]:
        measured = results[method]  # a metric that was not asked for leaves its cell empty
        return [title, *(format_figure(metric, measured[metric]) if metric in measured else "" for metric in metrics)]

    rows = [row(f"**{figures['model']}**", mode)]
    if f"compare_{mode}" in results:
        rows.append(row(figures["compare"], f"compare_{mode}"))
    rows += [row(baseline_title(name, figures), name) for name in figures["baselines"]]
    for method, modes in TABLE_4[paper_dataset].items():
        rows.append(_paper_row(method, modes[0 if mode == "stochastic" else 1], metrics))
    if mode == "stochastic":
        rows.append(_paper_row(HUDSON, TABLE_9[paper_dataset], metrics))
    return markdown_table(["", *(METRIC_NAMES[metric] for metric in metrics)], rows)


def baseline_title(name: str, figures: Mapping[str, Any]) -> str:
    """A baseline's row, with its size."""
    if name == "pca":
        return f"PCA, {figures['baselines_fitted_on']['pca_components']} numbers"
    if name == "jpeg":
        return f"JPEG, {figures['results']['jpeg']['bytes']['budget']:,} bytes"
    return "mean of the training images"


def _paper_row(method: TrainingMethod, values: Sequence[float], metrics: Sequence[str]) -> list[str]:
    by_metric = dict(zip(METRICS, values, strict=True))
    return [f"paper: {method.title}", *(format_papers(m, by_metric[m]) if m in by_metric else "" for m in metrics)]


def _notes(figures: Mapping[str, Any], paper_dataset: str) -> str:
    results = figures["results"]
    lines = [
        "PSNR and SSIM are means over images of floats in [0, 1], with bootstrap 95 % intervals; all other metrics are "
        "taken on images rounded to 8 bits. Sharpness is high-pass energy (of floats too), relative to the originals'.",
        f"The paper's rows are its own figures for {paper_dataset}: 50,000 images, its networks and training lengths "
        "(tables 4 and 9).",
    ]
    if "jpeg" in figures["baselines"]:
        sizes = results["jpeg"]["bytes"]
        over = sizes["over_budget"]
        lines.append(
            "JPEG: the highest quality, for each image, whose entropy-coded data take no more bytes than the latent "
            f"code at 16 bits a number; headers and tables are not counted. {sizes['mean']:,.0f} bytes on average"
            + (f"; {sizes['over_budget']:,} images took more even at the lowest quality." if over else ".")
        )
    if {"mean_image", "pca"} & set(figures["baselines"]):
        fitted = figures["baselines_fitted_on"]
        lines.append(
            f"Mean image and PCA are fitted on {fitted['images']:,} images of {fitted['train_dataset']}, split "
            f"{fitted['train_split']}."
        )
    reasons = {}
    for name, measured in results.items():
        for metric, figure in measured.items() if name != PATH_LENGTH else [(name, measured)]:
            if isinstance(figure, Mapping) and "unavailable" in figure:
                reasons[METRIC_NAMES.get(metric, metric)] = figure["unavailable"]
    lines += [f"{metric} n/a: {reason}" for metric, reason in reasons.items()]
    return "\n".join(f"- {line}" for line in lines)


def _path_length_table(figures: Mapping[str, Any], paper_dataset: str) -> str:
    figure = figures["results"][PATH_LENGTH]
    if "unavailable" in figure:
        return f"n/a: {figure['unavailable']}"
    rows = [
        [
            f"**{figures['model']}**, {figure['count']} pairs, {figures['path_length_intervals']} sub-intervals",
            format_figure(PATH_LENGTH, figure),
        ],
        [
            "one image fading into the other, the same pairs",
            format_figure(PATH_LENGTH, figure["cross_fade"]),
        ],
        *([f"paper: {method.title}, 200 pairs", f"{value:g}"] for method, value in TABLE_5[paper_dataset].items()),
    ]
    return markdown_table(["", "PPL ↓ (LPIPS-VGG)"], rows)


def _decimals(value: float | None) -> str:
    return "n/a" if value is None or math.isnan(value) else f"{value:.4f}"


def _probe_section(probe: Mapping[str, Any]) -> str:
    counts = f"Trained on {probe['train_codes']:,} codes, tested on {probe['test_codes']:,}."
    if probe["task"] == "regression":
        rows = [
            [label, *(_decimals(probe[key][column]) for key in ("r_squared", "mean_absolute_error", "pearson"))]
            for column, label in enumerate(probe["labels"])
        ]
        return counts + "\n\n" + markdown_table(["target", "R² ↑", "mean absolute error ↓", "correlation ↑"], rows)
    names, per_label = _aurocs(probe)
    multiclass = probe["task"] == "multiclass"
    table, averages = (TABLE_11, TABLE_11_AVERAGE) if multiclass else (TABLE_10, TABLE_10_AVERAGE)
    # The paper's figures belong beside its own data only: the ten classes of CIFAR-10, CelebA's forty attributes.
    beside = set(names) == set(table)
    header = ["", "ours", *(f"paper: {method.title}" for method in averages if beside)]

    def row(title: str, ours: str, papers: Sequence[float]) -> list[str]:
        return [title, ours, *(_decimals(value) for value in papers if beside)]

    rows = []
    if multiclass:
        rows.append(row("accuracy ↑", f"**{_decimals(probe['accuracy'])}**", list(PROBE_ACCURACY.values())))
    rows.append(row("AUROC ↑, macro average", f"**{_decimals(probe['auroc_macro'])}**", list(averages.values())))
    for name, value in zip(names, per_label, strict=True):
        rows.append(row(f"AUROC, {name}", _decimals(value), table[name] if beside else ()))
    return counts + "\n\n" + markdown_table(header, rows)


def _time_table(timings: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [stage, f"{entry['seconds']:,.1f}", f"{entry['images']:,}", f"{entry['images_per_second']:,.1f}"]
        for stage, entry in timings.items()
    ]
    return markdown_table(["stage (of the first process)", "seconds", "images or pairs", "per second"], rows)
