"""`diffae-hub push`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from .flags import add_flags, from_arguments, option


@dataclass
class _Push:
    model: str = option(dataclasses.MISSING, "pipeline folder or bundled model", positional=True)
    repo_id: str = option(dataclasses.MISSING, "name or owner/name; created if it is not there", positional=True)
    card: Path | None = option(None, "page to upload as README.md, with its pictures")
    evaluation: Path | None = option(None, "report.json of an evaluation, for the card")
    license: str | None = option(None, "licence in the card, e.g. cc-by-4.0 (default: none is claimed)")
    private: bool = option(False, "make a new repository private")
    message: str = option("Upload diffusion autoencoder", "commit title")
    json: bool = option(False, "print JSON")


def push_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub push`."""
    parser.description = """Upload a pipeline to the Hugging Face Hub, with its model card.

  diffae-hub push runs/mine/pipeline me/my-autoencoder
  diffae-hub push cifar10-32-small me/cifar10-32-small --card model_cards/cifar10-32-small.md

The token is that of `hf auth login` or of the environment variable HF_TOKEN."""
    add_flags(parser, _Push)


def run_push(arguments: argparse.Namespace) -> int:
    """Uploads and prints the full id."""
    from ..hub.push import push_pipeline
    from ..pretrained import bundled_model_path, list_models
    from .shared import silence_diffusers

    silence_diffusers()
    given = vars(from_arguments(_Push, arguments))
    model, message, as_json = given.pop("model"), given.pop("message"), given.pop("json")
    folder = bundled_model_path(model) if model in list_models() and not Path(model).is_dir() else Path(model)
    full_id = push_pipeline(folder, commit_message=message, **given)
    print(json.dumps({"repo_id": full_id}) if as_json else full_id)
    return 0
