"""The configuration of official DiffAE networks, read off the names and shapes of their tensors.

Widths and depths are all there. What no tensor shows has the value that every published checkpoint has: one attention
head, decoder dropout 0.1, 32 groups, attention at resolution 16. The last gives the image size, because the tensors
show at which level the attention is. Only the number of heads, the image size (and with it the resolutions of
attention) and the encoder's blocks per level can be given instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .checkpoint_file import shown

ATTENTION_RESOLUTION = 16
NUM_ATTENTION_HEADS = 1
DECODER_DROPOUT = 0.1
NORM_NUM_GROUPS = 32
NORM_EPS = 1e-5

# The order of the rows of the official classifiers: the attributes of CelebA, as its annotation file lists them.
CELEBA_ATTRIBUTES = tuple(
    """
    5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair
    Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones
    Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline
    Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick
    Wearing_Necklace Wearing_Necktie Young
    """.split()  # noqa: SIM905 - forty lines otherwise
)
OFFICIAL_SCHEDULER = {
    "noise_schedule": "linear_beta",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "clip_sample": True,
}
OFFICIAL_LATENT_SCHEDULER = {
    "noise_schedule": "constant_beta",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "clip_sample": False,
}

Shapes = Mapping[str, tuple[int, ...]]


def infer_autoencoder_configuration(
    shapes: Shapes,
    image_size: int | None = None,
    num_attention_heads: int = NUM_ATTENTION_HEADS,
    encoder_layers_per_block: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configurations of the encoder and of the decoder.

    Args:
        shapes: Official name, relative to the model ("input_blocks.0.0.weight", "encoder.out.3.weight"), -> shape.
        image_size: Height and width of the training images; None for 16 * 2^level, `level` being the one that has the
            attention.
        num_attention_heads: Heads of each attention block.
        encoder_layers_per_block: Residual blocks per level of the encoder; None for what fits the tensors, preferably
            the decoder's number.

    Returns:
        (arguments of `SemanticEncoderModel`, arguments of `ConditionedUNet2DModel`).

    Raises:
        ValueError: If a tensor that the configuration is read off is missing or misshapen, or if the tensors leave the
            image size or the encoder's depth open.
    """
    decoder, decoder_attention = _decoder_structure(shapes)
    encoder, encoder_attention = _encoder_structure(shapes, decoder["layers_per_block"], encoder_layers_per_block)
    if image_size is None:
        if len(decoder_attention) != 1:
            raise ValueError(
                "image_size must be given (--image-size) unless the decoder has attention at one level, got it at "
                f"{len(decoder_attention)}"
            )
        image_size = ATTENTION_RESOLUTION * 2 ** decoder_attention[0]
    for structure, levels in ((encoder, encoder_attention), (decoder, decoder_attention)):
        factor = 2 ** (len(structure["channel_multipliers"]) - 1)
        if image_size < 1 or image_size % factor:
            raise ValueError(f"image_size must be a positive multiple of {factor} for this network, got {image_size!r}")
        structure |= {
            "sample_size": image_size,
            "attention_resolutions": tuple(image_size // 2**level for level in levels),
            "num_attention_heads": num_attention_heads,
            "norm_num_groups": NORM_NUM_GROUPS,
            "norm_eps": NORM_EPS,
        }
    return encoder | {"dropout": 0.0, "latent_head": "pool"}, decoder | {"dropout": DECODER_DROPOUT}


def infer_latent_code_model_configuration(shapes: Shapes) -> dict[str, Any]:
    """Arguments of `LatentCodeModel` for the tensors `latent_net.*`.

    Raises:
        ValueError: If a tensor that the configuration is read off is missing or misshapen.
    """
    hidden_dim, latent_dim = _shape(shapes, "latent_net.layers.0.linear.weight", 2)
    _shape(shapes, "latent_net.layers.1.linear.weight", 2)  # the smallest model has two layers
    time_embed_dim, time_sinusoid_dim = _shape(shapes, "latent_net.time_embed.0.weight", 2)
    return {
        "latent_dim": latent_dim,
        "hidden_dim": hidden_dim,
        "num_layers": _count(shapes, r"latent_net\.layers\.([0-9]{1,4})\.linear\.weight"),
        "time_sinusoid_dim": time_sinusoid_dim,
        "time_embed_dim": time_embed_dim,
    }


def infer_attribute_classifier_configuration(shapes: Shapes) -> dict[str, Any]:
    """Arguments of `AttributeClassifier` for the tensors `weight` and `bias` of an official classifier.

    Raises:
        ValueError: If the weight is missing or misshapen.
    """
    num_attributes, latent_dim = _shape(shapes, "weight", 2)
    return {"latent_dim": latent_dim, "num_attributes": num_attributes}


# ---- the two image networks ------------------------------------------------------------------------------------------


def _decoder_structure(shapes: Shapes) -> tuple[dict[str, Any], tuple[int, ...]]:
    """What the tensors say about the decoder, and the levels that have attention."""
    time_embed_dim, base_channels = _shape(shapes, "time_embed.time_embed.0.weight", 2)
    _, in_channels, _, _ = _shape(shapes, "input_blocks.0.0.weight", 4)
    out_channels = _shape(shapes, "out.2.weight", 4)[0]
    latent_dim = _shape(shapes, "middle_block.0.cond_emb_layers.1.weight", 2)[1]

    # Only the way up shows where a level ends: there an entry has a second residual block, the one that upsamples.
    entries = _count(shapes, r"output_blocks\.([0-9]{1,4})\.0\.in_layers\.2\.weight")
    ends = [
        index
        for index in range(entries)
        if any(f"output_blocks.{index}.{position}.in_layers.2.weight" in shapes for position in (1, 2))
    ]
    levels = len(ends) + 1
    depth, remainder = divmod(entries, levels)
    if remainder or depth < 2 or ends != [(level + 1) * depth - 1 for level in range(levels - 1)]:
        raise ValueError(
            "checkpoint must hold equally many output_blocks at each level, the last of which upsamples (at the last "
            f"level none does), but it has {entries} of which those at {shown(str(ends))} upsample"
        )
    firsts = [f"output_blocks.{(levels - 1 - level) * depth}" for level in range(levels)]
    widths = [_shape(shapes, f"{first}.0.in_layers.2.weight", 4)[0] for first in firsts]
    structure = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "latent_dim": latent_dim,
        "base_channels": base_channels,
        "channel_multipliers": _multipliers(widths, base_channels, "output_blocks"),
        "layers_per_block": depth - 1,
        "time_embed_dim": time_embed_dim,
        "latent_scale_shift": False,
        "latent_mlp_layers": 0,
    }
    return structure, tuple(level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shapes)


def _encoder_structure(
    shapes: Shapes, decoder_depth: int, wanted_depth: int | None
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """What the tensors say about the encoder, and the levels that have attention.

    A downsampling block has the same tensors as any other, so that the number of blocks per level is found by trying
    which numbers make sense of the widths and of the places of attention.
    """
    _, in_channels, _, _ = _shape(shapes, "encoder.input_blocks.0.0.weight", 4)
    latent_dim = _shape(shapes, "encoder.out.3.weight", 4)[0]
    base_channels = _shape(shapes, "time_embed.time_embed.0.weight", 2)[1]
    # Entry 0 is the stem.
    entries = _count(shapes, r"encoder\.input_blocks\.([0-9]{1,4})\.0\.in_layers\.2\.weight", start=1)
    blocks = [
        (
            _shape(shapes, f"encoder.input_blocks.{index}.0.in_layers.2.weight", 4)[0],
            f"encoder.input_blocks.{index}.1.qkv.weight" in shapes,
        )
        for index in range(1, entries + 1)
    ]
    possible = [depth for depth in range(1, entries + 1) if _encoder_levels(blocks, depth)]
    depth = wanted_depth
    if depth is None:
        depth = possible[0] if len(possible) == 1 else decoder_depth
    if depth not in possible:
        raise ValueError(
            f"encoder_layers_per_block must fit the {entries} encoder.input_blocks after the stem, which allow "
            f"{possible or 'no number'}, got {wanted_depth}"
        )
    levels = _encoder_levels(blocks, depth)
    structure = {
        "in_channels": in_channels,
        "latent_dim": latent_dim,
        "base_channels": base_channels,
        "channel_multipliers": _multipliers([width for width, _ in levels], base_channels, "encoder.input_blocks"),
        "layers_per_block": depth,
    }
    return structure, tuple(level for level, (_, attends) in enumerate(levels) if attends)


def _encoder_levels(blocks: list[tuple[int, bool]], depth: int) -> list[tuple[int, bool]]:
    """(width, attention) of each level if the levels have `depth` blocks; empty if the blocks say otherwise.

    The blocks of a level are alike; the downsampling one between two levels keeps the width and has no attention.
    """
    if (len(blocks) + 1) % (depth + 1):
        return []
    levels = []
    for start in range(0, len(blocks), depth + 1):
        *level, down = (*blocks[start : start + depth + 1], None)[: depth + 1]
        width, attends = level[0]
        if any(block != (width, attends) for block in level) or down not in (None, (width, False)):
            return []
        levels.append((width, attends))
    return levels


# ---- shared ----------------------------------------------------------------------------------------------------------


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"checkpoint must hold the tensor {name}, but it is missing")
    shape = tuple(shapes[name])
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(
            f"checkpoint must hold {name} with {dimensions} dimensions that are not empty, got {shown(str(shape))}"
        )
    return shape


def _count(shapes: Shapes, pattern: str, start: int = 0) -> int:
    """How many of the numbers start, start + 1, ... the names have without a gap."""
    numbers = {int(match[1]) for match in (re.fullmatch(pattern, name) for name in shapes) if match}
    count = 0
    while start + count in numbers:
        count += 1
    return count


def _multipliers(widths: list[int], base_channels: int, names: str) -> tuple[int, ...]:
    if any(width % base_channels for width in widths):
        raise ValueError(
            f"checkpoint must have multiples of {base_channels} channels in {names}, got {shown(str(widths))}"
        )
    return tuple(width // base_channels for width in widths)
