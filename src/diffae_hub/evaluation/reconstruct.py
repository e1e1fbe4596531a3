"""Step 1 of an evaluation, which needs the model: reconstructions, path lengths, codes and interpolations.

The processes of `accelerate launch` share the sampling. Every image has its own noise, seeded by its index, so figures
depend neither on the batch size nor on the number of processes, which may differ when a run is continued. What the
folder has already is kept.
"""

import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..codes import encode_dataset, encode_images, weights_fingerprint
from ..data.fingerprint import data_fingerprint, warn_if_same_data
from ..data.open_dataset import load_rows, open_dataset
from ..data.transform import ImageTransform
from ..devices import load_pipeline, processor_name
from ..files import SETTINGS, check_output, keep_settings, write_png, write_text
from ..images import image_grid
from ..metrics.lpips import PerceptualDistance
from ..metrics.perceptual_path_length import perceptual_path_length
from ..metrics.weights import WeightsUnavailable
from ..pipelines.interpolation import lerp, slerp
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from ..schedulers.compatibility import with_solver
from ..schedulers.scheduling_vp_ddim_inverse import VPDDIMInverseScheduler
from .baselines import BYTES_PER_NUMBER, fit_mean_image, fit_pca, jpeg_reconstruct
from .evaluation_folder import EvaluationFolder, batches, image_pairs
from .options import EvaluationOptions

_NUM_INTERPOLATIONS, _NUM_FRAMES = 3, 9


@dataclass
class _Images:
    """The images of a data set at any indices: (B, C, H, W), float32, in [-1, 1]."""

    rows: Sequence[Mapping[str, Any]]
    transform: ImageTransform

    def __getitem__(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([self.transform(self.rows[index]) for index in indices])


@dataclass
class _Run:
    """What the stages share."""

    options: EvaluationOptions
    state: PartialState
    folder: EvaluationFolder
    images: _Images
    count: int
    show_progress: bool

    def mine(self, items: Sequence[Any], done: Mapping[Any, Any]) -> list[Any]:
        """Returns this process's share of the items that are not done yet."""
        return [item for item in items[self.state.process_index :: self.state.num_processes] if item not in done]


def reconstruct(
    options: EvaluationOptions, state: PartialState, device: torch.device, show_progress: bool = False
) -> None:
    """Fills the evaluation's folder with what `measure.py` reads."""
    # Check all input before the folder gets its settings and the sampling begins.
    check_output(options.output, options.dataset, options.train_dataset)
    pipeline, weights = _load(options.model, options, device)
    config, other, compared = pipeline.encoder.config, None, None
    if options.compare:
        other, other_weights = _load(options.compare, options, device)
        compared = {"compare": options.compare, "weights": other_weights}
        shape, other_shape = ((c.in_channels, c.sample_size) for c in (config, other.encoder.config))
        if other_shape != shape:
            raise ValueError(f"compare must be a model for images of (channels, pixels) = {shape}, got {other_shape}")
    transform = ImageTransform(config.sample_size, config.in_channels, crop=options.crop)
    images = _Images(load_rows(options.dataset, options.split, options.image_column), transform)
    if len(images.rows) < 2:
        raise ValueError(f"dataset must hold at least 2 images, got {len(images.rows)} in {options.dataset}")
    count = min(len(images.rows), options.num_images or len(images.rows))
    for index in range(count):  # an unreadable image fails now, not after hours of sampling
        transform(images.rows[index])
    train, fitted = None, None
    if {"mean_image", "pca"} & set(options.baselines):
        train = _Images(load_rows(options.train_dataset, options.train_split, options.image_column), transform)
        number = min(len(train.rows), options.baseline_images)
        fitted = {
            "train_dataset": options.train_dataset,
            "train_split": options.train_split,
            "images": number,
            "pca_components": min(config.latent_dim, number, config.in_channels * config.sample_size**2),
        }
    labelled = {}
    if options.probe:
        labelled["train"] = options.train_dataset, options.train_split, None
        labelled["test"] = options.dataset, options.split, count
    for source, split, _ in labelled.values():
        open_dataset(source, split, options.image_column, False, options.label_columns)

    data = data_fingerprint(options.dataset, options.split, images.rows)
    settings = {"weights": weights, "dataset_images": len(images.rows), "data": data}
    for name in ("split", "image_column", "crop", "solver", "steps", "seed", "dtype"):
        settings[name] = getattr(options, name)
    parts = {SETTINGS: settings, "settings_compare.json": compared}
    if fitted:
        data = data_fingerprint(options.train_dataset, options.train_split, train.rows)
        parts["settings_baselines.json"] = {**fitted, "data": data}
    with state.main_process_first():
        for name, part in parts.items():
            if part is not None:
                keep_settings(options.output / name, part, f"an evaluation ({name})", write=state.is_main_process)

    if count < len(images.rows) and state.is_main_process:
        _warn_of_missing_classes(options, count)
    if options.train_dataset and state.is_main_process:
        warn_if_same_data("dataset", (options.dataset, options.split), (options.train_dataset, options.train_split))

    folder = EvaluationFolder(options.output, state.process_index)
    run = _Run(options, state, folder, images, count, show_progress and state.is_main_process)
    for name, (source, split, limit) in labelled.items():
        encode_dataset(
            pipeline,
            source,
            options.output / f"codes_{name}",
            split=split,
            image_column=options.image_column,
            columns=options.label_columns,
            crop=options.crop,
            num_images=limit,
            shard_size=5_000,
            show_progress=run.show_progress,
        )
    if state.is_main_process:  # before the sampling: a training image may be unreadable
        _baselines(run, train, fitted, config.latent_dim)
    for mode in options.modes:
        _sample(run, pipeline, mode, mode)
        if other is not None:
            _sample(run, other, f"compare_{mode}", mode)
    if options.path_length_pairs:
        _path_lengths(run, pipeline)
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    if "inversion" in options.modes:
        _interpolate(run, pipeline)
    facts = {
        "weights": weights,
        "num_images": count,
        "latent_dim": config.latent_dim,
        "sample_size": config.sample_size,
        "baselines_fitted_on": fitted,
        "parameters": {name: getattr(pipeline, name).num_parameters() for name in ("encoder", "decoder")},
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
            "threads": torch.get_num_threads(),
            "processes": state.num_processes,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    options.save(options.output)
    write_text(options.output / "run.json", json.dumps(facts, indent=2) + "\n")


def _warn_of_missing_classes(options: EvaluationOptions, count: int) -> None:
    """Warns if the first images are not of all classes; folders of classes are read one after the other."""
    with suppress(ValueError):  # there is no such column
        labels = open_dataset(options.dataset, options.split, options.image_column, False, ["label"])["label"]
        labels = [str(label) for label in labels]
        seen, all_classes = len({*labels[:count]}), len({*labels})
        if seen < all_classes:
            print(f"WARNING: the first {count} images are of only {seen} of {all_classes} classes", file=sys.stderr)


# ---- the model -------------------------------------------------------------------------------------------------------


def _load(model: str, options: EvaluationOptions, device: torch.device) -> tuple[DiffusionAutoencoderPipeline, str]:
    """Loads a pipeline, with the wanted solver on the model's own noise schedule. Returns it and its fingerprint."""
    pipeline = load_pipeline(model, device, options.dtype)
    weights = weights_fingerprint(pipeline)
    pipeline.scheduler = with_solver(pipeline.scheduler, options.solver)
    pipeline.scheduler.set_timesteps(options.steps)  # a bad number fails before any work
    if "inversion" in options.modes or options.path_length_pairs:
        inverse = VPDDIMInverseScheduler.from_config(pipeline.scheduler.config, inversion="plain")
        inverse.set_timesteps(options.steps)
    return pipeline, weights


def _invert(
    pipeline: DiffusionAutoencoderPipeline, images: torch.Tensor, codes: torch.Tensor, steps: int
) -> torch.Tensor:
    """Finds the noise x_T of images in [-1, 1], by the paper's rule."""
    return pipeline.invert(images / 2 + 0.5, latent_code=codes, num_inference_steps=steps, inversion="plain")


def _decode(pipeline: DiffusionAutoencoderPipeline, codes: torch.Tensor, steps: int, **noise: Any) -> torch.Tensor:
    """Decodes codes to images in [0, 1], float32."""
    return pipeline.decode(codes, num_inference_steps=steps, output_type="pt", **noise).images.float()


def _between(
    pipeline: DiffusionAutoencoderPipeline, ends: torch.Tensor, steps: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a map from fractions (B,) to images between the two of `ends`, (2, C, H, W) in [-1, 1] (section 5.2)."""
    codes = encode_images(pipeline, ends)
    noises = _invert(pipeline, ends, codes, steps)

    def image_at(fractions: torch.Tensor) -> torch.Tensor:
        code, noise = (slerp(*pair[:, None], fractions) for pair in (codes, noises))
        return _decode(pipeline, code, steps, noise=noise)

    return image_at


# ---- stages ----------------------------------------------------------------------------------------------------------


def _sample(run: _Run, pipeline: DiffusionAutoencoderPipeline, method: str, mode: str) -> None:
    """Reconstructs the images that the folder does not have yet."""
    waiting = run.mine(range(run.count), run.folder.scores(method))
    steps, seed = run.options.steps, run.options.seed
    with tqdm(total=len(waiting), unit="img", desc=method, disable=not run.show_progress, mininterval=1) as progress:
        for batch in batches(waiting, run.options.batch_size):
            originals = run.images[batch]
            codes = encode_images(pipeline, originals)
            if mode == "inversion":
                noise = {"noise": _invert(pipeline, originals, codes, steps)}
            else:
                noise = {"generator": [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in batch]}
            reconstructions = _decode(pipeline, codes, steps, **noise).cpu()
            run.folder.add(method, batch, originals / 2 + 0.5, reconstructions)
            progress.update(len(batch))


def _path_lengths(run: _Run, pipeline: DiffusionAutoencoderPipeline) -> None:
    """Measures perceptual path lengths between pairs of images (section 10) and, to compare, those of a cross-fade."""
    options = run.options
    pairs = image_pairs(run.count, options.path_length_pairs, options.seed)
    waiting = run.mine(pairs, run.folder.path_lengths(options, run.count))
    if not waiting:
        return
    try:
        distance = PerceptualDistance("vgg", device=pipeline.device)
    except (WeightsUnavailable, ImportError):
        return  # `measure.py` reports it
    for pair in tqdm(waiting, desc="perceptual path length", unit="pair", disable=not run.show_progress):
        ends = run.images[pair]
        paths = {
            "path_length": _between(pipeline, ends, options.steps),
            "cross_fade": partial(lerp, *(ends / 2 + 0.5).to(pipeline.device)[:, None]),
        }
        lengths = {
            name: perceptual_path_length(path, distance, options.path_length_intervals, options.batch_size)
            for name, path in paths.items()
        }
        run.folder.append(f"path_lengths_{options.path_length_intervals}", [{"images": list(pair), **lengths}])


def _interpolate(run: _Run, pipeline: DiffusionAutoencoderPipeline) -> None:
    """Draws interpolations between some pairs of images, a row for each pair."""
    path, rows = run.folder.interpolation(run.count), []
    if path.is_file():
        return
    for pair in image_pairs(run.count, _NUM_INTERPOLATIONS, run.options.seed):
        image_at = _between(pipeline, run.images[pair], run.options.steps)
        rows.append(image_at(torch.linspace(0, 1, _NUM_FRAMES)).cpu())
    write_png(path, image_grid(torch.cat(rows), _NUM_FRAMES))


def _baselines(run: _Run, train: _Images | None, fitted: Mapping[str, Any] | None, latent_dim: int) -> None:
    """Reconstructs with methods without a network, at the same latent size."""

    def training_images() -> Iterator[torch.Tensor]:
        for batch in batches(range(fitted["images"]), 500):
            yield train[batch] / 2 + 0.5

    for name in run.options.baselines:
        done = run.folder.scores(name)
        waiting = [index for index in range(run.count) if index not in done]
        if not waiting:
            continue
        if name == "mean_image":
            method = fit_mean_image(training_images())
        elif name == "pca":
            method = fit_pca(training_images(), fitted["images"], fitted["pca_components"])
        for batch in tqdm(list(batches(waiting, 500)), desc=name, disable=not run.show_progress):
            originals, sizes = run.images[batch] / 2 + 0.5, None
            if name == "jpeg":
                reconstructions, sizes = jpeg_reconstruct(originals, BYTES_PER_NUMBER * latent_dim)
            else:
                reconstructions = method(originals)
            run.folder.add(name, batch, originals, reconstructions, sizes)
