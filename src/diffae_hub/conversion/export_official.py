"""Exports a pipeline as official DiffAE checkpoints, for the code at github.com/phizaz/diffae."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import check_output_folder, new_folder
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .official_configuration import NORM_EPS, NORM_NUM_GROUPS, OFFICIAL_LATENT_SCHEDULER, OFFICIAL_SCHEDULER
from .official_names import STATISTICS, official_tensors

# The official model has a buffer with noise for this many pictures, which strict loading requires.
_NOISE_BATCH = 32


def export_official_checkpoints(
    model: str | Path | DiffusionAutoencoderPipeline, output: str | Path, *, overwrite: bool = False
) -> dict[str, Path]:
    """Writes a checkpoint for each official model class that the pipeline has networks for, and returns their paths.

    Each has the names and shapes of this class's `state_dict()`: "autoencoder" and "latent" (which repeats the
    autoencoder) for `LitModel`, "classifier" for `ClsModel`, which lacks `model.*` and `ema_model.*` and is not loaded
    strictly. Raises ValueError for options that the official code does not have. `model` is a pipeline or what its
    `from_pretrained` loads.
    """
    output = Path(output)
    given = isinstance(model, DiffusionAutoencoderPipeline)
    check_output_folder(output, overwrite, "autoencoder.ckpt", *([] if given else [Path(model)]))
    pipeline = model if given else DiffusionAutoencoderPipeline.from_pretrained(model)
    _check_official(pipeline)

    size = pipeline.decoder.config.sample_size
    noise = torch.randn((_NOISE_BATCH, 3, size, size), generator=torch.Generator().manual_seed(0))
    networks = _official_tensors(pipeline, "encoder") | _official_tensors(pipeline, "decoder")
    checkpoints = {"autoencoder": {"x_T": noise} | _twice("model", networks)}
    if pipeline.latent_code_model is not None:
        networks |= _official_tensors(pipeline, "latent_code_model")
        statistics = _statistics(pipeline.latent_code_model)
        checkpoints["latent"] = {"x_T": noise} | statistics | _twice("model", networks)
    if pipeline.attribute_classifier is not None:
        tensors = _official_tensors(pipeline, "attribute_classifier")
        checkpoints["classifier"] = _statistics(pipeline.attribute_classifier) | _twice("classifier", tensors)

    with new_folder(output) as folder:
        for name, tensors in checkpoints.items():
            # What the official code and Lightning 1.4 read.
            content = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "1.4.5"}
            torch.save(content | {"state_dict": OrderedDict(tensors)}, folder / f"{name}.ckpt")
    return {name: output / f"{name}.ckpt" for name in checkpoints}


def _official_tensors(pipeline: DiffusionAutoencoderPipeline, component: str) -> dict[str, torch.Tensor]:
    """Maps official names, relative to the model, to float32 tensors; a tensor with two names stays one tensor."""
    model, tensors = getattr(pipeline, component), {}
    for ours, names, shape in official_tensors(model):
        tensor = model.get_parameter(ours).detach().to("cpu", torch.float32).contiguous()
        tensors |= dict.fromkeys(names, tensor.reshape(shape))
    return tensors


def _twice(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Repeats the tensors under two prefixes, the second for the averaged weights."""
    return {f"{prefix}.{key}": tensor for prefix in (name, f"ema_{name}") for key, tensor in tensors.items()}


def _statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {official: model.get_buffer(ours).to("cpu", torch.float32)[None] for official, ours in STATISTICS.items()}


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
    """Options that the network was trained with; clamping is left to sampling, so it may differ."""
    learned = {name: scheduler[name] for name in ("noise_schedule", "prediction_type", "timestep_spacing")}
    return {"num_train_timesteps": 1000, **learned}
