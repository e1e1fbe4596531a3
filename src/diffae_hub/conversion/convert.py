"""Official DiffAE checkpoints -> a pipeline folder: load, check every tensor, write.

Nothing is written before everything is checked, and no more than one tensor is in memory at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import new_folder
from ..models.attribute_classifier import AttributeClassifier
from ..models.conditioned_unet_2d import ConditionedUNet2DModel
from ..models.latent_code_model import LatentCodeModel
from ..models.semantic_encoder import SemanticEncoderModel
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler
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
    OfficialTensor,
    attribute_classifier_names,
    decoder_names,
    encoder_names,
    latent_code_model_names,
)
from .restricted_unpickler import StoredTensor, describe, load_checkpoint, shown

STATISTICS = ("conds_mean", "conds_std")

_GROUPS = ("model.", "ema_model.", "classifier.", "ema_classifier.")
_LATENT = "latent_net."
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_NAMES_SHOWN = 5

Weights = Mapping[str, StoredTensor | torch.Tensor]


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
class _Component:
    """A network about to be written: without memory of its own, and where its tensors come from."""

    model: nn.Module
    weights: Weights


@dataclass
class _OfficialState:
    """The state dict of one official checkpoint, in its groups.

    Args:
        path: The file.
        argument: What error messages call the file.
        groups: "model.", "ema_model.", "classifier.", "ema_classifier." -> name without that prefix -> tensor.
        buffers: conds_mean, conds_std and x_T, where the file has them.
    """

    path: Path
    argument: str
    groups: dict[str, dict[str, StoredTensor]]
    buffers: dict[str, StoredTensor]

    def autoencoder(self, group: str) -> dict[str, StoredTensor]:
        """The tensors of "model." or "ema_model." without the latent code model."""
        return {name: tensor for name, tensor in self.groups[group].items() if not name.startswith(_LATENT)}

    def latent_net(self, group: str) -> dict[str, StoredTensor]:
        """The tensors of the latent code model in "model." or "ema_model."."""
        return {name: tensor for name, tensor in self.groups[group].items() if name.startswith(_LATENT)}

    def has_latent_net(self) -> bool:
        """Whether there is a latent code model, even a part of one."""
        return any(self.latent_net(group) for group in ("model.", "ema_model."))

    def has_classifier(self) -> bool:
        """Whether there is a classifier, even a part of one."""
        return any(self.groups[group] for group in ("classifier.", "ema_classifier."))


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

    The files are read by a restricted unpickler: nothing in them is executed. One tensor is in memory at a time.

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
    inputs = {
        "checkpoint": checkpoint,
        "latent_checkpoint": latent_checkpoint,
        "latent_stats": latent_stats,
        "classifier_checkpoint": classifier_checkpoint,
    }
    output = Path(output)
    paths = {argument: Path(path) for argument, path in inputs.items() if path is not None}
    check_output_folder(output, overwrite, marker="model_index.json", inputs=paths)
    states = {argument: _read_state(path, argument) for argument, path in paths.items() if argument != "latent_stats"}
    statistics = _read_statistics_file(paths["latent_stats"]) if latent_stats is not None else None
    report = ConversionReport(output, {}, {})
    main = states["checkpoint"]

    # 1. encoder and decoder
    group = "ema_model." if ema else "model."
    _require_group(main, group)
    encoder_config, decoder_config = infer_autoencoder_configuration(
        {name: tensor.shape for name, tensor in main.autoencoder(group).items()},
        image_size if image_size is not None else _image_size_of_noise(main),
        num_attention_heads,
        encoder_layers_per_block,
    )
    with torch.device("meta"):
        encoder = SemanticEncoderModel(**encoder_config)
        decoder = ConditionedUNet2DModel(**decoder_config)
    networks = [(encoder, encoder_names(encoder.config)), (decoder, decoder_names(decoder.config))]
    components: dict[str, _Component] = {}
    for state in states.values():
        # The other weights, and those that latent and classifier checkpoints repeat, are not written; they are checked.
        for name in ("model.", "ema_model."):
            found = state.autoencoder(name)
            if found:
                encoder_weights, decoder_weights = _match(networks, found, state, name)
                if state is main and name == group:
                    components["encoder"] = _Component(encoder, encoder_weights)
                    components["decoder"] = _Component(decoder, decoder_weights)

    # 2. latent code model
    source = _source(states, "latent_checkpoint", _OfficialState.has_latent_net, "a latent code model (latent_net.*)")
    if source is not None:
        _require_latent_net(source, group)
        config = infer_latent_code_model_configuration(
            {name: tensor.shape for name, tensor in source.latent_net(group).items()}
        )
        with torch.device("meta"):
            model = LatentCodeModel(**config)
        weights = _match_in_both(model, latent_code_model_names(model.config), source, group)
        weights |= _statistics(source, statistics, config["latent_dim"], report.warnings)
        components["latent_code_model"] = _Component(model, weights)
        if source is not main and not _same_values(components["encoder"].weights, source, group, networks):
            report.warnings.append(
                f"the encoder in {source.path} has other weights than the one in {main.path}; the latent code model "
                "knows the codes of its own encoder only"
            )

    # 3. attribute classifier
    source = _source(states, "classifier_checkpoint", _OfficialState.has_classifier, "a classifier (classifier.*)")
    if source is not None:
        components["attribute_classifier"] = _classifier(source, ema_classifier, statistics, report.warnings)
    if statistics is not None and components.keys() <= {"encoder", "decoder"}:
        raise ValueError("latent_stats must go with a latent code model or a classifier, but there is neither")

    # 4. do they belong together, and is nothing left that is not accounted for?
    widths = {name: component.model.config.latent_dim for name, component in components.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"checkpoint and the other files must have codes of one width (latent_dim), got {widths}")
    for state in states.values():
        _check_buffers(state, decoder.config.latent_dim, None if image_size is not None else decoder.config.sample_size)
    _compare_statistics(components, report.warnings)
    _check_size(components, paths.values())

    for name, component in components.items():
        report.parameters[name] = sum(parameter.numel() for parameter in component.model.parameters())
        report.configurations[name] = {
            key: value for key, value in component.model.config.items() if not key.startswith("_")
        }
    with new_folder(output) as folder:
        _write_pipeline(folder, components)
    return report


# ---- reading and checking --------------------------------------------------------------------------------------------


def _read_state(path: Path, argument: str) -> _OfficialState:
    """The state dict of a Lightning checkpoint; every name in it belongs to a known group."""
    content = load_checkpoint(path, argument)
    state_dict = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state_dict, dict):
        held = (
            f"a dict without one, but with {_list(map(str, content))}"
            if isinstance(content, dict)
            else describe(content)
        )
        raise ValueError(f"{argument} must be a Lightning checkpoint with a state_dict, but {path} holds {held}")
    state = _OfficialState(path, argument, {group: {} for group in _GROUPS}, {})
    unknown = []
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            raise ValueError(
                f"{argument} must hold tensors in its state_dict, but {name!r:.200} in {path} is {describe(tensor)}"
            )
        group = next((group for group in _GROUPS if name.startswith(group)), None)
        if group is not None:
            state.groups[group][name.removeprefix(group)] = tensor
        elif name in (*STATISTICS, "x_T"):
            state.buffers[name] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{argument} must hold tensors of official DiffAE only, but {path} has unknown {_list(unknown)}"
        )
    return state


def _source(
    states: Mapping[str, _OfficialState], argument: str, holds: Callable[[_OfficialState], bool], what: str
) -> _OfficialState | None:
    """The file that a network is taken from: the one given for it, else any that holds it, else None."""
    holders = [state for state in states.values() if holds(state)]
    source = states.get(argument) or next(iter(holders), None)
    for other in holders:
        if other is not source:
            raise ValueError(
                f"{other.argument} must not hold {what} beside the one in {source.path}, but {other.path} does"
            )
    return source


def _require_group(state: _OfficialState, group: str) -> None:
    if not state.autoencoder(group):
        others = [name for name, tensors in state.groups.items() if tensors]
        raise ValueError(
            f"{state.argument} must hold the tensors {group}* of an autoencoder, but {state.path} has only "
            f"{_list(f'{name}*' for name in others) or 'none'} (--no-ema takes model.*, else ema_model.* is taken)"
        )


def _require_latent_net(state: _OfficialState, group: str) -> None:
    if not state.latent_net(group):
        raise ValueError(
            f"{state.argument} must hold the tensors {group}latent_net.* of a latent code model, "
            f"but {state.path} has none"
        )


def _image_size_of_noise(state: _OfficialState) -> int | None:
    """The image size that the buffer x_T shows, noise for as many pictures as were sampled during training."""
    noise = state.buffers.get("x_T")
    if noise is None:
        return None
    _check_noise(noise, state, None)
    return noise.shape[3]


def _check_noise(noise: StoredTensor, state: _OfficialState, image_size: int | None) -> None:
    """Raises a ValueError unless x_T is noise for images, of that size if it is given."""
    count, channels, height, width = noise.shape if len(noise.shape) == 4 else (0, 0, 0, 0)
    sizes = {height, width, height if image_size is None else image_size}
    if min(count, height) < 1 or channels != 3 or len(sizes) != 1 or not noise.dtype.is_floating_point:
        size = "S" if image_size is None else image_size
        raise ValueError(
            f"{state.argument} must hold x_T of shape (N, 3, {size}, {size}), floating point, but {state.path} has "
            f"{describe(noise)}"
        )


def _check_buffers(state: _OfficialState, latent_dim: int, image_size: int | None) -> None:
    """Checks what is not the tensor of a network, used or not.

    Raises:
        ValueError: If a buffer is misshapen or not a number.
    """
    if "x_T" in state.buffers:
        _check_noise(state.buffers["x_T"], state, image_size)
    for name in STATISTICS:
        if name in state.buffers:
            values = _load_statistic(state.buffers[name], name, state.argument, state.path)
            _check_width(values, name, latent_dim)


def _match(
    networks: list[tuple[nn.Module, list[OfficialTensor]]],
    found: Mapping[str, StoredTensor],
    state: _OfficialState,
    prefix: str,
) -> list[dict[str, StoredTensor]]:
    """For each network, our name -> tensor of the file.

    Raises:
        ValueError: Unless the tensors found are exactly those of the networks.
    """
    problems: dict[str, list[str]] = {"missing": [], "misshapen": [], "wrong dtype": [], "unequal": []}
    unknown = set(found)
    matched = []
    for model, tensors in networks:
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        weights = {}
        for tensor in tensors:
            expected = tensor.official_shape(shapes[tensor.name])
            for name in tensor.official_names:
                full = f"{prefix}{name}"
                if name not in found:
                    problems["missing"].append(full)
                    continue
                unknown.discard(name)
                if found[name].shape != expected:
                    problems["misshapen"].append(f"{full} {found[name].shape} instead of {expected}")
                elif found[name].dtype not in (torch.float32, torch.float16, torch.bfloat16):
                    problems["wrong dtype"].append(f"{full} {found[name].dtype} instead of torch.float32")
                elif name != tensor.official_names[0] and tensor.name in weights:
                    first = weights[tensor.name]
                    if not first.is_same_view(found[name]) and not torch.equal(first.load(), found[name].load()):
                        problems["unequal"].append(f"{full} and {prefix}{tensor.official_names[0]}")
                else:
                    weights.setdefault(tensor.name, found[name])
        matched.append(weights)
    problems = {"unknown": [f"{prefix}{name}" for name in found if name in unknown], **problems}
    complaints = [f"{kind}: {_list(names)}" for kind, names in problems.items() if names]
    if complaints:
        raise ValueError(
            f"{state.argument} must hold exactly the tensors of the official network, but in {state.path} there are "
            f"{'; '.join(complaints)}"
        )
    return matched


def _match_in_both(
    model: nn.Module, names: list[OfficialTensor], state: _OfficialState, group: str
) -> dict[str, StoredTensor]:
    """Checks the latent code model in both groups, and returns the one of `group`."""
    weights = {
        name: _match([(model, names)], state.latent_net(name), state, name)[0]
        for name in ("model.", "ema_model.")
        if state.latent_net(name)
    }
    return weights[group]


def _classifier(
    state: _OfficialState, ema: bool, statistics: dict[str, torch.Tensor] | None, warnings: list[str]
) -> _Component:
    """The attribute classifier of a checkpoint, both copies checked."""
    chosen = "ema_classifier." if ema else "classifier."
    if not state.groups[chosen]:
        raise ValueError(
            f"{state.argument} must hold the tensors {chosen}* of an attribute classifier, but {state.path} has none"
        )
    config = infer_attribute_classifier_configuration(
        {name: tensor.shape for name, tensor in state.groups[chosen].items()}
    )
    if config["num_attributes"] == len(CELEBA_ATTRIBUTES):
        config["attribute_names"] = CELEBA_ATTRIBUTES
    with torch.device("meta"):
        model = AttributeClassifier(**config)
    weights: dict[str, StoredTensor | torch.Tensor] = {}
    for group in ("classifier.", "ema_classifier."):
        if state.groups[group]:
            (found,) = _match([(model, attribute_classifier_names(model.config))], state.groups[group], state, group)
            if group == chosen:
                weights |= found
    weights |= _statistics(state, statistics, config["latent_dim"], warnings)
    return _Component(model, weights)


def _read_statistics_file(path: Path) -> dict[str, torch.Tensor]:
    """conds_mean and conds_std of latent.pkl, each (latent_dim,), float32."""
    content = load_checkpoint(path, "latent_stats")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), StoredTensor) for name in STATISTICS):
        raise ValueError(f"latent_stats must hold the tensors conds_mean and conds_std, but {path} does not")
    unknown = [str(name) for name in content if name not in (*STATISTICS, "conds")]
    if unknown:
        raise ValueError(
            f"latent_stats must hold conds, conds_mean and conds_std only, but {path} has {_list(unknown)}"
        )
    statistics = {name: _load_statistic(content[name], name, "latent_stats", path) for name in STATISTICS}
    codes = content.get("conds")
    if codes is not None and not (
        isinstance(codes, StoredTensor)
        and codes.dtype.is_floating_point
        and codes.shape[1:] == tuple(statistics["conds_mean"].shape)
    ):
        raise ValueError(f"latent_stats must hold conds of shape (N, latent_dim), but {path} has {describe(codes)}")
    return statistics


def _load_statistic(tensor: StoredTensor, name: str, argument: str, path: Path) -> torch.Tensor:
    """(latent_dim,) from (1, latent_dim) or (latent_dim,), float32."""
    shape = tensor.shape
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != 1) or not tensor.dtype.is_floating_point:
        raise ValueError(f"{argument} must hold {name} of shape (1, latent_dim), but {path} has {describe(tensor)}")
    values = tensor.load().float().reshape(-1)
    if not bool(torch.isfinite(values).all()) or (name == "conds_std" and not bool((values > 0).all())):
        raise ValueError(f"{argument} must hold {name} that is finite, and a deviation above 0, but {path} does not")
    return values


def _statistics(
    state: _OfficialState, from_file: dict[str, torch.Tensor] | None, latent_dim: int, warnings: list[str]
) -> dict[str, torch.Tensor]:
    """latent_mean and latent_std: the checkpoint's own, as in the official code, else those of latent.pkl.

    Raises:
        ValueError: If there are none, or they are misshapen.
    """
    own = {
        name: _load_statistic(state.buffers[name], name, state.argument, state.path)
        for name in STATISTICS
        if name in state.buffers
    }
    missing = [name for name in STATISTICS if name not in own]
    if missing and from_file is None:
        raise ValueError(
            f"latent_stats must be given (--latent-stats latent.pkl), because {state.path} lacks {_list(missing)}"
        )
    values = {**(from_file or {}), **own}
    for name in STATISTICS:
        _check_width(values[name], name, latent_dim)
        if from_file is not None and not torch.equal(values[name], from_file[name]):
            warnings.append(f"{name} in latent_stats differs from the one in {state.path}, which is taken")
    return {"latent_mean": values["conds_mean"], "latent_std": values["conds_std"]}


def _check_width(statistic: torch.Tensor, name: str, latent_dim: int) -> None:
    if statistic.shape != (latent_dim,):
        raise ValueError(
            f"{name} must have {latent_dim} values, one per dimension of the codes, got {statistic.numel()}"
        )


def _compare_statistics(components: Mapping[str, _Component], warnings: list[str]) -> None:
    """Warns if latent code model and classifier normalise codes differently: each knows those of one encoder only."""
    if "latent_code_model" in components and "attribute_classifier" in components:
        one, other = components["latent_code_model"].weights, components["attribute_classifier"].weights
        if not all(torch.equal(one[name], other[name]) for name in ("latent_mean", "latent_std")):
            warnings.append(
                "the classifier's mean and deviation of the codes are not those of the latent code model; they may "
                "belong to different encoders"
            )


def _check_size(components: Mapping[str, _Component], paths: Iterable[Path]) -> None:
    """Checks that the networks are made of as many values as the files hold.

    Tensors that are views of one storage can claim any amount. Widening half precision doubles what is in the file.

    Raises:
        ValueError: If there is more to write than twice what the files hold.
    """
    weights = [tensor for component in components.values() for tensor in component.weights.values()]
    needed = sum(4 * math.prod(tensor.shape) for tensor in weights)
    held = sum(path.stat().st_size for path in set(paths))
    if needed > 2 * held:
        raise ValueError(
            f"checkpoint must hold the values of all tensors, but with {held:,} bytes in all files there would be "
            f"{needed:,} to write: tensors share their values"
        )


def _same_values(
    encoder_weights: Weights,
    state: _OfficialState,
    group: str,
    networks: list[tuple[nn.Module, list[OfficialTensor]]],
) -> bool:
    """Whether the encoder of another file, if it has one, is the same to the bit."""
    found = state.autoencoder(group)
    if not found:
        return True
    others = _match(networks, found, state, group)[0]
    return all(torch.equal(tensor.load(), others[name].load()) for name, tensor in encoder_weights.items())


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
            raise ValueError(
                f"output must be a new or empty folder, or with --overwrite one with a {marker}, but {output} is not"
            )
    for argument, path in inputs.items():
        if path.resolve().is_relative_to(output.resolve()):
            raise ValueError(f"{argument} must not lie in the folder that is written, {output}, but {path} does")


def _write_pipeline(folder: Path, components: Mapping[str, _Component]) -> None:
    models = {name: component.model for name, component in components.items()}
    schedulers = {"scheduler": VPDDIMScheduler(**OFFICIAL_SCHEDULER)}
    if "latent_code_model" in models:
        schedulers["latent_scheduler"] = VPDDIMScheduler(**OFFICIAL_LATENT_SCHEDULER)
    pipeline = DiffusionAutoencoderPipeline(**models, **schedulers)
    pipeline.save_config(folder)
    for name, scheduler in schedulers.items():
        scheduler.save_pretrained(folder / name)
    for name, component in components.items():
        component.model.save_config(folder / name)
        _write_safetensors(folder / name / _WEIGHTS, component)


def _write_safetensors(path: Path, component: _Component) -> None:
    """Writes the weights of a network, float32, one tensor at a time.

    The format is the header's length (8 bytes, little endian), the header (JSON: name -> dtype, shape, place), and the
    values one after another. `safetensors.torch.save_file` wants all of them in memory first.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in component.model.state_dict().items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in shapes.items():
            values = _values(component.weights[name], shape)
            if not all(map(math.isfinite, values.aminmax())):
                raise ValueError(
                    f"checkpoint must hold finite weights, but those that become {path.parent.name}.{name} are not"
                )
            file.write(memoryview(values.numpy()).cast("B"))


def _values(tensor: StoredTensor | torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    loaded = tensor.load() if isinstance(tensor, StoredTensor) else tensor
    return loaded.to(torch.float32).reshape(shape).contiguous()
