"""Pushing a pipeline folder to the Hugging Face Hub, after a look at whether it works."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from ..publishing import ensure_repository, publish
from .model_card import results_of_evaluation

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
        folder: What `DiffusionAutoencoderPipeline.save_pretrained` wrote; see [`~diffae_hub.publishing.publish`].
        repo_id: "name" or "owner/name"; created if needed.
        private: Whether a new repository is private.
        token: None takes the one of `HF_TOKEN` or of `hf auth login`.
        commit_message: Title of the commit.
        card: A Markdown page to upload as README.md, with the pictures and pages beside it that it links to.
        license: SPDX id in lower case, for the card.
        evaluation: The report.json of an evaluation, for the card's results.

    Returns:
        The full id, "owner/name".

    Raises:
        ValueError: If the pipeline does not work, the card cannot be read, or the repository cannot be written.
    """
    _check_works(Path(folder))
    figures = {"license": license} if license else {}
    if evaluation is not None:
        figures["results"] = results_of_evaluation(json.loads(Path(evaluation).read_text()))
    full_id = ensure_repository(repo_id, private, token)
    publish(folder, full_id, token=token, commit_message=commit_message, card=card, figures=figures)
    return full_id


def _check_works(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"folder must be a pipeline folder with a model_index.json, got {folder}")
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.decoder.config
    image = torch.full((1, config.in_channels, config.sample_size, config.sample_size), 0.5)
    output = pipeline(image, num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="pt")
    if not bool(torch.isfinite(output.images).all()):
        raise ValueError(f"folder must hold a pipeline that works; that in {folder} gives NaN or infinity")
