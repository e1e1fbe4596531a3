"""The configuration of official DiffAE networks, inferred from the names and shapes of their tensors.

The tensors show all widths and depths. Other options get the value of every published checkpoint: one attention head,
decoder dropout 0.1, 32 groups, attention at resolution 16. The last gives the image size, because the tensors show at
which level the attention is. Whether all tensors fit is checked by the conversion.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from .checkpoint_file import shown

ATTENTION_RESOLUTION = 16
DECODER_DROPOUT = 0.1
NORM_NUM_GROUPS = 32
NORM_EPS = 1e-5
TIME_EMBEDDING = "time_embed.time_embed.0.weight"

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
OFFICIAL_LATENT_SCHEDULER = OFFICIAL_SCHEDULER | {"noise_schedule": "constant_beta", "clip_sample": False}

Shapes = Mapping[str, tuple[int, ...]]


def infer_autoencoder_configuration(
    shapes: Shapes,
    image_size: int | None = None,
    num_attention_heads: int = 1,
    encoder_layers_per_block: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Infers the arguments of `SemanticEncoderModel` and those of `ConditionedUNet2DModel`.

    `shapes` are by official name, relative to the model ("input_blocks.0.0.weight", "encoder.out.3.weight"). The
    default of `image_size` is 16 * 2^level, where `level` is the one that has attention.
    """
    decoder, decoder_attention = _decoder_structure(shapes)
    depth = decoder["layers_per_block"] if encoder_layers_per_block is None else encoder_layers_per_block
    encoder, encoder_attention = _encoder_structure(shapes, depth)
    if image_size is None:
        if len(decoder_attention) != 1:
            raise ValueError(
                "image_size must be given (--image-size) unless the decoder has attention at one level, got attention "
                f"at {len(decoder_attention)}"
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


def infer_latent_code_model_configuration(shapes: Shapes, argument: str = "checkpoint") -> dict[str, Any]:
    """Infers the arguments of `LatentCodeModel` from the tensors `latent_net.*`."""
    hidden_dim, latent_dim = _shape(shapes, "latent_net.layers.0.linear.weight", 2, argument)
    time_embed_dim, time_sinusoid_dim = _shape(shapes, "latent_net.time_embed.0.weight", 2, argument)
    return {
        "latent_dim": latent_dim,
        "hidden_dim": hidden_dim,
        "num_layers": _count(shapes, "latent_net.layers.{}.linear.weight"),
        "time_sinusoid_dim": time_sinusoid_dim,
        "time_embed_dim": time_embed_dim,
    }


def infer_attribute_classifier_configuration(shapes: Shapes, argument: str = "checkpoint") -> dict[str, Any]:
    """Infers the arguments of `AttributeClassifier` from the tensors `weight` and `bias` of an official classifier."""
    num_attributes, latent_dim = _shape(shapes, "weight", 2, argument)
    return {"latent_dim": latent_dim, "num_attributes": num_attributes}


def _decoder_structure(shapes: Shapes) -> tuple[dict[str, Any], list[int]]:
    """Infers the decoder's structure, and the levels that have attention."""
    # Only the way up shows where a level ends: there an entry has a second residual block, the one that upsamples.
    entries = _count(shapes, "output_blocks.{}.0.in_layers.2.weight")
    ends = [
        index
        for index in range(entries)
        if any(f"output_blocks.{index}.{position}.in_layers.2.weight" in shapes for position in (1, 2))
    ]
    levels = len(ends) + 1
    depth = entries // levels
    if entries % levels or depth < 2:
        raise ValueError(
            f"checkpoint must hold equally many output_blocks, two or more, at each of {levels} levels, got {entries}"
        )
    firsts = [f"output_blocks.{(levels - 1 - level) * depth}" for level in range(levels)]
    structure, attention = _levels(shapes, firsts)
    structure |= {
        "in_channels": _shape(shapes, "input_blocks.0.0.weight", 4)[1],
        "out_channels": _shape(shapes, "out.2.weight", 4)[0],
        "latent_dim": _shape(shapes, "middle_block.0.cond_emb_layers.1.weight", 2)[1],
        "layers_per_block": depth - 1,
        "time_embed_dim": _shape(shapes, TIME_EMBEDDING, 2)[0],
        "latent_scale_shift": False,
        "latent_mlp_layers": 0,
    }
    return structure, attention


def _encoder_structure(shapes: Shapes, depth: int) -> tuple[dict[str, Any], list[int]]:
    """Infers the encoder's structure, and the levels that have attention."""
    # Entry 0 is the stem. A level has `depth` entries, and one that downsamples if it is not the last.
    entries = _count(shapes, "encoder.input_blocks.{}.0.in_layers.2.weight", start=1)
    if depth < 1 or (entries + 1) % (depth + 1):
        raise ValueError(
            f"encoder_layers_per_block must fit {entries} encoder.input_blocks after the stem, got {depth}"
        )
    firsts = [f"encoder.input_blocks.{index}" for index in range(1, entries + 1, depth + 1)]
    structure, attention = _levels(shapes, firsts)
    structure |= {
        "in_channels": _shape(shapes, "encoder.input_blocks.0.0.weight", 4)[1],
        "latent_dim": _shape(shapes, "encoder.out.3.weight", 4)[0],
        "layers_per_block": depth,
    }
    return structure, attention


def _levels(shapes: Shapes, firsts: list[str]) -> tuple[dict[str, Any], list[int]]:
    """The widths of levels that begin with these entries, and which levels have attention."""
    base_channels = _shape(shapes, TIME_EMBEDDING, 2)[1]
    widths = [_shape(shapes, f"{first}.0.in_layers.2.weight", 4)[0] for first in firsts]
    multipliers = tuple(width // base_channels for width in widths)
    attention = [level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shapes]
    return {"base_channels": base_channels, "channel_multipliers": multipliers}, attention


def _shape(shapes: Shapes, name: str, dimensions: int, argument: str = "checkpoint") -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(
            f"{argument} must hold {name} with {dimensions} dimensions that are not empty, got {shown(str(shape))}"
        )
    return shape


def _count(shapes: Shapes, name: str, start: int = 0) -> int:
    """Counts the names with the numbers start, start + 1, ... up to the first that is missing."""
    return next(index for index in itertools.count(start) if name.format(index) not in shapes) - start
