"""List the bundled models."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any


@dataclass
class Options:
    """None."""


def run(options: Options, arguments: Namespace) -> tuple[Any, str]:
    """Their names and folders."""
    from ..pretrained import bundled_model_path, list_models

    folders = {name: bundled_model_path(name) for name in list_models()}
    return folders, "\n".join(folders)
