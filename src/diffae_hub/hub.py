"""Uploading a pipeline folder that somebody has made, once it has proved to work."""

from __future__ import annotations

from pathlib import Path

import torch

from .pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .pretrained import of_training
from .publishing import card_figures, ensure_repository, publish, repository_files


def push_pipeline(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    commit_message: str = "Upload diffusion autoencoder",
    card: str | Path | None = None,
    license: str | None = None,
    evaluation: str | Path | None = None,
) -> str:
    """Uploads a pipeline folder in one commit, after it was loaded and has reconstructed one image.

    As [`publish`] and [`ensure_repository`], whose full id "owner/name" is returned. `license`, an SPDX id in lower
    case, and the results of `evaluation`, the report.json of one, are for the card.
    """
    folder, figures = of_training(Path(folder)), card_figures(card, license, evaluation)
    repository_files(folder, repo_id, card, figures)  # what cannot be sent is refused first
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.decoder.config
    image = torch.full((1, config.in_channels, config.sample_size, config.sample_size), 0.5)
    pipeline(image, num_inference_steps=1)
    full_id = ensure_repository(repo_id, private)
    publish(folder, full_id, commit_message=commit_message, card=card, figures=figures)
    return full_id
