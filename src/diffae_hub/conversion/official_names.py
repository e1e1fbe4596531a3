"""Names of the tensors in official DiffAE checkpoints: one pure function per network, which serves both ways.

Each function walks through a network of ours and lists, for every tensor of its state dict, an [`OfficialTensor`]. Read
from left to right the list exports a network, and from right to left it converts one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OfficialTensor:
    """A tensor of ours and what it is called in the official state dict."""

    name: str
    official_names: tuple[str, ...]  # a second one is the same tensor, registered in two places
    trailing_ones: int = 0  # dimensions of 1 at the end: a linear layer of ours is a convolution 1 wide there

    def official_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The official shape of a tensor that has `shape` with us."""
        return (*shape, *(1,) * self.trailing_ones)


def _pair(ours: str, *officials: str, kernel_dimensions: int = 0) -> Iterator[OfficialTensor]:
    """The weight and the bias of one layer."""
    for kind in ("weight", "bias"):
        names = tuple(f"{official}.{kind}" for official in officials)
        yield OfficialTensor(f"{ours}.{kind}", names, kernel_dimensions if kind == "weight" else 0)


def _attention(ours: str, official: str) -> Iterator[OfficialTensor]:
    yield from _pair(f"{ours}.norm", f"{official}.norm")
    yield from _pair(f"{ours}.qkv", f"{official}.qkv", kernel_dimensions=1)
    yield from _pair(f"{ours}.projection", f"{official}.proj_out", kernel_dimensions=1)


def _encoder_residual(ours: str, official: str, has_skip: bool) -> Iterator[OfficialTensor]:
    yield from _pair(f"{ours}.norm_1", f"{official}.in_layers.0")
    yield from _pair(f"{ours}.conv_1", f"{official}.in_layers.2")
    if has_skip:
        yield from _pair(f"{ours}.skip", f"{official}.skip_connection")


def _conditioned_residual(ours: str, official: str, has_skip: bool) -> Iterator[OfficialTensor]:
    yield from _encoder_residual(ours, official, has_skip)
    yield from _pair(f"{ours}.time_projection", f"{official}.emb_layers.1")
    yield from _pair(f"{ours}.latent_projection", f"{official}.cond_emb_layers.1")
    yield from _pair(f"{ours}.norm_2", f"{official}.out_layers.0")
    yield from _pair(f"{ours}.conv_2", f"{official}.out_layers.3")


def decoder_names(config: Mapping[str, Any]) -> list[OfficialTensor]:
    """Of a `ConditionedUNet2DModel`: official class `BeatGANsAutoencModel` without its encoder.

    Official names are relative to the model ("input_blocks.0.0.weight").
    """
    multipliers, depth = list(config["channel_multipliers"]), config["layers_per_block"]
    resolutions = [config["sample_size"] // 2**level for level in range(len(multipliers))]
    widths = [config["base_channels"] * multiplier for multiplier in multipliers]
    attends = [resolution in config["attention_resolutions"] for resolution in resolutions]
    tensors: list[OfficialTensor] = []

    for ours, official in (("linear_1", "0"), ("linear_2", "2")):
        tensors += _pair(f"time_embedding.{ours}", f"time_embed.time_embed.{official}")
    tensors += _pair("conv_in", "input_blocks.0.0")

    # Way down: an entry of ours is an entry of theirs, the stem aside.
    channels, skip_channels, index = widths[0], [widths[0]], 0
    for level, width in enumerate(widths):
        for _ in range(depth):
            official = f"input_blocks.{index + 1}"
            tensors += _conditioned_residual(f"down_residuals.{index}", f"{official}.0", channels != width)
            if attends[level]:
                tensors += _attention(f"down_attentions.{index}", f"{official}.1")
            channels, index = width, index + 1
            skip_channels.append(channels)
        if level < len(widths) - 1:
            tensors += _conditioned_residual(f"down_residuals.{index}", f"input_blocks.{index + 1}.0", False)
            index += 1
            skip_channels.append(channels)

    tensors += _conditioned_residual("middle_residuals.0", "middle_block.0", False)
    tensors += _attention("middle_attention", "middle_block.1")
    tensors += _conditioned_residual("middle_residuals.1", "middle_block.2", False)

    # Way up: the residual block that upsamples is an entry of ours, and theirs puts it at the end of the entry before.
    index = 0
    for step, (level, width) in enumerate(reversed(list(enumerate(widths)))):
        for block in range(depth + 1):
            official = f"output_blocks.{step * (depth + 1) + block}"
            has_skip = channels + skip_channels.pop() != width
            tensors += _conditioned_residual(f"up_residuals.{index}", f"{official}.0", has_skip)
            if attends[level]:
                tensors += _attention(f"up_attentions.{index}", f"{official}.1")
            channels, index = width, index + 1
        if level > 0:
            position = 2 if attends[level] else 1
            tensors += _conditioned_residual(f"up_residuals.{index}", f"{official}.{position}", False)
            index += 1

    tensors += _pair("norm_out", "out.0")
    tensors += _pair("conv_out", "out.2")
    return tensors


def encoder_names(config: Mapping[str, Any]) -> list[OfficialTensor]:
    """Of a `SemanticEncoderModel`: official class `BeatGANsEncoderModel`; names begin with "encoder."."""
    depth, levels = config["layers_per_block"], len(config["channel_multipliers"])
    widths = [config["base_channels"] * multiplier for multiplier in config["channel_multipliers"]]
    tensors: list[OfficialTensor] = list(_pair("conv_in", "encoder.input_blocks.0.0"))
    channels, ours, theirs = widths[0], 0, 1
    for level, width in enumerate(widths):
        for _ in range(depth):
            official = f"encoder.input_blocks.{theirs}"
            tensors += _encoder_residual(f"blocks.{ours}", f"{official}.0", channels != width)
            channels, ours, theirs = width, ours + 1, theirs + 1
            if config["sample_size"] // 2**level in config["attention_resolutions"]:
                tensors += _attention(f"blocks.{ours}", f"{official}.1")
                ours += 1
        if level < levels - 1:
            tensors += _encoder_residual(f"blocks.{ours}", f"encoder.input_blocks.{theirs}.0", False)
            ours, theirs = ours + 1, theirs + 1
    tensors += _encoder_residual(f"blocks.{ours}", "encoder.middle_block.0", False)
    tensors += _attention(f"blocks.{ours + 1}", "encoder.middle_block.1")
    tensors += _encoder_residual(f"blocks.{ours + 2}", "encoder.middle_block.2", False)
    tensors += _pair("norm_out", "encoder.out.0")
    tensors += _pair("head", "encoder.out.3", kernel_dimensions=2)
    return tensors


def latent_code_model_names(config: Mapping[str, Any]) -> list[OfficialTensor]:
    """Of a `LatentCodeModel` but its statistics: official class `MLPSkipNet`; names begin with "latent_net."."""
    tensors: list[OfficialTensor] = []
    for ours, official in (("linear_1", "0"), ("linear_2", "2")):
        tensors += _pair(f"time_embedding.{ours}", f"latent_net.time_embed.{official}")
    last = config["num_layers"] - 1
    for index in range(last):
        official = f"latent_net.layers.{index}"
        tensors += _pair(f"layers.{index}.linear", f"{official}.linear")
        # One layer, registered under two names.
        tensors += _pair(f"layers.{index}.time_projection", f"{official}.linear_emb", f"{official}.cond_layers.1")
        tensors += _pair(f"layers.{index}.norm", f"{official}.norm")
    tensors += _pair("linear_out", f"latent_net.layers.{last}.linear")
    return tensors


def attribute_classifier_names(config: Mapping[str, Any]) -> list[OfficialTensor]:
    """Of an `AttributeClassifier` but its statistics; official names are relative to "classifier."."""
    return [OfficialTensor(f"linear.{kind}", (kind,)) for kind in ("weight", "bias")]


# Component -> the tensors that a network of this (complete) configuration has.
NAMES: dict[str, Callable[[Mapping[str, Any]], list[OfficialTensor]]] = {
    "encoder": encoder_names,
    "decoder": decoder_names,
    "latent_code_model": latent_code_model_names,
    "attribute_classifier": attribute_classifier_names,
}
# Official name -> ours, of the statistics that the last two have beside their parameters.
STATISTICS = {"conds_mean": "latent_mean", "conds_std": "latent_std"}
