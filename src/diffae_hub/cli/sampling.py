"""Commands that decode, with their shared options, the loading of the model and the writing of pictures."""

import math
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ..files import check_not_replaced, new_file, write_png
from ..flags import option

_MAX_ALONG, _MAX_TILES = 64, 4096  # limits of one picture: hours on a CPU
_PIXELS_TOGETHER = 2**17  # in one batch: larger batches are not faster
_EXACT = 1e-6  # tolerance of `--exact`: about the precision of float32
_MODEL_HELP = "bundled model (see `diffae-hub models`), pipeline folder or Hub id"
_WITH_MORE = "noto-emoji-64"  # it has attributes and a latent code model
_MODE_HELP = (
    "stochastic: decode from random noise, so that a picture shows what the latent code alone holds; inversion: "
    "decode from the noise that inverting the image gives, nearly exact"
)


@dataclass(kw_only=True)
class Sampling:
    """Options of commands that decode from random noise."""

    model: str = option("cifar10-32-small", _MODEL_HELP)
    steps: int | None = option(
        None, "1 to 1000 (default: 10; 50 for ddim from random noise, and for official checkpoints)"
    )
    solver: Literal["ddim", "dpm"] | None = option(
        None,
        "ddim: the paper's, which inversion inverts; dpm: needs a fifth of the steps from random noise "
        "(default: the one that fits the mode; ddim for official checkpoints)",
    )
    seed: int = option(0, "seed of random noise x_T")
    output: Path = option(MISSING, "folder for the pictures")
    device: str | None = option(None, "cpu, cuda, mps ... (default: cuda if there is one, else cpu)")


@dataclass(kw_only=True)
class Inversion(Sampling):
    """Options of commands that can also decode from the inverted noise of images."""

    images: tuple[Path, ...] = option(MISSING, "image files", positional=True)
    mode: Literal["stochastic", "inversion"] = option("inversion", _MODE_HELP)
    exact: bool = option(False, "inversion that repeats each step until it is exact, with --solver ddim")


def load_for_sampling(options: Sampling, arguments: Namespace):  # noqa: ANN201 - the class is imported only here
    """Loads the pipeline of `--model` to `--device`, with a solver. Also returns the arguments of its methods.

    Fills in `--solver` and `--steps`; `--exact` sets mode and solver.
    """
    import torch

    from .. import devices
    from ..schedulers.compatibility import fitting_solver, trained_scheduler, with_solver

    can_invert = isinstance(options, Inversion)
    if can_invert and options.exact:
        if options.solver == "dpm":
            raise ValueError("--solver must be ddim with --exact, got dpm")
        options.mode, options.solver = "inversion", "ddim"
    device = devices.torch_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipeline = devices.load_pipeline(options.model, device)
    trained = trained_scheduler(pipeline.scheduler)
    is_official, inverts = trained.config.timestep_spacing == "leading", can_invert and options.mode == "inversion"
    options.solver = options.solver or fitting_solver(trained, random_noise=not inverts)
    if options.steps is None:
        options.steps = 50 if is_official or (options.solver == "ddim" and not inverts) else 10
    pipeline.scheduler = with_solver(trained, options.solver)
    pipeline.scheduler.set_timesteps(options.steps)  # fails on a bad number before any work starts
    pipeline.set_progress_bar_config(disable=not arguments.show_progress, leave=False)
    settings = {
        "num_inference_steps": options.steps,
        "generator": torch.Generator().manual_seed(options.seed),
        "output_type": "pt",
    }
    if can_invert:
        settings |= {"mode": options.mode, "tolerance": _EXACT if options.exact else None}
    return pipeline, settings


def write_pictures(paths: Sequence[Path], images: Any) -> None:
    """Writes images (C, H, W) in [0, 1] as PNG files."""
    from ..images import to_pil

    for path, image in zip(paths, images, strict=True):
        write_png(path, to_pil(image))


@dataclass(kw_only=True)
class ReconstructOptions(Inversion):
    mode: Literal["stochastic", "inversion"] = option("stochastic", _MODE_HELP)
    tiles: int | None = option(
        None,
        "cut the picture into overlapping tiles of the model's size, this many along its shorter side "
        f"(default: one centre-cropped tile); at most {_MAX_TILES:,} tiles a picture",
    )


def reconstruct(options: ReconstructOptions, arguments: Namespace) -> tuple[Any, str]:
    """Encode images and decode them again.

    Writes each reconstruction, and a picture of the original, the reconstruction and 5 times their difference, side by
    side. PSNR and SSIM compare with the image as the model got it.
    """
    import numpy as np
    import torch

    from ..images import Tiles, film_strip, pil_to_array, read_image, to_pil, to_uint8, upright
    from ..metrics.psnr import peak_signal_to_noise_ratio
    from ..metrics.ssim import structural_similarity

    along = 1 if options.tiles is None else options.tiles
    if not 1 <= along <= _MAX_ALONG:
        raise ValueError(f"--tiles must be between 1 and {_MAX_ALONG}, got {along}")
    shapes = [upright(read_image(path)).size for path in options.images]  # reads every file before any work starts
    pipeline, settings = load_for_sampling(options, arguments)
    size, channels = pipeline.decoder.config.sample_size, pipeline.decoder.config.in_channels
    overlap = size // 8
    pipeline.enable_tiling(overlap)
    sizes, counts = [], []
    for path, (width, height) in zip(options.images, shapes, strict=True):
        scale = (along * size - (along - 1) * overlap) / min(width, height)
        sizes.append((size, size) if along == 1 else (round(width * scale), round(height * scale)))
        counts.append(Tiles.count(sizes[-1][1], sizes[-1][0], size, overlap))
        if counts[-1] > _MAX_TILES:
            raise ValueError(f"--tiles must give at most {_MAX_TILES:,} tiles a picture, got {counts[-1]:,} for {path}")
    options.output.mkdir(parents=True, exist_ok=True)  # or fails before any work
    names, ends = _names(options.images), (f"{options.mode}.png", f"{options.mode}_side_by_side.png")
    check_not_replaced(options.images, (options.output / f"{name}_{end}" for name in names for end in ends))

    def pictures() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields each original and its reconstruction, which is in 8 bits as in its file."""
        together = max(1, _PIXELS_TOGETHER // size**2) if along == 1 else 1
        for first in range(0, len(options.images), together):
            files = zip(options.images[first : first + together], sizes[first : first + together], strict=True)
            arrays = [pil_to_array(read_image(path), channels, picture_size) for path, picture_size in files]
            originals = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
            # The same noise for each.
            settings["generator"] = [torch.Generator().manual_seed(options.seed) for _ in arrays]
            yield from zip(originals, to_uint8(pipeline(originals, **settings).images.cpu()), strict=True)

    records, lines = [], []
    for path, name, count, (original, pixels) in zip(options.images, names, counts, pictures(), strict=True):
        result = pixels.float() / 255
        psnr = float(peak_signal_to_noise_ratio(result[None], original[None]))
        record = {
            "image": path,
            "reconstruction": options.output / f"{name}_{ends[0]}",
            "side_by_side": options.output / f"{name}_{ends[1]}",
            "width": result.shape[-1],
            "height": result.shape[-2],
            "tiles": count,
            "psnr_db": psnr if math.isfinite(psnr) else None,  # JSON has no infinity, the PSNR of an exact copy
            "ssim": float(structural_similarity(result[None], original[None])),
            "values": pixels.numel(),
            "equal_values": int((pixels == to_uint8(original)).sum()),
        }
        write_png(record["reconstruction"], to_pil(result))
        difference = (5 * (original - result).abs()).clamp(max=1)
        write_png(record["side_by_side"], film_strip([original, result, difference]))
        records.append(record)
        line = f"{path}: {record['width']}x{record['height']}, PSNR {psnr:.2f} dB, SSIM {record['ssim']:.4f}"
        equal = f", {record['equal_values']} of {record['values']} 8-bit values equal" if options.exact else ""
        lines += [line + equal, f"  {record['side_by_side']}"]
    used = {key: getattr(options, key) for key in ("model", "mode", "solver", "exact", "steps", "seed")}
    return {**used, "images": records}, "\n".join(lines)


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns the stems of the files, all numbered if two are equal, so that no picture overwrites another."""
    stems = [path.stem for path in paths]
    if len({stem.casefold() for stem in stems}) == len(stems):
        return stems
    return [f"{index:03d}_{stem}" for index, stem in enumerate(stems)]


@dataclass(kw_only=True)
class InterpolateOptions(Inversion):
    frames: int = option(9, "number of pictures, including both ends; with --grid, per side")
    grid: bool = option(False, "a square of pictures between four images, which are its corners")
    gif: bool = option(False, "also write an animation, frames.gif")
    mp4: bool = option(False, "also write a film, frames.mp4; needs the extra video")


def interpolate(options: InterpolateOptions, arguments: Namespace) -> tuple[Any, str]:
    """Walk from one image to another. Writes the frames, and one picture of all frames."""
    from ..images import film_strip, image_grid, read_image

    if options.mp4:
        from imageio.v3 import imwrite  # missing without the extra: fails before the work starts
    own_name = re.compile(r"(frame_\d+|strip|grid)\.png|frames\.(gif|mp4)")
    check_not_replaced(
        options.images, (options.output / path.name for path in options.images if own_name.fullmatch(path.name))
    )
    images = [read_image(path) for path in options.images]
    pipeline, settings = load_for_sampling(options, arguments)
    layout, name = ("grid", "grid") if options.grid else ("path", "strip")
    frames = pipeline.interpolate(images, num_frames=options.frames, layout=layout, **settings).images.cpu()
    paths = [options.output / f"frame_{index:03d}.png" for index in range(len(frames))]
    overview = options.output / f"{name}.png"
    write_pictures(paths, frames)
    write_png(overview, image_grid(frames, options.frames) if options.grid else film_strip(frames))
    document = {"model": options.model, "frames": paths, name: overview}
    enlarged = [image_grid([frame], 1) for frame in frames] if options.gif or options.mp4 else []
    if options.gif:
        document["gif"] = options.output / "frames.gif"
        with new_file(document["gif"]) as temporary:
            enlarged[0].save(temporary, "GIF", save_all=True, append_images=enlarged[1:], duration=100, loop=0)
    if options.mp4:
        document["mp4"] = options.output / "frames.mp4"
        with new_file(document["mp4"]) as temporary:
            temporary.write_bytes(imwrite("<bytes>", enlarged, extension=".mp4", plugin="FFMPEG", fps=10))
    return document, f"{len(paths)} frames, {overview}"


@dataclass(kw_only=True)
class EditOptions(Inversion):
    model: str = option(_WITH_MORE, _MODEL_HELP)
    attribute: str = option(MISSING, "name of the attribute to change")
    strengths: tuple[float, ...] = option((0.3,), "how much of the attribute to add; negative numbers remove it")
    keep: tuple[str, ...] = option((), "attributes that must not change")


def edit(options: EditOptions, arguments: Namespace) -> tuple[Any, str]:
    """Change an attribute of images.

      diffae-hub edit photo.png --model MODEL --attribute "dark skin tone" --strengths -0.3 0 0.3 --output out

    `diffae-hub fit-attributes` adds attributes to a model.
    """
    import torch

    from ..images import film_strip, pil_to_array, read_image

    strengths = options.strengths
    if len({f"{strength:g}" for strength in strengths}) < len(strengths):  # they name the files
        raise ValueError(f"--strengths must differ in their first six digits, got {' '.join(map(str, strengths))}")
    names = [options.output / f"{number:03d}_{path.stem}" for number, path in enumerate(options.images)]
    ends = [*(f"{strength:g}" for strength in strengths), "strip"]
    written = [[name.with_name(f"{name.name}_{end}.png") for end in ends] for name in names]
    check_not_replaced(options.images, chain(*written))
    images = [read_image(path) for path in options.images]
    pipeline, settings = load_for_sampling(options, arguments)
    edited = pipeline.edit(images, {options.attribute: strengths}, keep=options.keep, **settings).images.cpu()
    config, records = pipeline.decoder.config, []
    rows = zip(options.images, images, written, edited.split(len(strengths)), strict=True)
    for path, picture, (*files, strip), row in rows:
        original = torch.from_numpy(pil_to_array(picture, config.in_channels, (config.sample_size,) * 2))
        write_pictures(files, row)
        write_png(strip, film_strip([original.permute(2, 0, 1), *row]))
        records.append({"image": path, "edited": files, "strip": strip})
    document = {"attribute": options.attribute, "strengths": strengths, "images": records}
    return document, "\n".join(str(record["strip"]) for record in records)


@dataclass(kw_only=True)
class VariationsOptions(Sampling):
    image: Path = option(MISSING, "image file", positional=True)
    num_images: int = option(8, "number of variations")


def variations(options: VariationsOptions, arguments: Namespace) -> tuple[Any, str]:
    """Decode one code from several noises. Writes a strip, and a picture of 5 times the images' spread."""
    from ..images import film_strip, image_grid, read_image

    strip, spread = options.output / "variations.png", options.output / "spread.png"
    check_not_replaced([options.image], [strip, spread])
    image = read_image(options.image)
    pipeline, settings = load_for_sampling(options, arguments)
    output = pipeline.variations(image, options.num_images, **settings)
    write_png(strip, film_strip(output.images.cpu()))
    write_png(spread, image_grid([(5 * output.spread.cpu()).clamp(max=1)], 1))
    return {"strip": strip, "spread": spread}, f"{strip}\n{spread}"


@dataclass(kw_only=True)
class SampleOptions(Sampling):
    model: str = option(_WITH_MORE, _MODEL_HELP)
    num_images: int = option(16, "number of images")


def sample(options: SampleOptions, arguments: Namespace) -> tuple[Any, str]:
    """Make new images with the latent code model, and a grid of all images."""
    from ..images import image_grid

    pipeline, settings = load_for_sampling(options, arguments)
    images = pipeline.sample(options.num_images, **settings).images.cpu()
    paths = [options.output / f"sample_{index:04d}.png" for index in range(len(images))]
    write_pictures(paths, images)
    grid = options.output / "grid.png"
    write_png(grid, image_grid(images, max(1, round(len(images) ** 0.5))))
    return {"images": paths, "grid": grid}, str(grid)
