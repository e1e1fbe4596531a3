"""A pipeline -> official DiffAE checkpoints, for the code at github.com/phizaz/diffae."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import new_folder
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .convert import check_output_folder
from .official_configuration import NORM_EPS, NORM_NUM_GROUPS, OFFICIAL_LATENT_SCHEDULER, OFFICIAL_SCHEDULER
from .official_names import (
    OfficialTensor,
    attribute_classifier_names,
    decoder_names,
    encoder_names,
    latent_code_model_names,
)

AUTOENCODER, LATENT, CLASSIFIER = "autoencoder", "latent", "classifier"

# The official model holds noise for this many pictures in a buffer, which strict loading asks for.
_NOISE_BATCH = 32
_LIGHTNING_VERSION = "1.4.5"


def export_official_checkpoints(
    model: str | Path | DiffusionAutoencoderPipeline, output: str | Path, *, overwrite: bool = False
) -> dict[str, Path]:
    """Writes a checkpoint for each official model class that the pipeline has networks for.

    Each has the names and shapes of this class's `state_dict()`: "autoencoder" and "latent" (which repeats the
    autoencoder) for `LitModel`, "classifier" for `ClsModel`, which leaves `model.*` and `ema_model.*` out and is not
    loaded strictly. The averaged weights and the others are the same tensors, stored once. Optimizer states are not
    part of a pipeline, so that training starts anew from these weights.

    The official classes read more than their own checkpoint: configurations with a latent code model or a classifier
    load the autoencoder from `checkpoints/NAME/last.ckpt` (the exported "autoencoder" will do) and the codes of all
    training images from `checkpoints/NAME/latent.pkl`. A pipeline does not have those codes; the original file must be
    there.

    Args:
        model: A pipeline, or what `DiffusionAutoencoderPipeline.from_pretrained` loads.
        output: Folder to write; it appears only when it is complete.
        overwrite: Whether such a folder at `output` is replaced.

    Returns:
        "autoencoder", and "latent" and "classifier" where the pipeline has them -> path of the checkpoint.

    Raises:
        ValueError: If the official networks or their diffusion process have no such option as the pipeline uses, or
            `output` exists and may not be replaced.
        OSError: If the folder cannot be written; nothing is left behind then.
    """
    output = Path(output)
    inputs = {} if isinstance(model, DiffusionAutoencoderPipeline) else {"model": Path(model)}
    check_output_folder(output, overwrite, marker=f"{AUTOENCODER}.ckpt", inputs=inputs)
    pipeline = model
    if not isinstance(pipeline, DiffusionAutoencoderPipeline):
        pipeline = DiffusionAutoencoderPipeline.from_pretrained(model)
    _check_official(pipeline)

    encoder, decoder = pipeline.encoder, pipeline.decoder
    networks = _official_state(encoder, encoder_names(encoder.config))
    networks |= _official_state(decoder, decoder_names(decoder.config))
    size, channels = decoder.config.sample_size, decoder.config.in_channels
    noise = torch.randn((_NOISE_BATCH, channels, size, size), generator=torch.Generator().manual_seed(0))
    checkpoints = {AUTOENCODER: {"x_T": noise} | _twice("model", networks)}
    latent_model, classifier = pipeline.latent_code_model, pipeline.attribute_classifier
    if latent_model is not None:
        networks |= _official_state(latent_model, latent_code_model_names(latent_model.config))
        checkpoints[LATENT] = {"x_T": noise} | _statistics(latent_model) | _twice("model", networks)
    if classifier is not None:
        tensors = _official_state(classifier, attribute_classifier_names(classifier.config))
        checkpoints[CLASSIFIER] = _statistics(classifier) | _twice("classifier", tensors)

    with new_folder(output) as folder:
        for name, tensors in checkpoints.items():
            content = {
                "epoch": 0,
                "global_step": 0,
                "pytorch-lightning_version": _LIGHTNING_VERSION,
                "state_dict": OrderedDict(tensors),
            }
            torch.save(content, folder / f"{name}.ckpt")
    return {name: output / f"{name}.ckpt" for name in checkpoints}


def _official_state(model: nn.Module, names: list[OfficialTensor]) -> dict[str, torch.Tensor]:
    """Official name, relative to the model -> tensor, float32; a tensor with two names stays one tensor."""
    state = model.state_dict()
    tensors = {}
    for entry in names:
        tensor = state[entry.name].detach().to("cpu", torch.float32).contiguous()
        tensor = tensor.reshape(entry.official_shape(tuple(tensor.shape)))
        tensors |= dict.fromkeys(entry.official_names, tensor)
    return tensors


def _twice(name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the two prefixes, the second for the averaged weights."""
    return {f"{prefix}.{key}": tensor for prefix in (name, f"ema_{name}") for key, tensor in tensors.items()}


def _statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    statistics = {"conds_mean": model.latent_mean, "conds_std": model.latent_std}
    return {name: tensor.detach().to("cpu", torch.float32)[None] for name, tensor in statistics.items()}


def _check_official(pipeline: DiffusionAutoencoderPipeline) -> None:
    """Raises a ValueError that names the first option that the official code does not have."""
    encoder, decoder = pipeline.encoder.config, pipeline.decoder.config
    norm = {"norm_num_groups": NORM_NUM_GROUPS, "norm_eps": NORM_EPS}
    _require("encoder", encoder, {"latent_head": "pool", "in_channels": 3, **norm})
    # One option of the official configuration serves both networks.
    shared = {name: encoder[name] for name in ("sample_size", "base_channels", "num_attention_heads")}
    _require(
        "decoder",
        decoder,
        {
            "latent_scale_shift": False,
            "latent_mlp_layers": 0,
            "latent_spatial_size": None,
            "in_channels": 3,
            "out_channels": 3,
            **norm,
            **shared,
        },
    )
    # The network must have learned with these; whether sampling clamps is not the checkpoint's business.
    learned = ("noise_schedule", "prediction_type", "timestep_spacing")
    _require(
        "scheduler", pipeline.scheduler.config, {"num_train_timesteps": 1000, **_only(OFFICIAL_SCHEDULER, learned)}
    )
    if pipeline.latent_code_model is not None:
        config = pipeline.latent_code_model.config
        _require("latent_code_model", config, {"time_embed_dim": config["latent_dim"]})
        if pipeline.latent_scheduler is None:
            raise ValueError("latent_scheduler must be there with a latent_code_model, got None")
        expected = {"num_train_timesteps": 1000, **_only(OFFICIAL_LATENT_SCHEDULER, learned)}
        _require("latent_scheduler", pipeline.latent_scheduler.config, expected)


def _require(component: str, config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        if config[name] != value:
            raise ValueError(f"{component} must have {name}={value!r} for the official code, got {config[name]!r}")


def _only(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: config[name] for name in names}
