"""Short hashes of a model: codes and reconstructions of two states of one model must not be mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline


def encoder_fingerprint(pipeline: DiffusionAutoencoderPipeline) -> str:
    """Of the encoder's weights: codes with another fingerprint are those of another model."""
    return _fingerprint("", pipeline.encoder)


def check_encoder(pipeline: DiffusionAutoencoderPipeline, summary: Mapping[str, Any]) -> None:
    """ValueError if codes, by their [`~codes.shards.codes_summary`], are not of this pipeline's encoder."""
    if summary["encoder"] != encoder_fingerprint(pipeline):
        raise ValueError("codes must be of the encoder of --model: those of another model mean something else")


def weights_fingerprint(pipeline: DiffusionAutoencoderPipeline) -> str:
    """Of both networks' weights and of the scheduler."""
    saved = json.loads(pipeline.scheduler.to_json_string())
    scheduler = {name: value for name, value in saved.items() if not name.startswith("_")}
    return _fingerprint(json.dumps(scheduler, sort_keys=True), pipeline.encoder, pipeline.decoder)


def _fingerprint(text: str, *networks: nn.Module) -> str:
    digest = hashlib.sha256(text.encode())
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
