"""Official DiffAE checkpoints -> a pipeline folder: read, match every tensor, write."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ..files import new_folder
from ..models.attribute_classifier import AttributeClassifier
from ..models.conditioned_unet_2d import ConditionedUNet2DModel
from ..models.latent_code_model import LatentCodeModel
from ..models.semantic_encoder import SemanticEncoderModel
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler
from .checkpoint_file import describe, is_whole, load_checkpoint, shown
from .official_configuration import (
    CELEBA_ATTRIBUTES,
    NUM_ATTENTION_HEADS,
    OFFICIAL_LATENT_SCHEDULER,
    OFFICIAL_SCHEDULER,
    infer_attribute_classifier_configuration,
    infer_autoencoder_configuration,
    infer_latent_code_model_configuration,
)
from .official_names import (
    attribute_classifier_names,
    decoder_names,
    encoder_names,
    latent_code_model_names,
)

STATISTICS = {"conds_mean": "latent_mean", "conds_std": "latent_std"}

# Component -> its class, and the table of its tensors.
_NETWORKS = {
    "encoder": (SemanticEncoderModel, encoder_names),
    "decoder": (ConditionedUNet2DModel, decoder_names),
    "latent_code_model": (LatentCodeModel, latent_code_model_names),
    "attribute_classifier": (AttributeClassifier, attribute_classifier_names),
}
_PREFIXES = ("model.", "ema_model.", "classifier.", "ema_classifier.")
_LATENT = "latent_net."
_NAMES_SHOWN = 5

Tensors = dict[str, torch.Tensor]


@dataclass
class ConversionReport:
    """What a conversion has written.

    Args:
        folder: The pipeline folder.
        parameters: Component -> number of parameters.
        configurations: Component -> its arguments as inferred.
        warnings: What the user should know.
    """

    folder: Path
    parameters: dict[str, int]
    configurations: dict[str, dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


@dataclass
class _OfficialFile:
    """The state dict of one official checkpoint; its values are mapped."""

    path: Path
    argument: str
    tensors: Tensors

    def part(self, prefix: str) -> Tensors:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


@dataclass
class _Component:
    """A network about to be written: a model without memory, and the tensors of its state dict."""

    model: nn.Module
    weights: Tensors


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
    num_attention_heads: int = NUM_ATTENTION_HEADS,
    encoder_layers_per_block: int | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """Writes a folder that `DiffusionAutoencoderPipeline.from_pretrained` loads, with the official conventions.

    Nothing in the files is executed. Their values are mapped, not loaded.

    Args:
        checkpoint: Official Lightning checkpoint of an autoencoder. A latent code model or a classifier in the same
            file is converted as well.
        output: Folder to write; it appears only when it is complete.
        latent_checkpoint: Checkpoint of the latent code model.
        latent_stats: The file latent.pkl; for a latent code model or classifier whose checkpoint lacks the statistics.
        classifier_checkpoint: Checkpoint of the attribute classifier.
        ema: Whether to take the averaged weights `ema_model.*` or `model.*`, of autoencoder and latent code model.
        ema_classifier: Whether to take `ema_classifier.*` or `classifier.*`. Official editing uses the second, because
            the classifier's short training is not long enough for the average.
        image_size: Height and width of the training images; None infers it, from the buffer x_T or else from where the
            attention is.
        num_attention_heads: Heads of each attention block; no tensor shows it.
        encoder_layers_per_block: Residual blocks per level of the encoder; None infers it.
        overwrite: Whether a pipeline folder at `output` is replaced.

    Returns:
        What was written.

    Raises:
        ValueError: If a file is not an intact checkpoint, a tensor is unknown, missing, misshapen or not finite (the
            message names it), the networks do not belong together, or `output` exists and may not be replaced.
        OSError: If the folder cannot be written (a full disk); nothing is left behind then.
    """
    output = Path(output)
    given = {
        "checkpoint": checkpoint,
        "latent_checkpoint": latent_checkpoint,
        "classifier_checkpoint": classifier_checkpoint,
        "latent_stats": latent_stats,
    }
    paths = {argument: Path(path) for argument, path in given.items() if path is not None}
    check_output_folder(output, overwrite, marker="model_index.json", inputs=paths)
    statistics = _read_statistics(paths.pop("latent_stats")) if latent_stats is not None else {}
    files = {argument: _read(path, argument) for argument, path in paths.items()}
    main = files["checkpoint"]
    warnings: list[str] = []

    # 1. encoder and decoder
    group = "ema_model." if ema else "model."
    found = {name: tensor for name, tensor in main.part(group).items() if not name.startswith(_LATENT)}
    if not found:
        others = [f"{prefix}*" for prefix in _PREFIXES if main.part(prefix)]
        raise ValueError(
            f"checkpoint must hold the tensors {group}* of an autoencoder, but {main.path} has only "
            f"{_list(others) or 'none'} (--no-ema takes model.*, else ema_model.* is taken)"
        )
    encoder_config, decoder_config = infer_autoencoder_configuration(
        _shapes(found),
        image_size if image_size is not None else _size_of_noise(main),
        num_attention_heads,
        encoder_layers_per_block,
    )
    components = _match(main, group, found, {"encoder": encoder_config, "decoder": decoder_config})

    # 2. latent code model
    file = files.get("latent_checkpoint", main)
    found = {f"{_LATENT}{name}": tensor for name, tensor in file.part(f"{group}{_LATENT}").items()}
    if found or file is not main:
        if not found:
            raise ValueError(f"latent_checkpoint must hold the tensors {group}{_LATENT}*, but {file.path} has none")
        config = infer_latent_code_model_configuration(_shapes(found))
        components |= _match(file, group, found, {"latent_code_model": config})
        components["latent_code_model"].weights |= _statistics(file, statistics, config["latent_dim"], warnings)
        theirs, ours = file.part(f"{group}encoder."), main.part(f"{group}encoder.")
        if theirs and not all(name in theirs and torch.equal(theirs[name], ours[name]) for name in ours):
            warnings.append(
                f"the encoder in {file.path} has other weights than the one in {main.path}; the latent code model "
                "knows the codes of its own encoder only"
            )

    # 3. attribute classifier
    group = "ema_classifier." if ema_classifier else "classifier."
    file = files.get("classifier_checkpoint", main)
    found = file.part(group)
    if file is not main or file.part("classifier.") or file.part("ema_classifier."):
        if not found:
            raise ValueError(f"{file.argument} must hold the tensors {group}*, but {file.path} has none")
        config = infer_attribute_classifier_configuration(_shapes(found))
        if config["num_attributes"] == len(CELEBA_ATTRIBUTES):
            config["attribute_names"] = CELEBA_ATTRIBUTES
        components |= _match(file, group, found, {"attribute_classifier": config})
        components["attribute_classifier"].weights |= _statistics(file, statistics, config["latent_dim"], warnings)

    _check_together(components, warnings)
    if statistics and len(components) == 2:
        raise ValueError("latent_stats must go with a latent code model or a classifier, but there is neither")
    try:
        with new_folder(output) as folder:
            _write_pipeline(folder, components)
    except SafetensorError as error:
        raise OSError(f"{output} cannot be written: {error}") from error
    models = {name: component.model for name, component in components.items()}
    return ConversionReport(
        output,
        {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()},
        {
            name: {key: value for key, value in model.config.items() if not key.startswith("_")}
            for name, model in models.items()
        },
        warnings,
    )


# ---- reading and checking --------------------------------------------------------------------------------------------


def _read(path: Path, argument: str) -> _OfficialFile:
    """The state dict of a Lightning checkpoint; every name in it belongs to official DiffAE."""
    content = load_checkpoint(path, argument)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(
            f"{argument} must be a Lightning checkpoint with a state_dict, but {path} holds "
            f"{f'a dict of {_list(map(str, content))}' if isinstance(content, dict) else describe(content)}"
        )
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or not is_whole(tensor):
            raise ValueError(
                f"{argument} must hold tensors in its state_dict, but {shown(str(name))} in {path} is "
                f"{describe(tensor)}, or lacks values"
            )
    unknown = [name for name in state if not name.startswith(_PREFIXES) and name not in (*STATISTICS, "x_T")]
    if unknown:
        raise ValueError(f"{argument} must hold tensors of official DiffAE, but {path} has unknown {_list(unknown)}")
    return _OfficialFile(path, argument, {name: tensor.detach() for name, tensor in state.items()})


def _read_statistics(path: Path) -> Tensors:
    """conds_mean and conds_std of latent.pkl."""
    content = load_checkpoint(path, "latent_stats")
    values = {name: content.get(name) for name in STATISTICS} if isinstance(content, dict) else {None: None}
    if not all(isinstance(value, torch.Tensor) and is_whole(value) for value in values.values()):
        raise ValueError(f"latent_stats must hold the tensors conds_mean and conds_std, but {path} does not")
    return values


def _size_of_noise(file: _OfficialFile) -> int | None:
    """The image size that the buffer x_T shows, noise for as many pictures as were sampled during training."""
    if "x_T" not in file.tensors:
        return None
    noise = file.tensors["x_T"]
    if noise.ndim != 4 or noise.shape[1] != 3 or noise.shape[2] != noise.shape[3] or noise.numel() == 0:
        raise ValueError(f"checkpoint must hold x_T of shape (N, 3, S, S), but {file.path} has {describe(noise)}")
    return noise.shape[3]


def _match(
    file: _OfficialFile, group: str, found: Tensors, configurations: Mapping[str, dict[str, Any]]
) -> dict[str, _Component]:
    """Networks of these configurations, each with its tensors under our names; `found` must hold exactly theirs."""
    problems: dict[str, list[str]] = {"unknown": [], "missing": [], "misshapen": [], "wrong dtype": [], "unequal": []}
    unknown, components = set(found), {}
    for component, configuration in configurations.items():
        network, names = _NETWORKS[component]
        with torch.device("meta"):
            model = network(**configuration)
        state, weights = model.state_dict(), {}
        for entry in names(model.config):
            expected = entry.official_shape(tuple(state[entry.name].shape))
            for name in entry.official_names:
                unknown.discard(name)
                tensor = found.get(name)
                if tensor is None:
                    problems["missing"].append(f"{group}{name}")
                elif tensor.shape != expected:
                    problems["misshapen"].append(f"{group}{name} {tuple(tensor.shape)} instead of {expected}")
                elif tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
                    problems["wrong dtype"].append(f"{group}{name} {tensor.dtype} instead of torch.float32")
                elif (first := weights.setdefault(entry.name, tensor)) is not tensor and not torch.equal(first, tensor):
                    problems["unequal"].append(f"{group}{name} and {group}{entry.official_names[0]}")
        components[component] = _Component(model, weights)
    problems["unknown"] = [f"{group}{name}" for name in found if name in unknown]
    complaints = [f"{kind}: {_list(listed)}" for kind, listed in problems.items() if listed]
    if complaints:
        raise ValueError(
            f"{file.argument} must hold exactly the tensors of the official network, but in {file.path} there are "
            f"{'; '.join(complaints)}"
        )
    return components


def _statistics(file: _OfficialFile, from_stats: Tensors, latent_dim: int, warnings: list[str]) -> Tensors:
    """latent_mean and latent_std: the checkpoint's own, as in the official code, else those of latent.pkl."""
    statistics = {}
    for name, ours in STATISTICS.items():
        candidates = [tensors[name] for tensors in (file.tensors, from_stats) if name in tensors]
        if not candidates:
            raise ValueError(f"latent_stats must be given (--latent-stats), because {file.path} lacks {name}")
        for values in candidates:
            if values.shape not in ((latent_dim,), (1, latent_dim)):
                raise ValueError(f"{name} must have {latent_dim} values, one per dimension, got {describe(values)}")
            if not values.isfinite().all() or (name == "conds_std" and not (values > 0).all()):
                raise ValueError(f"{name} must be finite, and a deviation above 0, but in a file given it is not")
        candidates = [values.flatten().float() for values in candidates]
        if not torch.equal(candidates[0], candidates[-1]):
            warnings.append(f"{name} in latent_stats differs from the one in {file.path}, which is taken")
        statistics[ours] = candidates[0].clone()
    return statistics


def _check_together(components: Mapping[str, _Component], warnings: list[str]) -> None:
    """Checks that the networks belong together, and that each tensor has values of its own."""
    widths = {name: component.model.config.latent_dim for name, component in components.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"checkpoint and the other files must have codes of one width (latent_dim), got {widths}")
    statistics = [
        torch.stack([component.weights[name] for name in STATISTICS.values()])
        for component in components.values()
        if "latent_mean" in component.weights
    ]
    if statistics and not torch.equal(statistics[0], statistics[-1]):
        warnings.append(
            "the classifier's mean and deviation of the codes are not those of the latent code model; they may belong "
            "to different encoders"
        )
    # Small hostile files would become large ones.
    tensors = [tensor for component in components.values() for tensor in component.weights.values()]
    places = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors)
    if any(end > start for (_, end), (start, _) in itertools.pairwise(places)):
        raise ValueError("checkpoint must hold the values of all tensors, but tensors share their values")


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _list(names: Any) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    listed = ", ".join(map(shown, names[:_NAMES_SHOWN]))
    return f"{listed} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else listed


# ---- writing ---------------------------------------------------------------------------------------------------------


def check_output_folder(output: Path, overwrite: bool, marker: str, inputs: Mapping[str, Path]) -> None:
    """Checks that a folder may be written at `output`.

    Args:
        output: The folder.
        overwrite: Whether one that is there already may be replaced.
        marker: Name of a file by which such a folder is known; no other folder is ever replaced.
        inputs: Argument -> file or folder that is read and hence must not lie in `output`.

    Raises:
        ValueError: If it may not.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder, but {output} is a file")
    if output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise ValueError(f"output must be a new or empty folder (--overwrite replaces it), but {output} is not")
        if not (output / marker).is_file():
            raise ValueError(f"output must be new, empty, or with --overwrite hold {marker}, but {output} does not")
    for argument, path in inputs.items():
        if path.resolve().is_relative_to(output.resolve()):
            raise ValueError(f"{argument} must not lie in the folder that is written, {output}, but {path} does")


def _write_pipeline(folder: Path, components: Mapping[str, _Component]) -> None:
    models = {name: component.model for name, component in components.items()}
    schedulers = {"scheduler": VPDDIMScheduler(**OFFICIAL_SCHEDULER)}
    if "latent_code_model" in models:
        schedulers["latent_scheduler"] = VPDDIMScheduler(**OFFICIAL_LATENT_SCHEDULER)
    DiffusionAutoencoderPipeline(**models, **schedulers).save_config(folder)
    for name, scheduler in schedulers.items():
        scheduler.save_pretrained(folder / name)
    for name, component in components.items():
        component.model.save_config(folder / name)
        weights = {}
        for key, expected in component.model.state_dict().items():
            values = component.weights[key].to(torch.float32).reshape(expected.shape).contiguous()
            if not all(map(math.isfinite, values.aminmax())):
                raise ValueError(f"checkpoint must hold finite weights, but those that become {name}.{key} are not")
            weights[key] = values
        path = folder / name / "diffusion_pytorch_model.safetensors"
        save_file(weights, path, metadata={"format": "pt"})
