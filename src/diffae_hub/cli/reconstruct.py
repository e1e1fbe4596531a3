"""`diffae-hub reconstruct`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from ..files import write_png
from .shared import add_model_arguments, load_pipeline

# Tiles of a picture, and how many of them go through the network at once: both bound the memory.
_MAX_TILES = 4096
_TILES_AT_ONCE = 64


def reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub reconstruct`."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument(
        "--mode",
        choices=("stochastic", "inversion"),
        default="stochastic",
        help="stochastic: decode from random noise, so that the picture shows what the latent code alone holds; "
        "inversion: decode from the noise that the image itself leads to, nearly exact (default: %(default)s)",
    )
    parser.add_argument(
        "--tiles",
        type=int,
        metavar="N",
        help="cut the picture into square tiles of the model's size, N along its shorter side, and reconstruct each "
        f"(default: one centre-cropped tile); at most {_MAX_TILES:,} tiles a picture",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise x_T (default: %(default)s)")
    add_model_arguments(parser)


def run_reconstruct(arguments: argparse.Namespace) -> int:
    """Writes each reconstruction and a side-by-side picture; prints PSNR and SSIM against what the model was given."""
    import torch

    from ..images import join_tiles, read_image, side_by_side, split_into_tiles, tile_grid, to_pil
    from ..metrics.psnr import peak_signal_to_noise_ratio
    from ..metrics.ssim import structural_similarity

    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"--seed must be between 0 and 2**63 - 1, got {arguments.seed}")
    if arguments.tiles is not None and not 1 <= arguments.tiles <= 64:
        raise ValueError(f"--tiles must be between 1 and 64, got {arguments.tiles}")
    for path in arguments.images:  # every file is read before any work starts, and again when its turn comes
        rows, columns = tile_grid(read_image(path), arguments.tiles or 1)
        if rows * columns > _MAX_TILES:
            raise ValueError(
                f"--tiles must give at most {_MAX_TILES:,} tiles a picture, "
                f"got {arguments.tiles}: {rows} x {columns} tiles of {path}"
            )
    names = _output_names(arguments.images)
    pipeline = load_pipeline(arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)

    records = []
    for path, name in zip(arguments.images, names, strict=True):
        tiles, grid = split_into_tiles(read_image(path), pipeline.encoder.config, arguments.tiles or 1)
        generator = torch.Generator().manual_seed(arguments.seed)
        options = {"mode": arguments.mode, "num_inference_steps": arguments.steps, "output_type": "pt"}
        reconstructed = [
            pipeline(chunk, generator=generator, **options).images.cpu() for chunk in tiles.split(_TILES_AT_ONCE)
        ]
        original, result = join_tiles(tiles / 2 + 0.5, grid), join_tiles(torch.cat(reconstructed), grid)
        # Measured on 8-bit pixels, as the file holds them.
        result = (result * 255).round() / 255
        psnr = float(peak_signal_to_noise_ratio(result[None], original[None]))
        record = {
            "image": str(path),
            "reconstruction": str(arguments.output / f"{name}_{arguments.mode}.png"),
            "side_by_side": str(arguments.output / f"{name}_{arguments.mode}_side_by_side.png"),
            "width": result.shape[-1],
            "height": result.shape[-2],
            "tiles": len(tiles),
            "psnr_db": psnr if math.isfinite(psnr) else None,  # JSON knows no infinity, the PSNR of an exact copy
            "ssim": float(structural_similarity(result[None], original[None])),
        }
        write_png(Path(record["reconstruction"]), to_pil(result))
        write_png(Path(record["side_by_side"]), side_by_side(original, result))
        records.append(record)
        if not arguments.json:
            size = f"{record['width']}x{record['height']}"
            print(f"{path}: {size}, PSNR {psnr:.2f} dB, SSIM {record['ssim']:.4f}")
            print(f"  {record['side_by_side']}")
    if arguments.json:
        settings = {"model": arguments.model, "mode": arguments.mode, "steps": arguments.steps, "seed": arguments.seed}
        print(json.dumps({**settings, "images": records}, indent=2, allow_nan=False))
    return 0


def _output_names(paths: Sequence[Path]) -> list[str]:
    """Stems of the files; all numbered where two are the same, so that no picture overwrites another."""
    stems = [path.stem for path in paths]
    if len({stem.casefold() for stem in stems}) == len(stems):
        return stems
    return [f"{index:03d}_{stem}" for index, stem in enumerate(stems)]
