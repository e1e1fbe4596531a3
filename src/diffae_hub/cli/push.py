"""`diffae-hub push`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def push_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub push`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """Upload a pipeline to the Hugging Face Hub, with its model card.

  diffae-hub push runs/mine/pipeline me/my-autoencoder
  diffae-hub push cifar10-32-small me/cifar10-32-small --card model_cards/cifar10-32-small.md

The token is that of `hf auth login` or of the environment variable HF_TOKEN."""
    parser.add_argument("model", metavar="MODEL", help="pipeline folder or bundled model")
    parser.add_argument("repo_id", metavar="REPO_ID", help="name or owner/name; created if it is not there")
    parser.add_argument("--card", type=Path, metavar="FILE", help="page to upload as README.md, with its pictures")
    parser.add_argument("--evaluation", type=Path, metavar="FILE", help="report.json of an evaluation, for the card")
    parser.add_argument(
        "--license", metavar="ID", help="licence in the card, e.g. cc-by-4.0 (default: none is claimed)"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", default="Upload diffusion autoencoder", help="commit title (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_push(arguments: argparse.Namespace) -> int:
    """Uploads and prints the full id."""
    from ..hub.push import push_pipeline
    from ..pretrained import bundled_model_path, list_models
    from .shared import silence_diffusers

    silence_diffusers()
    bundled = not Path(arguments.model).is_dir() and arguments.model in list_models()
    folder = bundled_model_path(arguments.model) if bundled else Path(arguments.model)
    full_id = push_pipeline(
        folder,
        arguments.repo_id,
        private=arguments.private,
        commit_message=arguments.message,
        card=arguments.card,
        license=arguments.license,
        evaluation=arguments.evaluation,
    )
    print(json.dumps({"repo_id": full_id}) if arguments.json else full_id)
    return 0
