"""`diffae-hub export-official`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def export_official_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub export-official`."""
    parser.add_argument("model", metavar="NAME_OR_PATH", help="pipeline folder, Hub id or bundled model")
    parser.add_argument("output", type=Path, metavar="OUT_DIR", help="folder for the checkpoints")
    parser.add_argument("--overwrite", action="store_true", help="replace such a folder that is there already")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run_export_official(arguments: argparse.Namespace) -> int:
    """Writes official checkpoints of a pipeline; prints their paths."""
    from diffusers.utils import logging

    from ..conversion.export_official import export_official_checkpoints

    logging.disable_progress_bar()
    paths = export_official_checkpoints(arguments.model, arguments.output, overwrite=arguments.overwrite)
    if arguments.json:
        print(json.dumps({name: str(path) for name, path in paths.items()}, indent=2))
    else:
        for name, path in paths.items():
            print(f"{name}: {path}")
    return 0
