"""Upload a pipeline to the Hugging Face Hub, with its model card.

  diffae-hub push runs/mine/pipeline me/my-autoencoder
  diffae-hub push cifar10-32-small me/cifar10-32-small --card model_cards/cifar10-32-small.md

The token is that of `hf auth login` or of the environment variable HF_TOKEN.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from .flags import option
from .shared import silence_diffusers


@dataclass
class Options:
    """What to upload, and where."""

    model: str = option(MISSING, "pipeline folder or bundled model", positional=True)
    repo_id: str = option(MISSING, "name or owner/name; created if it is not there", positional=True)
    card: Path | None = option(None, "page to upload as README.md, with its pictures")
    evaluation: Path | None = option(None, "report.json of an evaluation, for the card")
    license: str | None = option(None, "licence in the card, e.g. cc-by-4.0 (default: none is claimed)")
    private: bool = option(False, "make a new repository private")
    message: str = option("Upload diffusion autoencoder", "commit title")


def run(options: Options, arguments: Namespace) -> tuple[Any, str]:
    """The full id."""
    from ..hub.push import push_pipeline
    from ..pretrained import bundled_model_path, list_models

    silence_diffusers()
    is_bundled = options.model in list_models() and not Path(options.model).is_dir()
    full_id = push_pipeline(
        bundled_model_path(options.model) if is_bundled else options.model,
        options.repo_id,
        private=options.private,
        commit_message=options.message,
        card=options.card,
        license=options.license,
        evaluation=options.evaluation,
    )
    return {"repo_id": full_id}, full_id
