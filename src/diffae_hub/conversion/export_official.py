"""A pipeline -> official DiffAE checkpoints, for the code at github.com/phizaz/diffae."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import new_folder
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .convert import STATISTICS, check_output_folder
from .official_configuration import NORM_EPS, NORM_NUM_GROUPS, OFFICIAL_LATENT_SCHEDULER, OFFICIAL_SCHEDULER
from .official_names import attribute_classifier_names, decoder_names, encoder_names, latent_code_model_names

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
        OSError: If the folder cannot be written (a full disk); nothing is left behind then.
    """
    output = Path(output)
    inputs = {} if isinstance(model, DiffusionAutoencoderPipeline) else {"model": Path(model)}
    check_output_folder(output, overwrite, marker="autoencoder.ckpt", inputs=inputs)
    pipeline = model
    if not isinstance(pipeline, DiffusionAutoencoderPipeline):
        pipeline = DiffusionAutoencoderPipeline.from_pretrained(model)
    _check_official(pipeline)

    size = pipeline.decoder.config.sample_size
    noise = torch.randn((_NOISE_BATCH, 3, size, size), generator=torch.Generator().manual_seed(0))
    networks = _official_tensors(pipeline.encoder, encoder_names) | _official_tensors(pipeline.decoder, decoder_names)
    checkpoints = {"autoencoder": {"x_T": noise} | _twice("model", networks)}
    latent_model, classifier = pipeline.latent_code_model, pipeline.attribute_classifier
    if latent_model is not None:
        networks |= _official_tensors(latent_model, latent_code_model_names)
        checkpoints["latent"] = {"x_T": noise} | _statistics(latent_model) | _twice("model", networks)
    if classifier is not None:
        tensors = _official_tensors(classifier, attribute_classifier_names)
        checkpoints["classifier"] = _statistics(classifier) | _twice("classifier", tensors)

    with new_folder(output) as folder:
        for name, tensors in checkpoints.items():
            content = {
                "epoch": 0,
                "global_step": 0,
                "pytorch-lightning_version": _LIGHTNING_VERSION,
                "state_dict": OrderedDict(tensors),
            }
            with (folder / f"{name}.ckpt").open("wb") as file:
                try:
                    torch.save(content, file)
                except RuntimeError as error:  # what torch makes of the OSError of a full disk
                    raise OSError(f"{output} cannot be written: {error.__context__ or error}") from error
    return {name: output / f"{name}.ckpt" for name in checkpoints}


def _official_tensors(model: nn.Module, names: Callable) -> dict[str, torch.Tensor]:
    """Official name, relative to the model -> tensor, float32; a tensor with two names stays one tensor."""
    state, tensors = model.state_dict(), {}
    for entry in names(model.config):
        tensor = state[entry.name].to("cpu", torch.float32).contiguous()
        tensor = tensor.reshape(entry.official_shape(tuple(tensor.shape)))
        tensors |= dict.fromkeys(entry.official_names, tensor)
    return tensors


def _twice(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the two prefixes, the second for the averaged weights."""
    return {f"{prefix}.{key}": tensor for prefix in (name, f"ema_{name}") for key, tensor in tensors.items()}


def _statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {official: state[ours].to("cpu", torch.float32)[None] for official, ours in STATISTICS.items()}


def _check_official(pipeline: DiffusionAutoencoderPipeline) -> None:
    """Raises a ValueError that names the first option that the official code does not have."""
    both = {"in_channels": 3, "patch_size": 1, "norm_num_groups": NORM_NUM_GROUPS, "norm_eps": NORM_EPS}
    # One option of the official configuration serves both networks.
    shared = {name: pipeline.encoder.config[name] for name in ("sample_size", "base_channels", "num_attention_heads")}
    plain = {"latent_scale_shift": False, "latent_mlp_layers": 0, "latent_spatial_size": None}
    expected = {
        "encoder": {"latent_head": "pool", **both},
        "decoder": {**plain, "out_channels": 3, **both, **shared},
        "scheduler": _learned(OFFICIAL_SCHEDULER),
    }
    if pipeline.latent_code_model is not None:
        expected["latent_code_model"] = {"time_embed_dim": pipeline.latent_code_model.config["latent_dim"]}
        expected["latent_scheduler"] = _learned(OFFICIAL_LATENT_SCHEDULER)
    for component, options in expected.items():
        part = getattr(pipeline, component)
        for name, value in options.items():
            found = None if part is None else part.config[name]
            if found != value:
                raise ValueError(f"{component} must have {name}={value!r} for the official code, got {found!r}")


def _learned(scheduler: dict[str, Any]) -> dict[str, Any]:
    """What the network has learned with; whether sampling clamps is not the checkpoint's business."""
    learned = {name: scheduler[name] for name in ("noise_schedule", "prediction_type", "timestep_spacing")}
    return {"num_train_timesteps": 1000, **learned}
