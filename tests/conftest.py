"""Fixtures shared by all tests: tiny real components with random, non-zero weights."""

from __future__ import annotations

import os

# Before torch is imported: the suite must not reach for a network, and tiny models run fastest on few threads.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from torch import nn

from diffae_hub import ConditionedUNet2DModel, SemanticEncoderModel, VPDDIMScheduler

TINY = {
    "sample_size": 16,
    "latent_dim": 8,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "layers_per_block": 1,
    "attention_resolutions": (8,),
    "norm_num_groups": 4,
}


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter a random value, the zero-initialised ones too, so that outputs depend on all inputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 1.0 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale * 0.5)
    return module.eval()


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tiny_encoder() -> SemanticEncoderModel:
    torch.manual_seed(0)
    return randomize(SemanticEncoderModel(**TINY), seed=1)


@pytest.fixture
def tiny_decoder() -> ConditionedUNet2DModel:
    torch.manual_seed(0)
    return randomize(ConditionedUNet2DModel(**TINY, time_embed_dim=16, latent_scale_shift=True), seed=2)


@pytest.fixture
def tiny_pipeline(tiny_encoder: SemanticEncoderModel, tiny_decoder: ConditionedUNet2DModel):
    from diffae_hub import DiffusionAutoencoderPipeline

    pipeline = DiffusionAutoencoderPipeline(encoder=tiny_encoder, decoder=tiny_decoder, scheduler=VPDDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
