"""Encode images and decode them again."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .flags import option
from .shared import MODE_HELP, Inversion, load_for_sampling

_MAX_ALONG, _MAX_TILES = 64, 4096  # of a picture: hours on a CPU


@dataclass(kw_only=True)
class Options(Inversion):
    """In which way."""

    mode: Literal["stochastic", "inversion"] = option("stochastic", MODE_HELP)
    tiles: int | None = option(
        None,
        "take the picture in overlapping tiles of the model's size, so many along its shorter side "
        f"(default: one centre-cropped tile); at most {_MAX_TILES:,} tiles a picture",
    )


def run(options: Options, arguments: Namespace) -> tuple[Any, str]:
    """Writes each reconstruction and a side-by-side picture; PSNR and SSIM against what the model was given."""
    import torch

    from ..files import write_png
    from ..images import Tiles, pil_to_array, read_image, side_by_side, to_pil, to_uint8, upright
    from ..metrics.psnr import peak_signal_to_noise_ratio
    from ..metrics.ssim import structural_similarity

    along = 1 if options.tiles is None else options.tiles
    if not 1 <= along <= _MAX_ALONG:
        raise ValueError(f"--tiles must be between 1 and {_MAX_ALONG}, got {along}")
    shapes = [upright(read_image(path)).size for path in options.images]  # every file, before any work starts
    pipeline, settings = load_for_sampling(options, arguments)
    size, channels = pipeline.decoder.config.sample_size, pipeline.decoder.config.in_channels
    overlap = size // 8
    pipeline.enable_tiling(overlap)
    sizes, counts = [], []
    for path, (width, height) in zip(options.images, shapes, strict=True):
        scale = (along * size - (along - 1) * overlap) / min(width, height)
        sizes.append((size, size) if along == 1 else (round(width * scale), round(height * scale)))
        counts.append(len(Tiles(sizes[-1][1], sizes[-1][0], size, overlap)))
        if counts[-1] > _MAX_TILES:
            raise ValueError(f"--tiles must give at most {_MAX_TILES:,} tiles a picture, got {counts[-1]:,} for {path}")
    options.output.mkdir(parents=True, exist_ok=True)

    records, lines = [], []
    for path, name, picture_size, count in zip(options.images, _names(options.images), sizes, counts, strict=True):
        original = torch.from_numpy(pil_to_array(read_image(path), channels, picture_size)).permute(2, 0, 1)
        settings["generator"].manual_seed(options.seed)  # the same noise for each
        # Measured on 8-bit pixels, as the file holds them.
        pixels = to_uint8(pipeline(original[None], **settings).images[0].cpu())
        result = pixels.float() / 255
        psnr = float(peak_signal_to_noise_ratio(result[None], original[None]))
        record = {
            "image": path,
            "reconstruction": options.output / f"{name}_{options.mode}.png",
            "side_by_side": options.output / f"{name}_{options.mode}_side_by_side.png",
            "width": result.shape[-1],
            "height": result.shape[-2],
            "tiles": count,
            "psnr_db": psnr if math.isfinite(psnr) else None,  # JSON knows no infinity, the PSNR of an exact copy
            "ssim": float(structural_similarity(result[None], original[None])),
            "values": pixels.numel(),
            "equal_values": int((pixels == to_uint8(original)).sum()),
        }
        write_png(record["reconstruction"], to_pil(result))
        write_png(record["side_by_side"], side_by_side(original, result))
        records.append(record)
        line = f"{path}: {record['width']}x{record['height']}, PSNR {psnr:.2f} dB, SSIM {record['ssim']:.4f}"
        equal = f", {record['equal_values']} of {record['values']} 8-bit values equal" if options.exact else ""
        lines += [line + equal, f"  {record['side_by_side']}"]
    used = {key: getattr(options, key) for key in ("model", "mode", "solver", "exact", "steps", "seed")}
    return {**used, "images": records}, "\n".join(lines)


def _names(paths: Sequence[Path]) -> list[str]:
    """Stems of the files; all numbered where two are the same, so that no picture overwrites another."""
    stems = [path.stem for path in paths]
    if len({stem.casefold() for stem in stems}) == len(stems):
        return stems
    return [f"{index:03d}_{stem}" for index, stem in enumerate(stems)]
