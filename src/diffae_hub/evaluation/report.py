"""Step 3 of an evaluation: writes a Markdown page in the layout of the paper from report.json and the folder's files.

The page has tables of our figures and the paper's, plots and pictures. Neither the model nor a metric is needed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ..files import new_file, read_json, write_png, write_text
from ..images import image_grid
from ..model_card import markdown_table
from . import paper_tables as paper
from .evaluation_folder import ORIGINALS, EvaluationFolder
from .options import PATH_LENGTH, EvaluationOptions

METRIC_NAMES = {
    "psnr_db": "PSNR (dB) ↑",
    "ssim": "SSIM ↑",
    "lpips_alex": "LPIPS ↓",
    "fid_torch_fidelity": "FID (tf) ↓",
    "fid_clean_fid": "FID (cf) ↓",
    "lpips_vgg": "LPIPS-VGG ↓",
    "fd_vgg16": "FD-VGG16 ↓",
    "fd_dinov2": "FD-DINOv2 ↓",
    "sharpness": "Sharpness → 1",
}
_DECIMALS = {"psnr_db": 2, "ssim": 4, "lpips_alex": 6, "lpips_vgg": 6}
_PAPER_DATASETS = {32: "CIFAR-10 32", 64: "CelebA 64", 128: "Bedroom 128"}
_NUM_PICTURES = 10


def write_report(path: Path, command: str | None = None) -> dict[str, Any]:
    """Writes report.md and the pictures of a folder that `measure.py` has measured. Returns the completed report.json.

    `command` is the command line of the evaluation.
    """
    figures = read_json(path / "report.json", ("results", "modes"))
    folder, options = EvaluationFolder(path), EvaluationOptions.load(path)
    figures |= {"command": command, "pictures": _pictures(folder, options, figures)}
    page = render_report(figures)
    write_text(path / "report.json", json.dumps(figures, indent=2) + "\n")
    write_text(path / "report.md", page)
    return figures


def render_report(figures: Mapping[str, Any]) -> str:
    """Renders the Markdown page of an evaluation from the content of report.json."""
    dataset = figures["paper_dataset"] or _PAPER_DATASETS.get(figures["sample_size"], "none")
    results = figures["results"]
    sections = [f"# Evaluation of {figures['model']}", _what(figures)]
    if figures["command"]:
        sections.append(f"```sh\n{figures['command']}\n```")
    for mode in figures["modes"]:
        title = "Stochastic autoencoding" if mode == "stochastic" else "Inversion"
        sections += [f"## {title}", _reconstruction_table(figures, mode, dataset)]
    sections.append(_notes(figures, dataset))
    if PATH_LENGTH in results:
        sections += ["## Perceptual path length", _path_length_table(figures, dataset)]
    if "probe" in results:
        sections += ["## Linear probe of the latent code", _probe_section(results["probe"])]
    sections += ["## Pictures"]
    sections += [f"{caption}:\n\n![{caption}]({name})" for name, caption in figures["pictures"].items()]
    return "\n\n".join(sections) + "\n"


def format_figure(metric: str, figure: Mapping[str, Any] | None, interval: bool = True) -> str:
    """Formats a measured figure as a cell: mean and 95 % interval, a value, or n/a."""
    value = (figure or {}).get("value", (figure or {}).get("mean"))
    if value is None:
        return "n/a"
    decimals = _DECIMALS.get(metric, 2)
    low, high = figure.get("interval", (None, None))
    ends = f" [{low:.{decimals}f}, {high:.{decimals}f}]" if interval and low is not None else ""
    return f"{value:.{decimals}f}{ends}"


def baseline_title(name: str, figures: Mapping[str, Any]) -> str:
    """Title of a baseline's row, with its size."""
    if name == "pca":
        return f"PCA, {figures['baselines_fitted_on']['pca_components']} numbers"
    if name == "jpeg":
        return f"JPEG, {figures['results']['jpeg']['bytes']['budget']:,} bytes"
    return "mean of the training images"


# ---- pictures: file name -> caption ----------------------------------------------------------------------------------


def _pictures(folder: EvaluationFolder, options: EvaluationOptions, figures: Mapping[str, Any]) -> dict[str, str]:
    """Writes originals above reconstructions and errors, interpolations and plots."""
    count = figures["num_images"]
    indices = range(min(_NUM_PICTURES, count))
    originals = folder.read(ORIGINALS, indices)
    rows, names = [originals], ["originals"]
    for mode in options.modes:
        reconstructions = folder.read(mode, indices)
        rows += [reconstructions, (5 * (reconstructions - originals).abs()).clamp(0, 1)]
        names += ["inverted" if mode == "inversion" else mode, "its error x 5"]
    write_png(folder.path / "reconstructions.png", image_grid(torch.cat(rows), len(indices)))
    pictures = {"reconstructions.png": ", ".join(names).capitalize()}
    if "inversion" in options.modes:
        name = folder.interpolation(count).name
        pictures[name] = "Interpolation of code and noise between the images at both ends"
    psnr = Figure(figsize=(7, 3.2), layout="constrained")
    axes = psnr.subplots()
    for method in options.methods:
        values = [score["psnr_db"] for index, score in folder.scores(method).items() if index < count]
        axes.hist(values, bins=40, histtype="step", label=method.replace("_", " "))
    axes.set(xlabel="PSNR (dB)", ylabel="images")
    axes.legend()
    plots = {"psnr.png": ("PSNR per image", psnr)}
    if aurocs := _aurocs(figures["results"].get("probe", {})):
        auroc = Figure(figsize=(7, 1 + 0.2 * len(aurocs)), layout="constrained")
        axes = auroc.subplots()
        names = [name.replace("$", r"\$") for name in aurocs]  # else matplotlib reads formulas
        axes.barh(names, [value or 0 for value in aurocs.values()])
        axes.set(xlabel="AUROC", xlim=(0.5, 1))
        axes.invert_yaxis()
        plots["auroc.png"] = "AUROC of linear probes", auroc
    for name, (caption, plot) in plots.items():
        with new_file(folder.path / name) as temporary:
            plot.savefig(temporary, format="png", dpi=110)
        pictures[name] = caption
    return pictures


# ---- sections --------------------------------------------------------------------------------------------------------


def _what(figures: Mapping[str, Any]) -> str:
    machine, parameters = figures["machine"], figures["parameters"]
    inverts = "inversion" in figures["modes"] or PATH_LENGTH in figures["results"]
    inversion = ", and plain DDIM inversion" if inverts else ""
    rows = {
        "data": f"{figures['dataset']}, split {figures['split']}, the first {figures['num_images']:,} images",
        "about the data": figures.get("data_note"),
        "training": figures.get("budget"),
        "parameters": f"encoder {parameters['encoder']:,}, decoder {parameters['decoder']:,}",
        "latent code": f"{figures['latent_dim']} numbers",
        "steps": f"{figures['steps']} (decoding by {figures['solver'].upper()}{inversion})",
        "seed": str(figures["seed"]),
        "networks in": figures["dtype"],
        "measured on": f"{machine['device']}, {machine['processes']} process(es) of {machine['threads']} thread(s), "
        f"torch {machine['torch']}",
    }
    return markdown_table(["", ""], [[name, text] for name, text in rows.items() if text])


def _reconstruction_table(figures: Mapping[str, Any], mode: str, dataset: str) -> str:
    results = figures["results"]
    shown = {*results[mode], *(paper.METRICS if dataset in paper.TABLE_4 else ())}
    metrics = [metric for metric in METRIC_NAMES if metric in shown]

    def ours(title: str, method: str) -> list[str]:
        measured = results[method]  # the cell of a metric that was not asked for stays empty
        return [title, *(format_figure(metric, measured[metric]) if metric in measured else "" for metric in metrics)]

    def papers(method: paper.TrainingMethod, values: Sequence[float]) -> list[str]:
        cells = {m: paper.format_papers(m, value) for m, value in zip(paper.METRICS, values, strict=True)}
        return [f"paper: {method.title}", *(cells.get(metric, "") for metric in metrics)]

    rows = [ours(f"**{figures['model']}**", mode)]
    if f"compare_{mode}" in results:
        rows.append(ours(figures["compare"], f"compare_{mode}"))
    rows += [ours(baseline_title(name, figures), name) for name in figures["baselines"]]
    position = 0 if mode == "stochastic" else 1
    rows += [papers(method, modes[position]) for method, modes in paper.TABLE_4.get(dataset, {}).items()]
    if mode == "stochastic" and dataset in paper.TABLE_9:
        rows.append(papers(paper.HUDSON, paper.TABLE_9[dataset]))
    return markdown_table(["", *(METRIC_NAMES[metric] for metric in metrics)], rows)


def _notes(figures: Mapping[str, Any], dataset: str) -> str:
    results, baselines = figures["results"], figures["baselines"]
    lines = [
        "PSNR and SSIM are means over images of floats in [0, 1], with bootstrap 95 % intervals; all other metrics are "
        "taken on images rounded to 8 bits. Sharpness is high-pass energy (of floats too), relative to the originals'.",
    ]
    if dataset in paper.TABLE_4:
        lines.append(
            f"The paper's rows are its own figures for {dataset}: 50,000 images, its networks and training lengths "
            "(tables 4 and 9)."
        )
    if "jpeg" in baselines:
        sizes = results["jpeg"]["bytes"]
        lines.append(
            "JPEG: the highest quality, for each image, whose entropy-coded data take no more bytes than the latent "
            f"code at 16 bits a number; headers and tables are not counted. {sizes['mean']:,.0f} bytes on average; "
            f"{sizes['over_budget']:,} images took more even at the lowest quality."
        )
    if {"mean_image", "pca"} & set(baselines):
        fitted = figures["baselines_fitted_on"]
        source = f"{fitted['train_dataset']}, split {fitted['train_split']}"
        lines.append(f"Mean image and PCA are fitted on {fitted['images']:,} images of {source}.")
    measured = results[figures["modes"][0]].items()  # a metric is unavailable for all methods or for none
    reasons = {METRIC_NAMES[metric]: figure["unavailable"] for metric, figure in measured if "unavailable" in figure}
    return "\n".join(f"- {line}" for line in [*lines, *(f"{name} n/a: {why}" for name, why in reasons.items())])


def _path_length_table(figures: Mapping[str, Any], dataset: str) -> str:
    figure = figures["results"][PATH_LENGTH]
    if "unavailable" in figure:
        return f"n/a: {figure['unavailable']}"
    ours = f"**{figures['model']}**, {figure['count']} pairs, {figures['path_length_intervals']} sub-intervals"
    rows = [
        [ours, format_figure(PATH_LENGTH, figure)],
        ["one image fading into the other, the same pairs", format_figure(PATH_LENGTH, figure["cross_fade"])],
        *(
            [f"paper: {method.title}, 200 pairs", f"{value:g}"]
            for method, value in paper.TABLE_5.get(dataset, {}).items()
        ),
    ]
    return markdown_table(["", "PPL ↓ (LPIPS-VGG)"], rows)


def _aurocs(probe: Mapping[str, Any]) -> dict[str, float | None]:
    """The AUROC of each label."""
    if probe.get("task") == "multiclass":
        names = map(str, probe["classes"])
        return dict(zip(names, probe["auroc_per_class"], strict=True))
    if probe.get("task") == "multilabel":
        return dict(zip(probe["labels"], probe["auroc_per_attribute"], strict=True))
    return {}


def _probe_section(probe: Mapping[str, Any]) -> str:
    def decimals(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.4f}"

    if "unavailable" in probe:
        return f"n/a: {probe['unavailable']}"
    counts = f"Trained on {probe['train_codes']:,} codes, tested on {probe['test_codes']:,}."
    if probe["task"] == "regression":
        header = ["target", "R² ↑", "mean absolute error ↓", "correlation ↑"]
        columns = [map(decimals, probe[key]) for key in ("r_squared", "mean_absolute_error", "pearson")]
        return counts + "\n\n" + markdown_table(header, list(zip(probe["labels"], *columns, strict=True)))
    aurocs, multiclass = _aurocs(probe), probe["task"] == "multiclass"
    table, averages = paper.TABLE_10, paper.TABLE_10_AVERAGE
    if multiclass:
        table, averages = paper.TABLE_11, paper.TABLE_11_AVERAGE
    # The paper's figures are shown only for its own data: the ten classes of CIFAR-10, CelebA's forty attributes.
    beside = set(aurocs) == set(table)
    rows = [["AUROC ↑, macro average", f"**{decimals(probe['auroc_macro'])}**", *map(decimals, averages.values())]]
    if multiclass:
        accuracies = map(decimals, paper.PROBE_ACCURACY.values())
        rows.insert(0, ["accuracy ↑", f"**{decimals(probe['accuracy'])}**", *accuracies])
    rows += [[f"AUROC, {name}", decimals(ours), *map(decimals, table.get(name, ()))] for name, ours in aurocs.items()]
    header = ["", "ours", *(f"paper: {method.title}" for method in averages)]
    columns = len(header) if beside else 2
    return counts + "\n\n" + markdown_table(header[:columns], [row[:columns] for row in rows])
