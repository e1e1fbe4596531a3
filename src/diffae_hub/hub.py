"""Uploads a pipeline folder after a check that it works."""

from pathlib import Path

import torch

from .pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .pretrained import bundled_or_own, of_training
from .publishing import card_figures, publish


def push_pipeline(
    model: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    message: str = "Upload diffusion autoencoder",
    card: str | Path | None = None,
    license: str | None = None,
    evaluation: str | Path | None = None,
) -> str:
    """Uploads a model by [`publish`] after loading it and reconstructing one image. Returns the full id.

    `license` (an SPDX id in lower case) and the results in `evaluation` (a report.json) are for the card.
    """
    folder, figures = of_training(Path(bundled_or_own(model))), card_figures(card, license, evaluation)
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.decoder.config
    image = torch.full((1, config.in_channels, config.sample_size, config.sample_size), 0.5)
    pipeline(image, num_inference_steps=1)
    return publish(folder, repo_id, card, figures, private, commit_message=message).repo_url.repo_id
