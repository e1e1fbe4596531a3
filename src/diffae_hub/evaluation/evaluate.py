"""The paper's evaluation of a model: reconstruct a data set, measure it beside baselines, interpolate, probe.

Sampling is shared by the processes of `accelerate launch`; everything after it is measured by the first from the files
in the evaluation's folder. Every image has its own noise, seeded by its index, so that figures depend neither on the
batch size nor on the number of processes, and a run may be continued with another number of them.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from ..codes.shards import class_names, dataset_rows, encode_dataset, finish_codes, load_codes, stored_codes
from ..data.open_dataset import load_rows
from ..data.transform import ImageTransform
from ..devices import find_device, join_processes, load_for_evaluation, processor_name, weights_fingerprint
from ..files import check_output, write_text
from ..metrics.bootstrap import bootstrap_interval
from ..metrics.weights import WeightsUnavailable
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .baselines import MeanImageBaseline, PCABaseline, jpeg_reconstruct, latent_code_bytes
from .evaluation_folder import ORIGINALS, EvaluationFolder, batches
from .options import IMAGE_METRICS, PATH_LENGTH, EvaluationOptions
from .stage_clock import StageClock


class _Images:
    """The images of a data set by index, (C, H, W), float32, in [-1, 1]."""

    def __init__(self, source: str, split: str, image_column: str, transform: ImageTransform) -> None:
        self.rows = load_rows(source, split, image_column)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([self.transform(self.rows[index]) for index in indices])

    def check(self, count: int) -> None:
        """Reads the first `count`: an image that cannot be read is named now, not after hours of sampling."""
        for index in range(count):
            self.transform(self.rows[index])


def image_seed(seed: int, index: int) -> int:
    """The seed of the noise of image number `index`."""
    return seed * 1_000_003 + index


def evaluate(options: EvaluationOptions, show_progress: bool = False) -> dict[str, Any]:
    """Evaluates a model into its folder; continues what is there.

    Returns:
        What was measured, as JSON values; `report.py` writes it out. Empty in all processes but the first.

    Raises:
        ValueError: For options, data or a folder that are not allowed.
        WeightsUnavailable: If a metric of `options.require` has no weights.
    """
    state = join_processes(options.device)
    device = find_device(options.device, state)
    pipeline = load_for_evaluation(options.model, device, options.dtype)
    config = pipeline.encoder.config
    # Everything that can be wrong is looked at before the folder is given these settings and the sampling begins.
    check_output(options.output, options.dataset, options.train_dataset)
    pipeline.scheduler.set_timesteps(options.num_inference_steps)
    _check_required(options, device)
    other = _load_other(options, device, config) if options.compare else None
    transform = ImageTransform(config.sample_size, config.in_channels, crop=options.crop)
    images = _Images(options.dataset, options.split, options.image_column, transform)
    if len(images) < 2:
        raise ValueError(f"dataset must hold at least 2 images, got {len(images)} in {options.dataset}")
    count = min(len(images), options.num_images or len(images))
    images.check(count)
    train = None
    if {"mean_image", "pca"} & set(options.baselines):
        train = _Images(options.train_dataset, options.train_split, options.image_column, transform)
    labelled, names = [], None
    if options.probe:
        for name, source, split, limit in (
            ("train", options.train_dataset, options.train_split, None),
            ("test", options.dataset, options.split, count),
        ):
            rows = dataset_rows(source, split, options.image_column, options.label_columns, False, limit)
            labelled.append((name, source, split, rows))
        if options.probe == "multiclass":
            names = class_names(options.dataset, options.split, options.image_column, options.label_columns[0])
    settings = {
        "model": options.model,
        "weights": weights_fingerprint(pipeline),
        "dataset": options.dataset,
        "dataset_images": len(images),
        "split": options.split,
        "image_column": options.image_column,
        "crop": options.crop,
        "num_inference_steps": options.num_inference_steps,
        "seed": options.seed,
        "dtype": options.dtype,
    }
    compared = {"compare": options.compare, "weights": weights_fingerprint(other) if other is not None else None}
    fitted = _fitted_on(options, train, config)
    with state.main_process_first():
        folder = EvaluationFolder(options.output, settings, state.process_index)
        if other is not None:
            folder.keep_settings("compare", compared)
        if train is not None:
            folder.keep_settings("baselines", fitted)
    clock = StageClock(options.output / "timings.json" if state.is_main_process else None)
    mine = range(count)[state.process_index :: state.num_processes]

    show = show_progress and state.is_main_process
    for mode in options.modes:
        _reconstruct(pipeline, images, mine, folder, mode, mode, options, clock, show)
    if other is not None:
        for mode in options.modes:
            _reconstruct(other, images, mine, folder, f"compare_{mode}", mode, options, clock, show)
        del other
    path_lengths: list[dict[str, Any]] | WeightsUnavailable | None = None
    if options.path_length_pairs:
        with clock.measure(PATH_LENGTH) as measured:
            path_lengths, measured.images = _path_lengths(pipeline, images, count, folder, options, state, show)
    for name, source, split, rows in labelled:
        codes = options.output / f"codes_{name}"
        stored = stored_codes(codes)
        with clock.measure(f"encoding_{name}") as measured:
            encoded = encode_dataset(
                pipeline,
                rows,
                codes,
                settings={
                    "model": options.model,
                    "weights": settings["weights"],
                    "dataset": source,
                    "split": split,
                    "image_column": options.image_column,
                    "crop": options.crop,
                    "dtype": options.dtype,
                },
                transform=transform,
                columns=options.label_columns,
                shard_size=5_000,
                process_index=state.process_index,
                num_processes=state.num_processes,
                show_progress=show,
            )
            measured.images = max(0, encoded - stored)
        state.wait_for_everyone()
        if state.is_main_process:
            finish_codes(codes, encoded)
    state.wait_for_everyone()
    if not state.is_main_process:
        return {}

    probe = None
    if options.probe:
        with clock.measure(f"probe_{options.probe}") as measured:
            probe = _probe(options, names)
            measured.images = probe["test_codes"]
    _baselines(images, train, count, folder, options, config.latent_dim, fitted["pca_components"], clock, show)
    methods = [*options.modes, *(f"compare_{mode}" for mode in options.modes if options.compare), *options.baselines]
    missing: dict[str, Exception] = {}
    results = {
        method: _measure(folder, method, count, options, device, clock, config.latent_dim, missing, show)
        for method in methods
    }
    if isinstance(path_lengths, WeightsUnavailable):
        results[PATH_LENGTH] = _unavailable(PATH_LENGTH, path_lengths, options)
    elif path_lengths is not None:
        lengths, cross_fades = ([record[name] for record in path_lengths] for name in ("path_length", "cross_fade"))
        results[PATH_LENGTH] = {**_summary(lengths, options.seed), "cross_fade": _summary(cross_fades, options.seed)}
    if probe is not None:
        results["probe"] = probe
    figures = {
        **settings,
        "compare": options.compare,
        "modes": list(options.modes),
        "baselines": list(options.baselines),
        "num_images": count,
        "latent_dim": config.latent_dim,
        "sample_size": config.sample_size,
        "path_length_intervals": options.path_length_intervals,
        "baselines_fitted_on": fitted if train is not None else None,
        "parameters": {
            name: sum(parameter.numel() for parameter in getattr(pipeline, name).parameters())
            for name in ("encoder", "decoder")
        },
        "results": results,
        "timings": clock.timings,
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
            "threads": torch.get_num_threads(),
            "processes": state.num_processes,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    return _plain(figures)


# ---- stages ----------------------------------------------------------------------------------------------------------


def _load_other(options: EvaluationOptions, device: torch.device, config: Any) -> DiffusionAutoencoderPipeline:
    """The model to compare with, of the same image size."""
    other = load_for_evaluation(options.compare, device, options.dtype)
    other_config = other.encoder.config
    if (other_config.sample_size, other_config.in_channels) != (config.sample_size, config.in_channels):
        raise ValueError(
            f"compare must be a model of images of {config.in_channels} x {config.sample_size} pixels, got "
            f"{other_config.in_channels} x {other_config.sample_size}"
        )
    return other


def _check_required(options: EvaluationOptions, device: torch.device) -> None:
    """Loads the weights of the required metrics, so that a missing one is known before the sampling."""
    from ..metrics import frechet
    from ..metrics.lpips import PerceptualDistance

    for metric in options.require:
        try:
            if metric == PATH_LENGTH or metric in IMAGE_METRICS:
                PerceptualDistance("vgg" if metric == PATH_LENGTH else metric.removeprefix("lpips_"), device=device)
                continue
            more = {"model": options.dinov2_model} if metric == "fd_dinov2" else {}
            with (
                tempfile.TemporaryDirectory() as name
            ):  # such a metric loads its own weights: it is tried on two images
                for index in range(2):
                    Image.new("RGB", (32, 32), (100 * index,) * 3).save(Path(name) / f"{index}.png")
                getattr(frechet, metric)(Path(name), Path(name), device=str(device), **more)
        except (WeightsUnavailable, ImportError) as error:
            _unavailable(metric, error, options)


def _fitted_on(options: EvaluationOptions, train: _Images | None, config: Any) -> dict[str, Any]:
    """What the baselines are fitted on, and the number of components of PCA that it allows."""
    number = 0 if train is None else min(len(train), options.baseline_images)
    pixels = config.in_channels * config.sample_size**2
    return {
        "train_dataset": options.train_dataset,
        "train_split": options.train_split,
        "images": number,
        "pca_components": min(config.latent_dim, number, pixels),
    }


def _reconstruct(
    pipeline: DiffusionAutoencoderPipeline,
    images: _Images,
    indices: Sequence[int],
    folder: EvaluationFolder,
    method: str,
    mode: str,
    options: EvaluationOptions,
    clock: StageClock,
    show_progress: bool,
) -> None:
    """Reconstructs the images that the folder does not have."""
    done = folder.scores(method)
    waiting = [index for index in indices if index not in done]
    with tqdm(total=len(waiting), unit="img", desc=method, disable=not show_progress, mininterval=1) as progress:
        for batch in batches(waiting, options.batch_size):
            originals = images.batch(batch)
            with clock.measure(f"sampling_{method}") as measured:
                output = pipeline(
                    originals,
                    mode=mode,
                    num_inference_steps=options.num_inference_steps,
                    generator=[torch.Generator().manual_seed(image_seed(options.seed, index)) for index in batch],
                    output_type="pt",
                )
                reconstructions = output.images.float().cpu()
                measured.images = len(batch)
            with clock.measure(f"psnr_ssim_png_{method}") as measured:
                folder.add(method, batch, originals / 2 + 0.5, reconstructions)
                measured.images = len(batch)
            progress.update(len(batch))


def _baselines(
    images: _Images,
    train: _Images | None,
    count: int,
    folder: EvaluationFolder,
    options: EvaluationOptions,
    latent_dim: int,
    pca_components: int,
    clock: StageClock,
    show_progress: bool,
) -> None:
    """Reconstructions by methods without a network, of the same latent size."""
    waiting = {
        name: [index for index in range(count) if index not in done]
        for name in options.baselines
        for done in [folder.scores(name)]
    }
    waiting = {name: indices for name, indices in waiting.items() if indices}
    # Method -> function from images to reconstructions and, or None, the bytes each took.
    methods: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, Sequence[int] | None]]] = {}
    if train is not None and set(waiting) - {"jpeg"}:
        number = min(len(train), options.baseline_images)
        pixels = torch.cat([train.batch(batch) / 2 + 0.5 for batch in batches(range(number), 500)])
        if "mean_image" in waiting:
            mean = MeanImageBaseline.fit(pixels)
            methods["mean_image"] = lambda batch: (mean.reconstruct(batch), None)
        if "pca" in waiting:
            pca = PCABaseline.fit(pixels, pca_components)
            methods["pca"] = lambda batch: (pca.reconstruct(batch), None)
    if "jpeg" in waiting:
        methods["jpeg"] = lambda batch: jpeg_reconstruct(batch, latent_code_bytes(latent_dim))
    for name, reconstruct in methods.items():
        for batch in tqdm(list(batches(waiting[name], 500)), desc=name, disable=not show_progress):
            originals = images.batch(batch) / 2 + 0.5
            with clock.measure(f"baseline_{name}") as measured:
                reconstructions, sizes = reconstruct(originals)
                measured.images = len(batch)
            folder.add(name, batch, originals, reconstructions, sizes)


def _path_lengths(
    pipeline: DiffusionAutoencoderPipeline,
    images: _Images,
    count: int,
    folder: EvaluationFolder,
    options: EvaluationOptions,
    state: PartialState,
    show_progress: bool,
) -> tuple[list[dict[str, Any]] | WeightsUnavailable, int]:
    """Perceptual path length per pair of images (section 10), and how many pairs were measured now.

    A pair's record holds `path_length`, the model's, and `cross_fade`, that of fading one image into the other.
    """
    from ..metrics.lpips import PerceptualDistance
    from ..metrics.perceptual_path_length import cross_fade_length, perceptual_path_length

    pairs = image_pairs(count, options.path_length_pairs, options.seed)
    name = f"path_lengths_{options.path_length_intervals}"

    def measured() -> dict[int, dict[str, Any]]:
        found = {}  # by images: which ones a pair has depends on the number of images
        for path in folder.folder.glob(f"{name}_*.jsonl"):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                if "cross_fade" in record:
                    found[tuple(record["images"])] = record
        return {pair: found[ends] for pair, ends in enumerate(pairs) if ends in found}

    done = measured()
    waiting = [pair for pair in range(len(pairs))[state.process_index :: state.num_processes] if pair not in done]
    if waiting:
        try:
            distance = PerceptualDistance("vgg", device=pipeline.device)
        except WeightsUnavailable as error:
            state.wait_for_everyone()
            return error, 0

        def decode(latent_code: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            return pipeline.decode(
                latent_code, noise=noise, num_inference_steps=options.num_inference_steps, output_type="pt"
            ).images.float()

        lines = []
        for pair in tqdm(waiting, desc="perceptual path length", unit="pair", disable=not show_progress):
            ends = images.batch(pairs[pair])
            codes = pipeline.encode(ends)
            noises = pipeline.invert(ends, latent_code=codes, num_inference_steps=options.num_inference_steps)
            length = perceptual_path_length(
                decode,
                distance,
                codes[:1],
                codes[1:],
                noises[:1],
                noises[1:],
                num_intervals=options.path_length_intervals,
                batch_size=options.batch_size,
            )
            pictures = ends.float() / 2 + 0.5
            fade = cross_fade_length(
                distance, pictures[:1], pictures[1:], options.path_length_intervals, options.batch_size
            )
            record = {"images": list(pairs[pair]), "path_length": float(length[0]), "cross_fade": float(fade[0])}
            lines.append(json.dumps({"pair": pair, **record}))
            path = folder.folder / f"{name}_{state.process_index}_{waiting[0]}_of_{count}.jsonl"
            write_text(path, "\n".join(lines) + "\n")
    state.wait_for_everyone()
    return list(measured().values()), len(waiting)


def image_pairs(count: int, num_pairs: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of different images, drawn by the seed; a longer list begins with the shorter one."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(num_pairs):
        first, second = (int(index) for index in random.choice(count, size=2, replace=False))
        pairs.append((first, second))
    return pairs


# ---- measuring -------------------------------------------------------------------------------------------------------


def _measure(
    folder: EvaluationFolder,
    method: str,
    count: int,
    options: EvaluationOptions,
    device: torch.device,
    clock: StageClock,
    latent_dim: int,
    missing: dict[str, Exception],
    show_progress: bool,
) -> dict[str, Any]:
    """Every metric of one method; `missing` collects those that cannot be had, so that they are tried once only."""
    scores = folder.scores(method)
    indices = [index for index in range(count) if index in scores]
    results: dict[str, Any] = {}
    for name in ("psnr_db", "ssim"):
        results[name] = _summary([scores[index][name] for index in indices], options.seed)
    sizes = [scores[index]["bytes"] for index in indices if "bytes" in scores[index]]
    if sizes:
        budget = latent_code_bytes(latent_dim)
        results["bytes"] = {
            "mean": float(np.mean(sizes)), "budget": budget, "over_budget": sum(size > budget for size in sizes)
        }  # fmt: skip
    for metric in options.metrics:
        if metric in missing:
            results[metric] = _unavailable(metric, missing[metric], options)
            continue
        with clock.measure(f"{metric}_{method}") as measured:
            try:
                if metric in IMAGE_METRICS:
                    values = _image_metric(metric, folder, method, indices, device, show_progress)
                    results[metric] = _summary(values, options.seed)
                else:
                    value = _folder_metric(metric, folder, method, indices, options, device)
                    results[metric] = {"value": value, "count": len(indices)}
                measured.images = len(indices)
            except (WeightsUnavailable, ImportError, ValueError) as error:  # ValueError: images that are too small
                missing[metric] = error
                results[metric] = _unavailable(metric, error, options)
    return results


def _image_metric(
    metric: str,
    folder: EvaluationFolder,
    method: str,
    indices: Sequence[int],
    device: torch.device,
    show_progress: bool,
) -> list[float]:
    from ..metrics.lpips import PerceptualDistance

    distance = PerceptualDistance(metric.removeprefix("lpips_"), device=device)
    values: list[float] = []
    total = -(-len(indices) // 100)
    for originals, reconstructions in tqdm(
        folder.pairs(method, indices), total=total, desc=f"{metric} {method}", disable=not show_progress
    ):
        values += distance(reconstructions.to(device), originals.to(device)).tolist()
    return values


def _folder_metric(
    metric: str,
    folder: EvaluationFolder,
    method: str,
    indices: Sequence[int],
    options: EvaluationOptions,
    device: torch.device,
) -> float:
    from ..metrics import frechet

    function = getattr(frechet, metric)
    more = {"model": options.dinov2_model} if metric == "fd_dinov2" else {}
    with _exactly(folder, ORIGINALS, indices) as originals, _exactly(folder, method, indices) as reconstructions:
        return function(reconstructions, originals, device=str(device), **more)


@contextmanager
def _exactly(folder: EvaluationFolder, method: str, indices: Sequence[int]):  # noqa: ANN202
    """A folder with the PNG files of these images and no others: the method's own, or one of links."""
    path = folder.images(method)
    if sum(1 for _ in path.glob("*.png")) == len(indices):
        yield path
        return
    with tempfile.TemporaryDirectory() as name:
        for index in indices:
            (Path(name) / f"{index:07d}.png").symlink_to((path / f"{index:07d}.png").resolve())
        yield Path(name)


def _probe(options: EvaluationOptions, classes: list[str] | None) -> dict[str, Any]:
    """Linear probe of the codes; `classes` are the names of the labels 0, 1, ... where the data set has them."""
    from ..metrics import linear_probe

    data = {name: load_codes(options.output / f"codes_{name}", options.label_columns) for name in ("train", "test")}
    names = list(options.label_columns)
    try:
        labels = {}
        for name, columns in data.items():
            values = [columns[label] for label in options.label_columns]
            labels[name] = values[0] if len(values) == 1 else np.stack(values, axis=1)
        if len(names) == 1 and labels["train"].ndim == 2:  # a column of lists
            names = [f"{names[0]}[{position}]" for position in range(labels["train"].shape[1])]
        function = getattr(linear_probe, f"{options.probe}_probe")
        more = {"attribute_names": names} if options.probe == "multilabel" else {}
        result = function(
            data["train"]["latent_code"], labels["train"], data["test"]["latent_code"], labels["test"], **more
        )
    except ValueError as error:
        raise ValueError(
            f"label_columns must fit the probe {options.probe}, got {', '.join(options.label_columns)}: {error}"
        ) from error
    return {
        "task": options.probe,
        "labels": names,
        "train_codes": len(data["train"]["latent_code"]),
        "test_codes": len(data["test"]["latent_code"]),
        **vars(result),
        **({"class_names": [classes[label] for label in result.classes]} if classes else {}),
    }


def _plain(value: Any) -> Any:
    """Values as JSON values; None for a number that is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(values: Sequence[float], seed: int) -> dict[str, Any]:
    array = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(array, seed=seed) if len(array) > 1 else (array[0], array[0])
    return {"mean": float(array.mean()), "interval": [float(low), float(high)], "count": len(array)}


def _unavailable(metric: str, error: Exception, options: EvaluationOptions) -> dict[str, str]:
    if metric in options.require:
        raise WeightsUnavailable(f"{metric} is required, but cannot be had: {error}") from error
    return {"unavailable": " ".join(str(error).split())}
