"""Pushing a pipeline folder to the Hugging Face Hub, after a look at whether it works."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..model_card import results_of_evaluation
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from ..publishing import ensure_repository, model_files, publish

__all__ = ["ensure_repository", "push_pipeline"]


def push_pipeline(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload diffusion autoencoder",
    card: str | Path | None = None,
    license: str | None = None,
    evaluation: str | Path | None = None,
) -> str:
    """Uploads a pipeline folder in one commit, after it was loaded and has reconstructed one image.

    Args:
        folder, repo_id, private, token, commit_message, card: As in [`~diffae_hub.publishing.publish`] and
            [`~diffae_hub.publishing.ensure_repository`].
        license: SPDX id in lower case, for the card.
        evaluation: The report.json of an evaluation, for the card's results.

    Returns:
        The full id, "owner/name".
    """
    if card is not None and not Path(card).is_file():
        raise ValueError(f"card must be a Markdown file, got {card}")
    model_files(Path(folder))  # what cannot be sent is refused first
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.decoder.config
    image = torch.full((1, config.in_channels, config.sample_size, config.sample_size), 0.5)
    output = pipeline(image, num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="pt")
    if not output.images.isfinite().all():
        raise ValueError(f"folder must hold a pipeline that works; that in {folder} gives NaN or infinity")
    figures = {"license": license} if license else {}
    if evaluation is not None:
        figures["results"] = results_of_evaluation(json.loads(Path(evaluation).read_text()))
    full_id = ensure_repository(repo_id, private, token)
    publish(folder, full_id, token=token, commit_message=commit_message, card=card, figures=figures)
    return full_id
