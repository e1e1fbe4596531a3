"""`diffae-hub models`."""

from __future__ import annotations

import argparse
import json


def models_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub models`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_models(arguments: argparse.Namespace) -> int:
    """Lists the bundled models."""
    from ..pretrained import bundled_model_path, list_models

    folders = {name: str(bundled_model_path(name)) for name in list_models()}
    print(json.dumps(folders, indent=2) if arguments.json else "\n".join(folders))
    return 0
