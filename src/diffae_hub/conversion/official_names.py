"""Names of the tensors in official DiffAE checkpoints: one pure function per network, which serves both ways.

Each function walks through a network of ours and lists, for every tensor of its state dict, an [`OfficialTensor`]. Read
from left to right the list exports a network, and from right to left it converts one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OfficialTensor:
    """A tensor of ours and what it is called in the official state dict.

    Args:
        name: Its name in the state dict of our model.
        official_names: Its names there; a second one is the same tensor, registered in two places.
        trailing_ones: Dimensions of size 1 that its shape there has at the end, because a linear layer of ours is a
            convolution with a 1-wide kernel there.
    """

    name: str
    official_names: tuple[str, ...]
    trailing_ones: int = 0

    def official_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The official shape of a tensor that has `shape` with us."""
        return (*shape, *(1,) * self.trailing_ones)


def _pair(ours: str, official: str | tuple[str, ...], kernel_dimensions: int = 0) -> Iterator[OfficialTensor]:
    """The weight and the bias of one layer."""
    officials = (official,) if isinstance(official, str) else official
    for kind in ("weight", "bias"):
        names = tuple(f"{name}.{kind}" for name in officials)
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
    """The tensors of the decoder, official class `BeatGANsAutoencModel` without its encoder.

    Args:
        config: Configuration of a `ConditionedUNet2DModel`, complete.

    Returns:
        One entry per tensor of its state dict; official names are relative to the model ("input_blocks.0.0.weight").
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
    """The tensors of the encoder, official class `BeatGANsEncoderModel`.

    Args:
        config: Configuration of a `SemanticEncoderModel`, complete.

    Returns:
        As `decoder_names`; official names begin with "encoder.".
    """
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
    """The parameters of the latent code model, official class `MLPSkipNet`; its two statistics are not among them.

    Args:
        config: Configuration of a `LatentCodeModel`, complete.

    Returns:
        As `decoder_names`; official names begin with "latent_net.".
    """
    tensors: list[OfficialTensor] = []
    for ours, official in (("linear_1", "0"), ("linear_2", "2")):
        tensors += _pair(f"time_embedding.{ours}", f"latent_net.time_embed.{official}")
    last = config["num_layers"] - 1
    for index in range(last):
        official = f"latent_net.layers.{index}"
        tensors += _pair(f"layers.{index}.linear", f"{official}.linear")
        # One layer, registered under two names.
        tensors += _pair(f"layers.{index}.time_projection", (f"{official}.linear_emb", f"{official}.cond_layers.1"))
        tensors += _pair(f"layers.{index}.norm", f"{official}.norm")
    tensors += _pair("linear_out", f"latent_net.layers.{last}.linear")
    return tensors


def attribute_classifier_names(config: Mapping[str, Any]) -> list[OfficialTensor]:
    """The parameters of the attribute classifier; its two statistics are not among them.

    Args:
        config: Configuration of an `AttributeClassifier`; not used, there is nothing to choose.

    Returns:
        As `decoder_names`; official names are relative to "classifier." or "ema_classifier.".
    """
    del config
    return [OfficialTensor(f"linear.{kind}", (kind,)) for kind in ("weight", "bias")]
