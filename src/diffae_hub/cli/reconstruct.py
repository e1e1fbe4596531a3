"""`diffae-hub reconstruct`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from ..files import write_png
from .shared import add_image_arguments, load_for_sampling

_MAX_TILES = 4096  # of a picture: hours on a CPU


def reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub reconstruct`."""
    parser.add_argument(
        "--tiles",
        type=int,
        metavar="N",
        help="take the picture in overlapping tiles of the model's size, N along its shorter side "
        f"(default: one centre-cropped tile); at most {_MAX_TILES:,} tiles a picture",
    )
    add_image_arguments(parser, "stochastic")


def run_reconstruct(arguments: argparse.Namespace) -> int:
    """Writes each reconstruction and a side-by-side picture; prints PSNR and SSIM against what the model was given."""
    import torch

    from ..images import Tiles, pil_to_array, read_image, side_by_side, to_pil, to_uint8, upright
    from ..metrics.psnr import peak_signal_to_noise_ratio
    from ..metrics.ssim import structural_similarity

    if arguments.tiles is not None and not 1 <= arguments.tiles <= 64:
        raise ValueError(f"--tiles must be between 1 and 64, got {arguments.tiles}")
    shapes = [upright(read_image(path)).size for path in arguments.images]  # every file, before any work starts
    names = _output_names(arguments.images)
    pipeline, settings = load_for_sampling(arguments)
    size, channels = pipeline.decoder.config.sample_size, pipeline.decoder.config.in_channels
    overlap = size // 8
    pipeline.enable_tiling(overlap)
    sizes, counts = [], []
    for path, (width, height) in zip(arguments.images, shapes, strict=True):
        count = arguments.tiles or 1
        scale = (count * size - (count - 1) * overlap) / min(width, height)
        sizes.append((size, size) if count == 1 else (round(width * scale), round(height * scale)))
        counts.append(len(Tiles(sizes[-1][1], sizes[-1][0], size, overlap)))
        if counts[-1] > _MAX_TILES:
            raise ValueError(f"--tiles must give at most {_MAX_TILES:,} tiles a picture, got {counts[-1]:,} for {path}")
    arguments.output.mkdir(parents=True, exist_ok=True)

    records = []
    for path, name, picture_size, count in zip(arguments.images, names, sizes, counts, strict=True):
        array = pil_to_array(read_image(path), channels, picture_size)
        original = torch.from_numpy(array).permute(2, 0, 1)
        settings["generator"].manual_seed(arguments.seed)  # the same noise for each
        output = pipeline(original[None], **settings)
        # Measured on 8-bit pixels, as the file holds them.
        pixels = to_uint8(output.images[0].cpu())
        result = pixels.float() / 255
        psnr = float(peak_signal_to_noise_ratio(result[None], original[None]))
        record = {
            "image": str(path),
            "reconstruction": str(arguments.output / f"{name}_{arguments.mode}.png"),
            "side_by_side": str(arguments.output / f"{name}_{arguments.mode}_side_by_side.png"),
            "width": result.shape[-1],
            "height": result.shape[-2],
            "tiles": count,
            "psnr_db": psnr if math.isfinite(psnr) else None,  # JSON knows no infinity, the PSNR of an exact copy
            "ssim": float(structural_similarity(result[None], original[None])),
            "values": pixels.numel(),
            "equal_values": int((pixels == to_uint8(original)).sum()),
        }
        write_png(Path(record["reconstruction"]), to_pil(result))
        write_png(Path(record["side_by_side"]), side_by_side(original, result))
        records.append(record)
        if not arguments.json:
            size_text = f"{record['width']}x{record['height']}"
            print(f"{path}: {size_text}, PSNR {psnr:.2f} dB, SSIM {record['ssim']:.4f}", end="")
            print(f", {record['equal_values']} of {record['values']} 8-bit values equal" if arguments.exact else "")
            print(f"  {record['side_by_side']}")
    if arguments.json:
        settings = {key: getattr(arguments, key) for key in ("model", "mode", "solver", "exact", "steps", "seed")}
        print(json.dumps({**settings, "images": records}, indent=2, allow_nan=False))
    return 0


def _output_names(paths: Sequence[Path]) -> list[str]:
    """Stems of the files; all numbered where two are the same, so that no picture overwrites another."""
    stems = [path.stem for path in paths]
    if len({stem.casefold() for stem in stems}) == len(stems):
        return stems
    return [f"{index:03d}_{stem}" for index, stem in enumerate(stems)]
