"""Short hashes of a model, so that the codes or reconstructions of two states of it are not mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline


def encoder_fingerprint(pipeline: DiffusionAutoencoderPipeline) -> str:
    """Fingerprint of the encoder's weights: codes with another fingerprint are from another model."""
    return _fingerprint("", pipeline.encoder)


def check_encoder(pipeline: DiffusionAutoencoderPipeline, summary: Mapping[str, Any]) -> None:
    """Raises ValueError if the codes of a [`~codes.shards.codes_summary`] are not from this pipeline's encoder."""
    if summary["encoder"] != encoder_fingerprint(pipeline):
        raise ValueError("codes must be from the encoder of --model, but they are from another model")


def weights_fingerprint(pipeline: DiffusionAutoencoderPipeline) -> str:
    """Fingerprint of the weights of both networks and of the scheduler."""
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
