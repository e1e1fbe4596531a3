"""`diffae-hub export-official`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from .flags import add_flags, from_arguments, option


@dataclass
class ExportOptions:
    """The arguments of `export_official_checkpoints`."""

    model: str = option(dataclasses.MISSING, "pipeline folder, Hub id or bundled model", positional=True)
    output: Path = option(dataclasses.MISSING, "folder for the checkpoints", positional=True)
    overwrite: bool = option(False, "replace such a folder that is there already")


def export_official_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub export-official`."""
    add_flags(parser, ExportOptions)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run_export_official(arguments: argparse.Namespace) -> int:
    """Writes official checkpoints of a pipeline; prints their paths."""
    from diffusers.utils import logging

    from ..conversion.export_official import export_official_checkpoints

    logging.disable_progress_bar()
    paths = export_official_checkpoints(**vars(from_arguments(ExportOptions, arguments)))
    if arguments.json:
        print(json.dumps({name: str(path) for name, path in paths.items()}, indent=2))
    else:
        for name, path in paths.items():
            print(f"{name}: {path}")
    return 0
