"""Step 1 of an evaluation: everything that needs the model. Reconstructions, path lengths, codes, interpolations.

Sampling is shared by the processes of `accelerate launch`. Every image has its own noise, seeded by its index, so that
figures depend neither on the batch size nor on the number of processes, and a run may be continued with another number
of them. What the folder has already is left alone.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..codes.fingerprints import weights_fingerprint
from ..codes.shards import encode_dataset, encode_images, stored_codes
from ..data.open_dataset import load_rows, open_dataset
from ..data.transform import ImageTransform
from ..devices import find_device, load_pipeline, processor_name
from ..files import SETTINGS, check_new_or_continued, check_output, keep_settings, write_png, write_text
from ..images import film_strip
from ..metrics.lpips import PerceptualDistance
from ..metrics.perceptual_path_length import perceptual_path_length
from ..metrics.weights import WeightsUnavailable
from ..pipelines.interpolation import slerp
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .baselines import fit_mean_image, fit_pca, jpeg_reconstruct, latent_code_bytes
from .evaluation_folder import EvaluationFolder, StageClock, batches
from .options import PATH_LENGTH, EvaluationOptions

INTERPOLATIONS = "interpolations"
_NUM_INTERPOLATIONS, _NUM_FRAMES = 3, 9


@dataclass
class _Run:
    """What the stages share."""

    options: EvaluationOptions
    state: PartialState
    folder: EvaluationFolder
    clock: StageClock
    images: _Images
    count: int
    show_progress: bool

    def mine(self, indices: Sequence[int]) -> Sequence[int]:
        return indices[self.state.process_index :: self.state.num_processes]


class _Images:
    """The images of a data set by index, (C, H, W), float32, in [-1, 1]."""

    def __init__(self, source: str, split: str, image_column: str, transform: ImageTransform) -> None:
        self.rows = load_rows(source, split, image_column)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([self.transform(self.rows[index]) for index in indices])


def reconstruct(options: EvaluationOptions, state: PartialState, show_progress: bool = False) -> None:
    """Fills the evaluation's folder with what `measure.py` reads.

    Args:
        options: What to evaluate and how.
        state: The processes that share the work.
        show_progress: Whether to show progress bars.

    Raises:
        ValueError: For options, data or a folder that are not allowed.
    """
    # Everything that can be wrong is looked at before the folder is given its settings and the sampling begins.
    check_output(options.output, options.dataset, options.train_dataset)
    device = find_device(options.device, state)
    pipeline = load_pipeline(options.model, device, options.dtype)
    config = pipeline.encoder.config
    weights = weights_fingerprint(pipeline)
    _use_solver(pipeline, options)
    other, compared = None, {"compare": options.compare, "weights": None}
    if options.compare:
        other = load_pipeline(options.compare, device, options.dtype)
        _check_same_images(config, other.encoder.config)
        compared["weights"] = weights_fingerprint(other)
        _use_solver(other, options)
    transform = ImageTransform(config.sample_size, config.in_channels, crop=options.crop)
    images = _Images(options.dataset, options.split, options.image_column, transform)
    if len(images) < 2:
        raise ValueError(f"dataset must hold at least 2 images, got {len(images)} in {options.dataset}")
    count = min(len(images), options.num_images or len(images))
    for index in range(count):  # an image that cannot be read is named now, not after hours of sampling
        images.batch([index])
    train, fitted = None, None
    if {"mean_image", "pca"} & set(options.baselines):
        train = _Images(options.train_dataset, options.train_split, options.image_column, transform)
        number = min(len(train), options.baseline_images)
        fitted = {
            "train_dataset": options.train_dataset,
            "train_split": options.train_split,
            "images": number,
            "pca_components": min(config.latent_dim, number, config.in_channels * config.sample_size**2),
        }
    if options.probe:
        for source, split in ((options.train_dataset, options.train_split), (options.dataset, options.split)):
            open_dataset(source, split, options.image_column, False, options.label_columns)

    settings = {"weights": weights, "dataset_images": len(images)}
    for name in ("dataset", "split", "image_column", "crop", "solver", "steps", "seed", "dtype"):
        settings[name] = getattr(options, name)
    with state.main_process_first():
        if state.is_main_process:
            check_new_or_continued(options.output, "an evaluation")
        for name, part in ((None, settings), ("compare", compared if other else None), ("baselines", fitted)):
            if part is not None:
                path = options.output / (f"settings_{name}.json" if name else SETTINGS)
                what = f"an evaluation ({name})" if name else "an evaluation"
                keep_settings(path, part, what, write=state.is_main_process)

    folder = EvaluationFolder(options.output, state.process_index)
    clock = StageClock(options.output / "timings.json" if state.is_main_process else None)
    run = _Run(options, state, folder, clock, images, count, show_progress and state.is_main_process)
    if options.probe:
        _encode(run, pipeline, "train", options.train_dataset, options.train_split, None)
        _encode(run, pipeline, "test", options.dataset, options.split, count)
    for mode in options.modes:
        _sample(run, pipeline, mode, mode)
        if other is not None:
            _sample(run, other, f"compare_{mode}", mode)
    del other
    if options.path_length_pairs:
        _path_lengths(run, pipeline)
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    if "inversion" in options.modes:
        _interpolate(run, pipeline)
    _baselines(run, train, fitted, config.latent_dim)
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


def image_seed(seed: int, index: int) -> int:
    """The seed of the noise of image number `index`."""
    return seed * 1_000_003 + index


def image_pairs(count: int, num_pairs: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of different images, drawn by the seed; a longer list begins with the shorter one."""
    random = np.random.default_rng(seed)
    return [tuple(random.choice(count, size=2, replace=False).tolist()) for _ in range(num_pairs)]


# ---- the model -------------------------------------------------------------------------------------------------------


def _use_solver(pipeline: DiffusionAutoencoderPipeline, options: EvaluationOptions) -> None:
    """Decodes with the solver that was asked for, on the model's own noise schedule."""
    from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler

    if options.solver == "dpm":
        from ..schedulers.scheduling_vp_dpmsolver_multistep import VPDPMSolverMultistepScheduler

        if not isinstance(pipeline.scheduler, VPDPMSolverMultistepScheduler):
            pipeline.scheduler = VPDPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    elif not isinstance(pipeline.scheduler, VPDDIMScheduler):
        from ..schedulers.compatibility import trained_scheduler

        pipeline.scheduler = trained_scheduler(pipeline.scheduler)
    pipeline.scheduler.set_timesteps(options.steps)  # a bad number fails before any work


def _check_same_images(config: Any, other: Any) -> None:
    if (other.sample_size, other.in_channels) != (config.sample_size, config.in_channels):
        raise ValueError(
            f"compare must be a model of images of {config.in_channels} x {config.sample_size} pixels, got "
            f"{other.in_channels} x {other.sample_size}"
        )


def _invert(
    pipeline: DiffusionAutoencoderPipeline, images: torch.Tensor, codes: torch.Tensor, steps: int
) -> torch.Tensor:
    """The noise x_T of images in [-1, 1], by the paper's rule."""
    return pipeline.invert(images / 2 + 0.5, latent_code=codes, num_inference_steps=steps, inversion="plain")


def _decode(
    pipeline: DiffusionAutoencoderPipeline,
    codes: torch.Tensor,
    noise: torch.Tensor | None,
    steps: int,
    generator: list[torch.Generator] | None = None,
) -> torch.Tensor:
    """Images in [0, 1], float32."""
    output = pipeline.decode(codes, noise=noise, num_inference_steps=steps, generator=generator, output_type="pt")
    return output.images.float()


def _between(
    pipeline: DiffusionAutoencoderPipeline, ends: torch.Tensor, steps: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Section 5.2: from fractions (B,) to the images there, between two images in [-1, 1], (2, C, H, W)."""
    codes = encode_images(pipeline, ends)
    noises = _invert(pipeline, ends, codes, steps)

    def image_at(fractions: torch.Tensor) -> torch.Tensor:
        points = (
            slerp(*(end[None].expand(len(fractions), *end.shape) for end in pair), fractions)
            for pair in (codes, noises)
        )
        return _decode(pipeline, *points, steps)

    return image_at


# ---- stages ----------------------------------------------------------------------------------------------------------


def _encode(
    run: _Run, pipeline: DiffusionAutoencoderPipeline, name: str, source: str, split: str, limit: int | None
) -> None:
    """The codes of one data set, for the probe."""
    folder = run.options.output / f"codes_{name}"
    stored = stored_codes(folder)
    with run.clock.measure(f"encoding_{name}") as measured:
        count = encode_dataset(
            pipeline,
            source,
            folder,
            split=split,
            image_column=run.options.image_column,
            columns=run.options.label_columns,
            crop=run.options.crop,
            num_images=limit,
            shard_size=5_000,
            state=run.state,
            show_progress=run.show_progress,
        )
        measured.images = max(0, count - stored)


def _sample(run: _Run, pipeline: DiffusionAutoencoderPipeline, method: str, mode: str) -> None:
    """Reconstructs the images that the folder does not have."""
    done = run.folder.scores(method)
    waiting = [index for index in run.mine(range(run.count)) if index not in done]
    steps, seed = run.options.steps, run.options.seed
    with tqdm(total=len(waiting), unit="img", desc=method, disable=not run.show_progress, mininterval=1) as progress:
        for batch in batches(waiting, run.options.batch_size):
            originals = run.images.batch(batch)
            with run.clock.measure(f"sampling_{method}") as measured:
                codes, noise = encode_images(pipeline, originals), None
                if mode == "inversion":
                    noise = _invert(pipeline, originals, codes, steps)
                generators = [torch.Generator().manual_seed(image_seed(seed, index)) for index in batch]
                reconstructions = _decode(pipeline, codes, noise, steps, generators).cpu()
                measured.images = len(batch)
            with run.clock.measure(f"scores_png_{method}") as measured:
                run.folder.add(method, batch, originals / 2 + 0.5, reconstructions)
                measured.images = len(batch)
            progress.update(len(batch))


def path_lengths(folder: EvaluationFolder, options: EvaluationOptions, count: int) -> dict[tuple[int, int], Mapping]:
    """What the folder has of the pairs that are asked for: `path_length`, and `cross_fade`, that of fading."""

    def parse(record: dict[str, Any]) -> tuple[tuple[int, int], dict[str, float]]:
        return tuple(record["images"]), {name: float(record[name]) for name in ("path_length", "cross_fade")}

    found = dict(folder.records(f"path_lengths_{options.path_length_intervals}", parse))
    pairs = image_pairs(count, options.path_length_pairs, options.seed)  # which, depends on the number of images
    return {pair: found[pair] for pair in pairs if pair in found}


def _path_lengths(run: _Run, pipeline: DiffusionAutoencoderPipeline) -> None:
    """Perceptual path length of pairs of images (section 10), and of one image fading into the other, to compare."""
    options = run.options
    done = path_lengths(run.folder, options, run.count)
    pairs = image_pairs(run.count, options.path_length_pairs, options.seed)
    waiting = [pair for pair in run.mine(pairs) if pair not in done]
    if not waiting:
        return
    try:
        distance = PerceptualDistance("vgg", device=pipeline.device)
    except (WeightsUnavailable, ImportError):
        return  # `measure.py` says so
    limits = {"num_paths": 1, "num_intervals": options.path_length_intervals, "batch_size": options.batch_size}
    for pair in tqdm(waiting, desc="perceptual path length", unit="pair", disable=not run.show_progress):
        with run.clock.measure(PATH_LENGTH) as measured:
            ends = run.images.batch(pair)
            image_at = _between(pipeline, ends, options.steps)
            length = perceptual_path_length(lambda _, f, at=image_at: at(f.to(pipeline.device)), distance, **limits)
            first, second = (ends / 2 + 0.5).to(pipeline.device)

            def fading(_: torch.Tensor, f: torch.Tensor, a: torch.Tensor = first, b: torch.Tensor = second) -> Any:
                return torch.lerp(a, b, f.to(a)[:, None, None, None])

            fade = perceptual_path_length(fading, distance, **limits)
            record = {"images": list(pair), "path_length": float(length), "cross_fade": float(fade)}
            run.folder.append(f"path_lengths_{options.path_length_intervals}", [record])
            measured.images = 1


def interpolations(options: EvaluationOptions, count: int) -> list[tuple[tuple[int, int], Path]]:
    """The pairs of images that are interpolated for the report, and the files of their strips."""
    folder = options.output / INTERPOLATIONS
    pairs = image_pairs(count, _NUM_INTERPOLATIONS, options.seed)
    return [(pair, folder / f"{pair[0]:07d}_{pair[1]:07d}.png") for pair in pairs]


def _interpolate(run: _Run, pipeline: DiffusionAutoencoderPipeline) -> None:
    """A strip of images between both of a pair."""
    for pair, path in interpolations(run.options, run.count):
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            image_at = _between(pipeline, run.images.batch(pair), run.options.steps)
            frames = image_at(torch.linspace(0, 1, _NUM_FRAMES, device=pipeline.device))
            write_png(path, film_strip(list(frames.cpu())))


def _baselines(run: _Run, train: _Images | None, fitted: Mapping[str, Any] | None, latent_dim: int) -> None:
    """Reconstructions by methods without a network, of the same latent size."""
    waiting = {}
    for name in run.options.baselines:
        done = run.folder.scores(name)
        if indices := [index for index in range(run.count) if index not in done]:
            waiting[name] = indices
    # Method -> function from images to reconstructions and, or None, the bytes each took.
    methods: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, Sequence[int] | None]]] = {}
    if set(waiting) - {"jpeg"}:
        pixels = np.empty((fitted["images"], train.batch([0]).numel()))
        for batch in batches(range(len(pixels)), 500):
            pixels[batch.start : batch.stop] = train.batch(batch).flatten(1) / 2 + 0.5
        if "mean_image" in waiting:
            mean = fit_mean_image(pixels)
            methods["mean_image"] = lambda images: (mean(images), None)
        if "pca" in waiting:
            pca = fit_pca(pixels, fitted["pca_components"])
            methods["pca"] = lambda images: (pca(images), None)
        del pixels
    if "jpeg" in waiting:
        methods["jpeg"] = lambda images: jpeg_reconstruct(images, latent_code_bytes(latent_dim))
    for name, method in methods.items():
        for batch in tqdm(list(batches(waiting[name], 500)), desc=name, disable=not run.show_progress):
            originals = run.images.batch(batch) / 2 + 0.5
            with run.clock.measure(f"baseline_{name}") as measured:
                reconstructions, sizes = method(originals)
                measured.images = len(batch)
            run.folder.add(name, batch, originals, reconstructions, sizes)
