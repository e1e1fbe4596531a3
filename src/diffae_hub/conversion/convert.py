"""Converts official DiffAE checkpoints to a pipeline folder: read, match every tensor, write."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import check_output_folder, new_folder
from ..models.attribute_classifier import AttributeClassifier
from ..models.conditioned_unet_2d import ConditionedUNet2DModel
from ..models.latent_code_model import LatentCodeModel
from ..models.semantic_encoder import SemanticEncoderModel
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler
from .checkpoint_file import is_whole, load_checkpoint, shown
from .official_configuration import (
    CELEBA_ATTRIBUTES,
    OFFICIAL_LATENT_SCHEDULER,
    OFFICIAL_SCHEDULER,
    infer_attribute_classifier_configuration,
    infer_autoencoder_configuration,
    infer_latent_code_model_configuration,
)
from .official_names import STATISTICS, official_tensors

_CLASSES = {
    "encoder": SemanticEncoderModel,
    "decoder": ConditionedUNet2DModel,
    "latent_code_model": LatentCodeModel,
    "attribute_classifier": AttributeClassifier,
}
_PREFIXES = ("model.", "ema_model.", "classifier.", "ema_classifier.")
_OTHER_NAMES = ("x_T", "conds", *STATISTICS)
_LATENT = "latent_net."

Tensors = dict[str, torch.Tensor]


def convert_official_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    latent_checkpoint: str | Path | None = None,
    latent_stats: str | Path | None = None,
    classifier_checkpoint: str | Path | None = None,
    ema: bool = True,
    ema_classifier: bool = False,
    image_size: int | None = None,
    num_attention_heads: int = 1,
    encoder_layers_per_block: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a folder that `DiffusionAutoencoderPipeline.from_pretrained` loads, with the official conventions.

    Returns `folder`, `parameters` and `configurations` by component, and `warnings`. Nothing in the files is executed,
    and their values are memory-mapped, not loaded. Raises ValueError for damaged files, tensors that are unknown,
    missing, misshapen or not finite, and networks that do not fit together.

    Args:
        checkpoint: Official Lightning checkpoint of an autoencoder, perhaps with a latent code model or a classifier.
        output: Folder to write; it appears only when it is complete.
        latent_checkpoint, classifier_checkpoint: Checkpoints of the latent code model and the attribute classifier.
        latent_stats: The file latent.pkl, for a latent code model or classifier whose checkpoint lacks the statistics.
        ema: Whether to take the averaged weights `ema_model.*`, not `model.*`, of autoencoder and latent code model.
        ema_classifier: Whether to take `ema_classifier.*`, not `classifier.*`. Official editing uses `classifier.*`,
            because the classifier's training is too short for the average.
        image_size: Size of the training images; None infers it from the buffer x_T, or else from the attention's level.
        num_attention_heads: Heads of each attention block; no tensor shows it.
        encoder_layers_per_block: Residual blocks per level of the encoder; None takes the decoder's number.
        overwrite: Whether a pipeline folder at `output` is replaced.
    """
    output = Path(output)
    given = {"checkpoint": checkpoint, "latent_checkpoint": latent_checkpoint}
    given |= {"classifier_checkpoint": classifier_checkpoint, "latent_stats": latent_stats}
    paths = {argument: Path(path) for argument, path in given.items() if path is not None}
    check_output_folder(output, overwrite, "model_index.json", *paths.values())
    files = {argument: _read(path, argument) for argument, path in paths.items()}
    main, stats, warnings = files["checkpoint"], files.get("latent_stats", {}), []

    # 1. encoder and decoder
    group = "ema_model." if ema else "model."
    found = {name: tensor for name, tensor in _part(main, group).items() if not name.startswith(_LATENT)}
    if not found:
        raise ValueError(
            f"checkpoint must hold the tensors {group}* of an autoencoder, but {checkpoint} does not "
            "(--no-ema takes model.*, else ema_model.* is taken)"
        )
    if image_size is None and "x_T" in main:  # noise for as many pictures as were sampled during training
        image_size = next(reversed(main["x_T"].shape), None)
    encoder, decoder = infer_autoencoder_configuration(
        _shapes(found), image_size, num_attention_heads, encoder_layers_per_block
    )
    networks = _networks("checkpoint", group, found, {"encoder": encoder, "decoder": decoder})

    # 2. latent code model
    argument = "checkpoint" if latent_checkpoint is None else "latent_checkpoint"
    tensors = files[argument]
    found = {f"{_LATENT}{name}": tensor for name, tensor in _part(tensors, f"{group}{_LATENT}").items()}
    if found or latent_checkpoint is not None:
        config = infer_latent_code_model_configuration(_shapes(found), argument)
        statistics = _statistics(stats | tensors, config["latent_dim"])
        networks |= _networks(argument, group, found, {"latent_code_model": config}, statistics)
        theirs, ours = _part(tensors, f"{group}encoder."), _part(main, f"{group}encoder.")
        if theirs and not all(name in theirs and torch.equal(theirs[name], ours[name]) for name in ours):
            warnings.append(
                "the encoder in latent_checkpoint has other weights than the one in checkpoint; the latent code model "
                "knows only the codes of its own encoder"
            )

    # 3. attribute classifier
    group = "ema_classifier." if ema_classifier else "classifier."
    argument = "checkpoint" if classifier_checkpoint is None else "classifier_checkpoint"
    tensors = files[argument]
    if classifier_checkpoint is not None or any("classifier." in name for name in tensors):
        found = _part(tensors, group)
        config = infer_attribute_classifier_configuration(_shapes(found), argument)
        if config["num_attributes"] == len(CELEBA_ATTRIBUTES):
            config["attribute_names"] = CELEBA_ATTRIBUTES
        statistics = _statistics(stats | tensors, config["latent_dim"])
        networks |= _networks(argument, group, found, {"attribute_classifier": config}, statistics)
        others = networks["latent_code_model"].state_dict() if "latent_code_model" in networks else statistics
        if not all(torch.equal(others[name], values) for name, values in statistics.items()):
            warnings.append(
                "the classifier and the latent code model have different means and deviations of the codes; they may "
                "belong to different encoders"
            )

    schedulers = {"scheduler": VPDDIMScheduler(**OFFICIAL_SCHEDULER)}
    if "latent_code_model" in networks:
        schedulers["latent_scheduler"] = VPDDIMScheduler(**OFFICIAL_LATENT_SCHEDULER)
    pipeline = DiffusionAutoencoderPipeline(**networks, **schedulers)
    with new_folder(output) as folder:
        pipeline.save_pretrained(folder)
    configurations = {
        name: {key: value for key, value in network.config.items() if not key.startswith("_")}
        for name, network in networks.items()
    }
    parameters = {name: network.num_parameters() for name, network in networks.items()}
    return {"folder": output, "parameters": parameters, "configurations": configurations, "warnings": warnings}


def _read(path: Path, argument: str) -> Tensors:
    """Reads the tensors of a Lightning checkpoint or of latent.pkl. Every name must be one of official DiffAE."""
    content = load_checkpoint(path, argument)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{argument} must hold a state_dict, but {path} does not")
    unknown = [str(name) for name in state if not str(name).startswith(_PREFIXES) and name not in _OTHER_NAMES]
    if unknown:
        raise ValueError(f"{argument} must hold tensors of official DiffAE, but {path} has {shown(unknown[0])}")
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or not is_whole(tensor):
            raise ValueError(f"{argument} must hold whole tensors, but {shown(name)} in {path} is not one")
    return {name: tensor.detach() for name, tensor in state.items()}


def _part(tensors: Tensors, prefix: str) -> Tensors:
    """Selects the tensors whose names begin with `prefix`, and removes it from the names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _networks(
    argument: str,
    group: str,
    found: Tensors,
    configurations: Mapping[str, dict[str, Any]],
    statistics: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, nn.Module]:
    """Builds networks of these configurations with the tensors of `found`, which must hold exactly their weights."""
    networks: dict[str, nn.Module] = {}
    unknown = dict.fromkeys(found)
    for component, configuration in configurations.items():
        with torch.device("meta"):
            network = _CLASSES[component](**configuration)
        weights = dict(statistics or {})
        for ours, names, shape in official_tensors(network):
            for name in names:
                unknown.pop(name, None)
                _check_tensor(f"{argument} must hold {group}{name}", found.get(name), shape, found.get(names[0]))
            weights[ours] = found[names[0]].reshape(network.get_parameter(ours).shape)
        network.load_state_dict(weights, assign=True)
        networks[component] = network.float()
    if unknown:
        raise ValueError(f"{argument} must hold official networks only, got {group}{shown(next(iter(unknown)))}")
    return networks


def _check_tensor(must: str, tensor: torch.Tensor | None, shape: tuple[int, ...], same: torch.Tensor | None) -> None:
    if tensor is None or tensor.shape != shape:
        raise ValueError(f"{must} of shape {shape}, got {'none' if tensor is None else tuple(tensor.shape)}")
    if not tensor.is_floating_point() or not tensor.isfinite().all():
        raise ValueError(f"{must} as finite floating-point numbers")
    if not torch.equal(tensor, same):
        raise ValueError(f"{must} with the same values as under the layer's other name")


def _statistics(tensors: Tensors, latent_dim: int) -> Tensors:
    """Reads latent_mean and latent_std from the official tensors that hold them."""
    statistics = {}
    for name, ours in STATISTICS.items():
        if name not in tensors:
            raise ValueError(f"latent_stats must be given (--latent-stats), because the checkpoint lacks {name}")
        values = tensors[name].flatten().float().clone()
        if len(values) != latent_dim or not values.isfinite().all() or (name == "conds_std" and values.min() <= 0):
            raise ValueError(f"{name} must have {latent_dim} finite values, deviations above 0")
        statistics[ours] = values
    return statistics


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
