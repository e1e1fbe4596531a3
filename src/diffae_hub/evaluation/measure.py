"""Step 2 of an evaluation: from the files in its folder to the figures of report.json. The model is not needed."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..codes import load_codes, named_classes
from ..devices import join_processes
from ..files import read_json, write_text
from ..metrics import linear_probe
from ..metrics.bootstrap import bootstrap_interval
from ..metrics.frechet import FEATURES, frechet_distance
from ..metrics.lpips import PerceptualDistance
from ..metrics.weights import WeightsUnavailable
from .baselines import BYTES_PER_NUMBER
from .evaluation_folder import ORIGINALS, EvaluationFolder, batches
from .options import PATH_LENGTH, EvaluationOptions

_FACTS = ("weights", "num_images", "latent_dim", "sample_size", "baselines_fitted_on", "parameters", "machine")


def measure(path: Path, show_progress: bool = False) -> dict[str, Any]:
    """Measures what `reconstruct.py` left in the evaluation's folder, writes report.json and returns its content.

    A metric that cannot be computed is in it as `{"unavailable": why}`; a required one raises `WeightsUnavailable`.
    """
    options, facts = EvaluationOptions.load(path), read_json(path / "run.json", _FACTS)
    folder, count = EvaluationFolder(path), facts["num_images"]
    _, device = join_processes(options.device)
    results: dict[str, Any] = {}
    if options.probe:
        try:
            results["probe"] = _probe(options)
        except ValueError as error:  # labels that do not fit
            results["probe"] = _unavailable("probe", error, options)
    for method in options.methods:
        scores = [score for index, score in folder.scores(method).items() if index < count]
        results[method] = _from_scores(scores, options.seed, facts["latent_dim"])
    for metric in options.metrics:
        try:
            measured = _metric(metric, folder, range(count), options, device, show_progress)
        except (WeightsUnavailable, ImportError, ValueError) as error:  # ValueError: images that are too small
            measured = dict.fromkeys(options.methods, _unavailable(metric, error, options))
        for method, figure in measured.items():
            results[method][metric] = figure
    if options.path_length_pairs:
        results[PATH_LENGTH] = _path_length(folder, options, count, device)
    figures = _plain({**options.as_json(), **facts, "modes": options.modes, "results": results})
    write_text(path / "report.json", json.dumps(figures, indent=2) + "\n")
    return figures


def check_required(options: EvaluationOptions, device: torch.device) -> None:
    """Loads the weights of the required metrics, so that missing ones are found before the sampling."""
    for metric in options.require:
        try:
            _load(metric, options, device)
        except (WeightsUnavailable, ImportError) as error:
            _unavailable(metric, error, options)


def _load(metric: str, options: EvaluationOptions, device: torch.device) -> Any:
    """Loads the network of a metric: a function of image files for Fréchet distances, of pairs of images for others."""
    if metric in FEATURES:
        return FEATURES[metric](device, **({"model": options.dinov2_model} if metric == "fd_dinov2" else {}))
    return PerceptualDistance("vgg" if metric == PATH_LENGTH else metric.removeprefix("lpips_"), device)


def _from_scores(scores: Sequence[dict[str, float]], seed: int, latent_dim: int) -> dict[str, Any]:
    """Summarises the scores that were computed while sampling."""
    results = {name: _summary([score[name] for score in scores], seed) for name in ("psnr_db", "ssim")}
    energy, of_originals = (sum(score[name] for score in scores) for name in ("high_pass", "high_pass_original"))
    results["sharpness"] = {"value": energy / of_originals if of_originals else math.nan, "count": len(scores)}
    if "bytes" in scores[0]:
        sizes, budget = [score["bytes"] for score in scores], BYTES_PER_NUMBER * latent_dim
        over = sum(size > budget for size in sizes)
        results["bytes"] = {"mean": float(np.mean(sizes)), "budget": budget, "over_budget": over}
    return results


def _metric(
    metric: str,
    folder: EvaluationFolder,
    indices: range,
    options: EvaluationOptions,
    device: torch.device,
    show_progress: bool,
) -> dict[str, dict[str, Any]]:
    """Computes a metric of all methods on the PNG files."""
    network, figures = _load(metric, options, device), {}
    if metric in FEATURES:
        features = {
            name: network([folder.file(name, index) for index in indices]) for name in (ORIGINALS, *options.methods)
        }
        originals = features.pop(ORIGINALS)
        return {name: {"value": frechet_distance(of, originals), "count": len(of)} for name, of in features.items()}
    for method in options.methods:
        values: list[float] = []
        for batch in tqdm(list(batches(indices, 100)), desc=f"{metric} {method}", disable=not show_progress):
            values += network(*(folder.read(name, batch).to(device) for name in (method, ORIGINALS))).tolist()
        figures[method] = _summary(values, options.seed)
    return figures


def _path_length(
    folder: EvaluationFolder, options: EvaluationOptions, count: int, device: torch.device
) -> dict[str, Any]:
    records = list(folder.path_lengths(options, count).values())
    if not records:  # the network was not available
        reason: Exception = RuntimeError("it was not measured; run the evaluation again")
        try:
            PerceptualDistance("vgg", device=device)
        except (WeightsUnavailable, ImportError) as error:
            reason = error
        return _unavailable(PATH_LENGTH, reason, options)
    lengths, fades = ([record[name] for record in records] for name in ("path_length", "cross_fade"))
    return {**_summary(lengths, options.seed), "cross_fade": _summary(fades, options.seed)}


def _probe(options: EvaluationOptions) -> dict[str, Any]:
    """Linear probe of the codes."""
    names, folders = list(options.label_columns), [options.output / f"codes_{name}" for name in ("train", "test")]
    train, test = (load_codes(folder, names) for folder in folders)
    if gaps := [name for name in names for codes in (train, test) if codes[name].dtype == object]:
        raise ValueError(f"label_columns must hold a value for every image, but {gaps[0]} does not")
    learnt, expected = (
        codes[names[0]] if len(names) == 1 else np.stack([codes[name] for name in names], axis=1)
        for codes in (train, test)
    )
    if options.probe == "multiclass":
        learnt, expected = (named_classes(*pair, names[0]) for pair in zip((learnt, expected), folders, strict=True))
    if len(names) == 1 and learnt.ndim == 2:  # a column of lists
        names = [f"{names[0]}[{position}]" for position in range(learnt.shape[1])]
    probe = getattr(linear_probe, f"{options.probe}_probe")
    result = probe(train["latent_code"], learnt, test["latent_code"], expected)
    if options.probe == "multilabel":
        result["left_out"] = [names[position] for position in result["left_out"]]
    sizes = {"train_codes": len(train["index"]), "test_codes": len(test["index"])}
    return {"task": options.probe, "labels": names, **sizes, **result}


def _summary(values: Sequence[float], seed: int) -> dict[str, Any]:
    low, high = bootstrap_interval(values, seed=seed) if len(values) > 1 else (values[0], values[0])
    return {"mean": float(np.mean(values)), "interval": [low, high], "count": len(values)}


def _unavailable(metric: str, error: Exception, options: EvaluationOptions) -> dict[str, str]:
    if metric in options.require:
        raise WeightsUnavailable(f"{metric} is required, but not available: {error}") from error
    return {"unavailable": " ".join(str(error).split())}


def _plain(value: Any) -> Any:
    """Replaces numbers that are not finite, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
