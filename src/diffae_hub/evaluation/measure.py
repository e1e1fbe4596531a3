"""Step 2 of an evaluation: from the files in its folder to the figures of report.json. The model is not needed."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..codes.shards import codes_summary, load_codes
from ..devices import find_device, join_processes
from ..files import read_json, write_text
from ..metrics import frechet, linear_probe
from ..metrics.bootstrap import bootstrap_interval
from ..metrics.lpips import PerceptualDistance
from ..metrics.weights import WeightsUnavailable
from .baselines import latent_code_bytes
from .evaluation_folder import ORIGINALS, EvaluationFolder, StageClock, batches
from .options import IMAGE_METRICS, PATH_LENGTH, EvaluationOptions
from .reconstruct import path_lengths

_FACTS = ("weights", "num_images", "latent_dim", "sample_size", "baselines_fitted_on", "parameters", "machine")


def measure(path: Path, show_progress: bool = False) -> dict[str, Any]:
    """Measures what `reconstruct.py` left in the folder and writes report.json.

    Args:
        path: The evaluation's folder.
        show_progress: Whether to show progress bars.

    Raises:
        ValueError: If a file in the folder is broken or does not fit the options.
        WeightsUnavailable: If a metric of `options.require` has no weights.
    """
    options, facts = EvaluationOptions.load(path), read_json(path / "run.json", _FACTS)
    folder, clock, count = EvaluationFolder(path), StageClock(path / "timings.json"), facts["num_images"]
    device = find_device(options.device, join_processes(options.device))
    results: dict[str, Any] = {}
    if options.probe:
        with clock.measure(f"probe_{options.probe}") as measured:
            results["probe"] = _probe(options)
            measured.images = results["probe"]["test_codes"]
    missing: dict[str, Exception] = {}  # metrics that cannot be had, so that they are tried once only
    for method in options.methods:
        scores = folder.scores(method)
        indices = [index for index in range(count) if index in scores]
        if not indices:
            raise ValueError(f"{path} must hold scores of {method}, got none")
        results[method] = _from_scores([scores[index] for index in indices], options.seed, facts["latent_dim"])
        for metric in options.metrics:
            if metric not in missing:
                with clock.measure(f"{metric}_{method}") as measured:
                    try:
                        results[method][metric] = _metric(
                            metric, folder, method, indices, options, device, show_progress
                        )
                        measured.images = len(indices)
                    except (WeightsUnavailable, ImportError, ValueError) as error:  # ValueError: too small images
                        missing[metric] = error
            if metric in missing:
                results[method][metric] = _unavailable(metric, missing[metric], options)
    if options.path_length_pairs:
        results[PATH_LENGTH] = _path_length(folder, options, count, device)
    figures = {
        **options.as_json(),
        **facts,
        "modes": list(options.modes),
        "results": results,
        "timings": clock.timings,
    }
    figures = _plain(figures)
    write_text(path / "report.json", json.dumps(figures, indent=2) + "\n")
    return figures


def check_required(options: EvaluationOptions, device: torch.device) -> None:
    """Loads the weights of the required metrics, so that a missing one is known before the sampling.

    Raises:
        WeightsUnavailable: If one is missing.
    """
    for metric in options.require:
        try:
            if metric == PATH_LENGTH or metric in IMAGE_METRICS:
                PerceptualDistance("vgg" if metric == PATH_LENGTH else metric.removeprefix("lpips_"), device=device)
                continue
            with tempfile.TemporaryDirectory() as name:  # it loads its own weights: it is tried on two images
                for index in range(2):
                    Image.new("RGB", (32, 32), (100 * index,) * 3).save(Path(name) / f"{index}.png")
                _frechet(metric, Path(name), Path(name), options, device)
        except (WeightsUnavailable, ImportError) as error:
            _unavailable(metric, error, options)


def _from_scores(scores: Sequence[dict[str, float]], seed: int, latent_dim: int) -> dict[str, Any]:
    """What was scored while sampling, over the images."""
    results = {name: _summary([score[name] for score in scores], seed) for name in ("psnr_db", "ssim")}
    energy, of_originals = (sum(score[name] for score in scores) for name in ("high_pass", "high_pass_original"))
    results["sharpness"] = {"value": energy / of_originals if of_originals else math.nan, "count": len(scores)}
    sizes = [score["bytes"] for score in scores if "bytes" in score]
    if sizes:
        budget = latent_code_bytes(latent_dim)
        over = sum(size > budget for size in sizes)
        results["bytes"] = {"mean": float(np.mean(sizes)), "budget": budget, "over_budget": over}
    return results


def _metric(
    metric: str,
    folder: EvaluationFolder,
    method: str,
    indices: Sequence[int],
    options: EvaluationOptions,
    device: torch.device,
    show_progress: bool,
) -> dict[str, Any]:
    """A metric of the PNG files."""
    if metric not in IMAGE_METRICS:
        with _only(folder, ORIGINALS, indices) as originals, _only(folder, method, indices) as reconstructions:
            return {"value": _frechet(metric, reconstructions, originals, options, device), "count": len(indices)}
    distance = PerceptualDistance(metric.removeprefix("lpips_"), device=device)
    values: list[float] = []
    for batch in tqdm(list(batches(indices, 100)), desc=f"{metric} {method}", disable=not show_progress):
        pair = (folder.read(name, batch).to(device) for name in (method, ORIGINALS))
        values += distance(*pair).tolist()
    return _summary(values, options.seed)


def _frechet(metric: str, folder_a: Path, folder_b: Path, options: EvaluationOptions, device: torch.device) -> float:
    more = {"model": options.dinov2_model} if metric == "fd_dinov2" else {}
    return getattr(frechet, metric)(folder_a, folder_b, device=str(device), **more)


@contextmanager
def _only(folder: EvaluationFolder, method: str, indices: Sequence[int]) -> Iterator[Path]:
    """A folder with the PNG files of these images and no others: the method's own, or one of links."""
    path = folder.path / method
    if sum(1 for _ in path.glob("*.png")) == len(indices):
        yield path
        return
    with tempfile.TemporaryDirectory() as name:
        for index in indices:
            file = folder.file(method, index)
            (Path(name) / file.name).symlink_to(file.resolve())
        yield Path(name)


def _path_length(
    folder: EvaluationFolder, options: EvaluationOptions, count: int, device: torch.device
) -> dict[str, Any]:
    records = list(path_lengths(folder, options, count).values())
    if len(records) < options.path_length_pairs:  # the network was not there
        try:
            PerceptualDistance("vgg", device=device)
        except (WeightsUnavailable, ImportError) as error:
            return _unavailable(PATH_LENGTH, error, options)
    if not records:
        raise ValueError(f"{folder.path} must hold path lengths, got none")
    lengths, fades = ([record[name] for record in records] for name in ("path_length", "cross_fade"))
    return {**_summary(lengths, options.seed), "cross_fade": _summary(fades, options.seed)}


def _probe(options: EvaluationOptions) -> dict[str, Any]:
    """Linear probe of the codes."""
    columns, folders = options.label_columns, [options.output / f"codes_{name}" for name in ("train", "test")]
    train, test = (load_codes(folder, columns) for folder in folders)
    try:
        labels = [
            codes[columns[0]] if len(columns) == 1 else np.stack([codes[name] for name in columns], axis=1)
            for codes in (train, test)
        ]
        names = list(columns)
        if len(names) == 1 and labels[0].ndim == 2:  # a column of lists
            names = [f"{names[0]}[{position}]" for position in range(labels[0].shape[1])]
        result = getattr(linear_probe, f"{options.probe}_probe")(
            train["latent_code"], labels[0], test["latent_code"], labels[1]
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"label_columns must fit the probe {options.probe}, got {', '.join(columns)}: {error}"
        ) from error
    if options.probe == "multilabel":
        result["left_out"] = [names[position] for position in result["left_out"]]
    classes = codes_summary(folders[1])["class_names"].get(columns[0])
    if classes and options.probe == "multiclass":
        result["class_names"] = [classes[label] for label in result["classes"]]
    sizes = {"train_codes": len(train["index"]), "test_codes": len(test["index"])}
    return {"task": options.probe, "labels": names, **sizes, **result}


def _summary(values: Sequence[float], seed: int) -> dict[str, Any]:
    low, high = bootstrap_interval(values, seed=seed) if len(values) > 1 else (values[0], values[0])
    return {"mean": float(np.mean(values)), "interval": [low, high], "count": len(values)}


def _unavailable(metric: str, error: Exception, options: EvaluationOptions) -> dict[str, str]:
    if metric in options.require:
        raise WeightsUnavailable(f"{metric} is required, but cannot be had: {error}") from error
    return {"unavailable": " ".join(str(error).split())}


def _plain(value: Any) -> Any:
    """None for a number that is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
