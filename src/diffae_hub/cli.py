"""The command line: `diffae-hub COMMAND`.

Each command is a pair of functions, `COMMAND_arguments` and `run_COMMAND`. Bad input ends with exit code 2 and one line
on stderr.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .files import write_png

# Command -> (module, prefix of its two functions, one line of help). Imported when the command is chosen, so that
# `--help` does not wait for torch and a missing extra concerns only the command that needs it.
_COMMANDS = {
    "reconstruct": ("diffae_hub.cli", "reconstruct", "encode images and decode them again"),
    "interpolate": ("diffae_hub.cli", "interpolate", "walk from one image to another"),
    "evaluate": ("diffae_hub.evaluation.commands", "evaluate", "measure a model by the paper's protocol"),
    "encode": ("diffae_hub.evaluation.commands", "encode", "write the latent codes of a data set"),
    "convert": ("diffae_hub.conversion.commands", "convert", "turn official checkpoints into a pipeline folder"),
    "export-official": (
        "diffae_hub.conversion.commands",
        "export_official",
        "write checkpoints that the official code loads",
    ),
    "push": ("diffae_hub.hub.push", "push", "upload a pipeline to the Hugging Face Hub"),
    "models": ("diffae_hub.cli", "models", "list the bundled models"),
}
_DESCRIPTION = """Diffusion autoencoders: image -> latent code -> image.

First steps:
  diffae-hub reconstruct photo.jpg --output out            one 32x32 thumbnail, through the bundled model
  diffae-hub reconstruct photo.jpg --tiles 8 --output out  the photograph in tiles, 8 along its shorter side
"""


# Tiles of a picture, and how many of them go through the network at once: both bound the memory.
_MAX_TILES = 4096
_TILES_AT_ONCE = 64


class _UsageError(Exception):
    """A command line that cannot be parsed, as the one line to print."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise _UsageError(f"{self.prog}: {message}")


# ---- reconstruct -----------------------------------------------------------------------------------------------------


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="cifar10-32-small",
        metavar="NAME_OR_PATH",
        help="bundled model (see `diffae-hub models`), pipeline folder or Hub id (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps, 1 to 1000 (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--device", help="cpu, cuda, mps ... (default: cuda if there is one, else cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


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
    _add_model_arguments(parser)


def run_reconstruct(arguments: argparse.Namespace) -> int:
    """Writes each reconstruction and a side-by-side picture; prints PSNR and SSIM against what the model was given."""
    import torch

    from .evaluation.psnr import peak_signal_to_noise_ratio
    from .evaluation.ssim import structural_similarity
    from .image_files import read_image
    from .tiles import join_tiles, side_by_side, split_into_tiles, tile_grid, to_pil

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
    pipeline = _load_pipeline(arguments)
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


# ---- interpolate -----------------------------------------------------------------------------------------------------


def interpolate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub interpolate`."""
    parser.add_argument("images", nargs=2, type=Path, metavar="IMAGE", help="the two ends")
    parser.add_argument("--frames", type=int, default=9, help="pictures, both ends included (default: %(default)s)")
    _add_model_arguments(parser)


def run_interpolate(arguments: argparse.Namespace) -> int:
    """Writes the frames of an interpolation and a strip of all of them."""
    from .image_files import read_image
    from .tiles import film_strip, to_pil

    first, second = (read_image(path) for path in arguments.images)
    pipeline = _load_pipeline(arguments)
    frames = pipeline.interpolate(
        first, second, num_frames=arguments.frames, num_inference_steps=arguments.steps, output_type="pt"
    ).images.cpu()
    arguments.output.mkdir(parents=True, exist_ok=True)
    paths = [arguments.output / f"frame_{index:03d}.png" for index in range(len(frames))]
    for frame, path in zip(frames, paths, strict=True):
        write_png(path, to_pil(frame))
    strip = arguments.output / "strip.png"
    write_png(strip, film_strip(frames))
    if arguments.json:
        print(
            json.dumps(
                {"model": arguments.model, "frames": [str(path) for path in paths], "strip": str(strip)}, indent=2
            )
        )
    else:
        print(f"{len(paths)} frames, {strip}")
    return 0


# ---- models ----------------------------------------------------------------------------------------------------------


def models_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub models`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_models(arguments: argparse.Namespace) -> int:
    """Lists the bundled models."""
    from .pretrained import bundled_model_names, bundled_model_path

    folders = {name: str(bundled_model_path(name)) for name in bundled_model_names()}
    print(json.dumps(folders, indent=2) if arguments.json else "\n".join(folders))
    return 0


# ---- shared ----------------------------------------------------------------------------------------------------------


def _load_pipeline(arguments: argparse.Namespace):  # noqa: ANN202 - the class is imported only here
    import torch
    from diffusers.utils import logging

    from . import DiffusionAutoencoderPipeline

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be a device of this machine, got {device!r}") from error
    if target.type == "meta":  # holds no values
        raise ValueError("--device must be a device of this machine, got 'meta'")
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(arguments.model).to(target)
    for network in (pipeline.encoder, pipeline.decoder):
        network.to(memory_format=torch.channels_last)  # faster; changes rounding only
    # Fail on a bad number of steps before any picture is worked on.
    pipeline.scheduler.set_timesteps(arguments.steps)
    pipeline.set_progress_bar_config(disable=arguments.json or not sys.stderr.isatty(), leave=False)
    return pipeline


def _output_names(paths: Sequence[Path]) -> list[str]:
    """Stems of the files; all numbered where two are the same, so that no picture overwrites another."""
    stems = [path.stem for path in paths]
    if len({stem.casefold() for stem in stems}) == len(stems):
        return stems
    return [f"{index:03d}_{stem}" for index, stem in enumerate(stems)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(prog="diffae-hub", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    try:
        for name, (module, prefix, summary) in _COMMANDS.items():
            command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
            if name == next((word for word in argv if not word.startswith("-")), None):
                functions = sys.modules[__name__] if module == __name__ else importlib.import_module(module)
                getattr(functions, f"{prefix}_arguments")(command)
                command.set_defaults(run=getattr(functions, f"run_{prefix}"))
        arguments = parser.parse_args(argv)
        arguments.command_line = shlex.join(["diffae-hub", *argv])
        return arguments.run(arguments)
    except _UsageError as error:
        print(error, file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("diffae_hub"):
            raise
        print(f"diffae-hub: this command needs {error.name}: pip install 'diffae_hub[train,eval]'", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"diffae-hub: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
