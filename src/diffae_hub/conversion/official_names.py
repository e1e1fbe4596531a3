"""Names of the tensors in official DiffAE checkpoints: one table, used to export and, read backwards, to convert."""

from typing import NamedTuple

from torch import nn

from ..models.conditioned_unet_2d import ConditionedUNet2DModel
from ..models.latent_code_model import LatentCodeModel
from ..models.layers import SelfAttentionBlock
from ..models.semantic_encoder import SemanticEncoderModel

# Official name -> ours, for the statistics that latent code model and classifier have besides their parameters.
STATISTICS = {"conds_mean": "latent_mean", "conds_std": "latent_std"}

# Layers of a residual block and of attention.
_LAYERS = {
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "time_projection": "emb_layers.1",
    "latent_projection": "cond_emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
    "skip": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "projection": "proj_out",
}
# Our linear layers that are convolutions of width 1 in official networks -> dimensions of the convolution.
_CONVOLUTIONS = {"qkv": 1, "projection": 1, "head": 2}


class OfficialTensor(NamedTuple):
    """A parameter of ours, and the same one in the official state dict."""

    name: str
    official_names: list[str]  # a second one is the same tensor, registered in two places
    official_shape: tuple[int, ...]


def official_tensors(network: nn.Module) -> list[OfficialTensor]:
    """Lists all parameters of one of our networks, with official options only.

    Official names are relative to the model ("input_blocks.0.0.weight", "encoder.out.3.weight",
    "latent_net.time_embed.0.weight") or to "classifier." ("weight").
    """
    places = _places(network)
    tensors = []
    for name, parameter in network.named_parameters():
        path, kind = name.rsplit(".", 1)
        parent, _, layer = path.rpartition(".")
        official = places[path] if path in places else f"{places[parent]}.{_LAYERS[layer]}"
        names = [f"{official}.{kind}".removeprefix(".")]
        if official.endswith("linear_emb"):
            names.append(names[0].replace("linear_emb", "cond_layers.1"))
        ones = (1,) * (_CONVOLUTIONS.get(layer, 0) if kind == "weight" else 0)
        tensors.append(OfficialTensor(name, names, (*parameter.shape, *ones)))
    return tensors


def _places(network: nn.Module) -> dict[str, str]:
    """Maps our paths of blocks and single layers to their paths in the official network."""
    if isinstance(network, SemanticEncoderModel):
        return _encoder_places(network)
    if isinstance(network, ConditionedUNet2DModel):
        return _decoder_places(network)
    return _latent_places(network) if isinstance(network, LatentCodeModel) else {"linear": ""}


def _encoder_places(network: SemanticEncoderModel) -> dict[str, str]:
    """Official class `BeatGANsEncoderModel`: attention shares an entry with the residual block before it."""
    places = {"conv_in": "encoder.input_blocks.0.0", "norm_out": "encoder.out.0", "head": "encoder.out.3"}
    entry, middle = 0, len(network.blocks) - 3
    for index, block in enumerate(network.blocks):
        is_attention = isinstance(block, SelfAttentionBlock)
        if index >= middle:
            places[f"blocks.{index}"] = f"encoder.middle_block.{index - middle}"
        else:
            entry += not is_attention
            places[f"blocks.{index}"] = f"encoder.input_blocks.{entry}.{int(is_attention)}"
    return places


def _decoder_places(network: ConditionedUNet2DModel) -> dict[str, str]:
    """Official class `BeatGANsAutoencModel` without its encoder."""
    places = {
        "time_embedding.linear_1": "time_embed.time_embed.0",
        "time_embedding.linear_2": "time_embed.time_embed.2",
        "conv_in": "input_blocks.0.0",
        "middle_residuals.0": "middle_block.0",
        "middle_attention": "middle_block.1",
        "middle_residuals.1": "middle_block.2",
        "norm_out": "out.0",
        "conv_out": "out.2",
    }
    for index in range(len(network.down_residuals)):
        places[f"down_residuals.{index}"] = f"input_blocks.{index + 1}.0"
        places[f"down_attentions.{index}"] = f"input_blocks.{index + 1}.1"
    entry = -1
    for index, residual in enumerate(network.up_residuals):
        if residual.resample is None:
            entry, position = entry + 1, 0
        else:  # an entry of its own here, the end of the entry before in the official network
            position = 2 if isinstance(network.up_attentions[index - 1], SelfAttentionBlock) else 1
        places[f"up_residuals.{index}"] = f"output_blocks.{entry}.{position}"
        places[f"up_attentions.{index}"] = f"output_blocks.{entry}.1"
    return places


def _latent_places(network: LatentCodeModel) -> dict[str, str]:
    """Official class `MLPSkipNet`."""
    places = {
        "time_embedding.linear_1": "latent_net.time_embed.0",
        "time_embedding.linear_2": "latent_net.time_embed.2",
    }
    for index in range(len(network.layers)):
        for ours, official in (("linear", "linear"), ("time_projection", "linear_emb"), ("norm", "norm")):
            places[f"layers.{index}.{ours}"] = f"latent_net.layers.{index}.{official}"
    return places | {"linear_out": f"latent_net.layers.{len(network.layers)}.linear"}
