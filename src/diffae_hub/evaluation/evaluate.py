"""The paper's evaluation of a model: reconstruct a data set, measure it beside baselines, interpolate, probe.

Sampling is shared by the processes of `accelerate launch`; everything after it is measured by the first from the files
in the evaluation's folder. Every image has its own noise, seeded by its index, so that figures depend neither on the
batch size nor on the number of processes, and a run may be continued with another number of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from PIL import Image
from tqdm.auto import tqdm

from ..pipelines.pipeline_diffusion_autoencoder import MODES, DiffusionAutoencoderPipeline
from ..training.data import ImageTransform, load_rows
from ..training.presets import CROPS
from .baselines import MeanImageBaseline, PCABaseline, jpeg_reconstruct, latent_code_bytes
from .bootstrap import bootstrap_interval
from .codes import class_names, dataset_rows, encode_dataset, finish_codes, load_codes, stored_codes
from .evaluation_folder import ORIGINALS, EvaluationFolder, batches, check_output, write_text
from .weights import WeightsUnavailable

IMAGE_METRICS = ("lpips_alex", "lpips_vgg")
FOLDER_METRICS = ("fid_torch_fidelity", "fid_clean_fid", "fd_vgg16", "fd_dinov2")
DEFAULT_METRICS = ("lpips_alex", "fid_torch_fidelity", "fid_clean_fid")
PROBES = ("multiclass", "multilabel", "regression")
BASELINES = ("mean_image", "pca", "jpeg")
PATH_LENGTH = "perceptual_path_length"
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate and how.

    Args:
        model: Bundled name, pipeline folder or Hub id.
        dataset: Folder of images, parquet, `datasets` folder or Hub data set.
        output: The evaluation's folder.
        split: Split of the data set.
        image_column: Its column of images.
        crop: How an image becomes square; see [`ImageTransform`].
        modes: "stochastic", "inversion" or both.
        num_inference_steps: Updates of decoding, and of inversion; the paper uses 50.
        num_images: The first so many images; None for all.
        metrics: Beyond PSNR and SSIM: of `IMAGE_METRICS` and `FOLDER_METRICS`.
        require: Metrics without whose weights the evaluation fails.
        baselines: Of `BASELINES`; "mean_image" and "pca" are fitted on the training data.
        train_dataset: Training data, for baselines and probes.
        train_split: Its split.
        baseline_images: At most so many training images for the baselines.
        compare: Another model, reconstructed and measured beside.
        path_length_pairs: Pairs of images for the perceptual path length (LPIPS-VGG); 0 leaves it out.
        path_length_intervals: N, its number of sub-intervals; the paper uses 100.
        probe: "multiclass", "multilabel" or "regression"; None leaves it out.
        label_columns: Columns of the labels; several make up a multi-label or multi-target probe.
        dinov2_model: Hub id or folder of the network of "fd_dinov2".
        seed: Of the noise, the pairs and the bootstrap.
        batch_size: Images at a time.
        device: Torch device; None takes the accelerator if there is one.
        dtype: "float32", "bfloat16" or "float16", of the networks.

    Raises:
        ValueError: Names the option.
    """

    model: str
    dataset: str
    output: Path
    split: str = "test"
    image_column: str = "image"
    crop: str = "center"
    modes: tuple[str, ...] = MODES
    num_inference_steps: int = 50
    num_images: int | None = None
    metrics: tuple[str, ...] = DEFAULT_METRICS
    require: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    train_dataset: str | None = None
    train_split: str = "train"
    baseline_images: int = 50_000
    compare: str | None = None
    path_length_pairs: int = 0
    path_length_intervals: int = 100
    probe: str | None = None
    label_columns: tuple[str, ...] = ()
    dinov2_model: str = "facebook/dinov2-large"
    seed: int = 0
    batch_size: int = 50
    device: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, values, allowed in (
            ("modes", self.modes, MODES),
            ("metrics", self.metrics, IMAGE_METRICS + FOLDER_METRICS),
            ("require", self.require, (*IMAGE_METRICS, *FOLDER_METRICS, PATH_LENGTH)),
            ("baselines", self.baselines, BASELINES),
            ("probe", (self.probe,), (*PROBES, None)),
            ("crop", (self.crop,), CROPS),
            ("dtype", (self.dtype,), ("float32", "bfloat16", "float16")),
        ):
            for value in values:
                if value not in allowed:
                    raise ValueError(f"{name} must be among {', '.join(map(str, allowed))}, got {value!r}")
        measured = self.metrics + (PATH_LENGTH,) * bool(self.path_length_pairs)
        for metric in self.require:
            if metric not in measured:
                option = "path_length_pairs" if metric == PATH_LENGTH else "metrics"
                raise ValueError(f"require must be among what is measured; {metric} is not: add it by {option}")
        for name, minimum in (
            ("num_inference_steps", 1),
            ("path_length_pairs", 0),
            ("path_length_intervals", 1),
            ("baseline_images", 1),
            ("batch_size", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        if self.seed > _LARGEST_SEED:
            raise ValueError(f"seed must be at most {_LARGEST_SEED}, got {self.seed}")
        if self.num_images is not None and self.num_images < 2:
            raise ValueError(f"num_images must be at least 2, got {self.num_images}")
        if not self.modes:
            raise ValueError(f"modes must hold at least one of {', '.join(MODES)}, got none")
        fitted = [name for name in self.baselines if name != "jpeg"] + ([self.probe] if self.probe else [])
        if fitted and self.train_dataset is None:
            raise ValueError(f"train_dataset must be given for {', '.join(fitted)}, got none")
        if self.probe and not self.label_columns:
            raise ValueError("label_columns must be given for a probe, got none")
        if self.probe == "multiclass" and len(self.label_columns) > 1:
            raise ValueError(f"label_columns must be one column for multiclass, got {', '.join(self.label_columns)}")


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
    clock = _Clock(options.output / "timings.json" if state.is_main_process else None)
    mine = range(count)[state.process_index :: state.num_processes]

    show = show_progress and state.is_main_process
    for mode in options.modes:
        _reconstruct(pipeline, images, mine, folder, mode, mode, options, clock, show)
    if other is not None:
        for mode in options.modes:
            _reconstruct(other, images, mine, folder, f"compare_{mode}", mode, options, clock, show)
        del other
    path_lengths: dict[int, float] | WeightsUnavailable | None = None
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
        results[PATH_LENGTH] = _summary(list(path_lengths.values()), options.seed)
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
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "processes": state.num_processes,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    return _plain(figures)


def join_processes(device: str | None) -> PartialState:
    """The processes of `accelerate launch` or torchrun, or the only one.

    Without an accelerator they share the work on the CPU, which accelerate must be told.
    """
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not accelerated
    return PartialState(cpu=on_cpu if device is None else torch_device(device).type == "cpu")


def find_device(name: str | None, state: PartialState) -> torch.device:
    """The device of this name, or the process's own.

    Raises:
        ValueError: If this machine has no such device.
    """
    device = state.device if name is None else torch_device(name)
    if device.type == "cpu":
        return torch.device("cpu")
    # "cuda" with several processes is each one's own
    return state.device if device.index is None and device.type == state.device.type else device


def torch_device(name: str) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: If this machine has no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be a device of this machine, got {name!r}") from error
    return device


def load_for_evaluation(model: str, device: torch.device, dtype: str) -> DiffusionAutoencoderPipeline:
    """The pipeline on its device, in channels_last, quiet.

    Raises:
        ValueError: If it cannot be loaded.
    """
    try:
        pipeline = DiffusionAutoencoderPipeline.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(f"model {model!r} cannot be loaded: {error}") from error
    pipeline.to(device, getattr(torch, dtype))
    for network in (pipeline.encoder, pipeline.decoder):
        network.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weights_fingerprint(pipeline: DiffusionAutoencoderPipeline) -> str:
    """A short hash of networks and scheduler: a folder must not mix reconstructions of two states of one model."""
    scheduler = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(scheduler, sort_keys=True).encode())
    for network in (pipeline.encoder, pipeline.decoder):
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


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
    from . import frechet
    from .lpips import PerceptualDistance

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
    clock: _Clock,
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
    clock: _Clock,
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
) -> tuple[dict[int, float] | WeightsUnavailable, int]:
    """Perceptual path length per pair of images (section 10), and how many pairs were measured now."""
    from .lpips import PerceptualDistance
    from .perceptual_path_length import perceptual_path_length

    pairs = image_pairs(count, options.path_length_pairs, options.seed)
    name = f"path_lengths_{options.path_length_intervals}"

    def measured() -> dict[int, float]:
        found = {}  # by images: which ones a pair has depends on the number of images
        for path in folder.folder.glob(f"{name}_*.jsonl"):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                found[tuple(record["images"])] = float(record["path_length"])
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
            lines.append(json.dumps({"pair": pair, "images": list(pairs[pair]), "path_length": float(length[0])}))
            path = folder.folder / f"{name}_{state.process_index}_{waiting[0]}_of_{count}.jsonl"
            write_text(path, "\n".join(lines) + "\n")
    state.wait_for_everyone()
    return measured(), len(waiting)


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
    clock: _Clock,
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
    from .lpips import PerceptualDistance

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
    from . import frechet

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
    from . import linear_probe

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


class _Clock:
    """Seconds and images per second of the stages, over all runs into a folder."""

    class _Measured:
        images = 0

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.timings: dict[str, dict[str, float]] = {}
        if path is not None and path.is_file():
            self.timings = json.loads(path.read_text())

    @contextmanager
    def measure(self, stage: str) -> Iterator[_Measured]:
        measured, started = self._Measured(), time.monotonic()
        yield measured
        if not measured.images:
            return  # everything was there already
        before = self.timings.get(stage, {"seconds": 0.0, "images": 0})
        seconds, images = before["seconds"] + time.monotonic() - started, before["images"] + measured.images
        self.timings[stage] = {"seconds": seconds, "images": images, "images_per_second": images / seconds}
        if self._path is not None:
            write_text(self._path, json.dumps(self.timings, indent=2) + "\n")


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
