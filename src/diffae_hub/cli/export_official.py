"""Write checkpoints that the official code loads."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from .flags import option
from .shared import silence_diffusers


@dataclass
class Options:
    """The arguments of `export_official_checkpoints`."""

    model: str = option(MISSING, "pipeline folder, Hub id or bundled model", positional=True)
    output: Path = option(MISSING, "folder for the checkpoints", positional=True)
    overwrite: bool = option(False, "replace such a folder that is there already")


def run(options: Options, arguments: Namespace) -> tuple[Any, str]:
    """The paths of the checkpoints."""
    from ..conversion.export_official import export_official_checkpoints

    silence_diffusers()
    paths = export_official_checkpoints(**vars(options))
    return paths, "\n".join(f"{name}: {path}" for name, path in paths.items())
