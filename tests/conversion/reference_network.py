"""The official DiffAE networks in plain torch functions and float64: a reference that shares no code with the package.

The forward passes, with the official name and the shape of each tensor where it is used, and the DDIM trajectories are
written down here from the description of the official implementation.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    image_size: int
    base: int
    decoder_multipliers: tuple[int, ...]
    encoder_multipliers: tuple[int, ...]
    blocks: int = 2
    encoder_blocks: int = 2
    attention: tuple[int, ...] = (16,)
    embed: int = 512
    latent: int = 512
    heads: int = 1
    latent_layers: int = 10
    latent_hidden: int = 2048
    latent_sinusoid: int = 64


FFHQ256 = Architecture(256, 128, (1, 1, 2, 2, 4, 4), (1, 1, 2, 2, 4, 4, 4))
FFHQ128 = Architecture(128, 128, (1, 1, 2, 3, 4), (1, 1, 2, 3, 4, 4))
CELEBA64 = Architecture(64, 64, (1, 2, 4, 8), (1, 2, 4, 8, 8))
# The same structure in small: groups of one to four channels, and attention inside both networks.
TINY = Architecture(32, 32, (1, 2), (1, 2, 2), blocks=1, encoder_blocks=1, embed=24, latent=12)
TINY = replace(TINY, latent_layers=4, latent_hidden=20, latent_sinusoid=8)
# Smaller still, for trajectories of hundreds of steps.
MINIATURE = replace(TINY, image_size=16, base=8)


# ---- tensors ---------------------------------------------------------------------------------------------------------


class _Recorder(dict):
    """In place of the tensors: notes the shapes that a forward pass asks for."""


def _tensor(w: Tensors, name: str, *shape: int) -> torch.Tensor:
    if isinstance(w, _Recorder):
        w[name] = shape
        return _meta(*shape)
    assert w[name].shape == shape
    return w[name]


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float64, device="meta")


def autoencoder_shapes(a: Architecture) -> Shapes:
    recorder, image = _Recorder(), _meta(1, 3, a.image_size, a.image_size)
    predict_noise(recorder, a, image, _meta(1), _meta(1, a.latent))
    encode(recorder, a, image)
    return dict(recorder)


def latent_net_shapes(a: Architecture) -> Shapes:
    recorder = _Recorder()
    predict_latent_noise(recorder, a, _meta(1, a.latent), _meta(1))
    return dict(recorder)


def random_tensors(shapes: Shapes, seed: int) -> Tensors:
    """Float32 tensors, all of them random: also those that training starts at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values /= math.sqrt(math.prod(shape[1:]))
        else:
            values = (1.0 if name.endswith("weight") else 0.0) + 0.2 * values
        tensors[name] = values
    for name in shapes:
        if ".cond_layers.1." in name:
            tensors[name] = tensors[name.replace("cond_layers.1", "linear_emb")]
    return tensors


# ---- forward passes --------------------------------------------------------------------------------------------------


def _linear(w: Tensors, name: str, x: torch.Tensor, width: int, *ones: int) -> torch.Tensor:
    """`ones`: the dimensions of a layer that is a convolution 1 wide there."""
    weight = _tensor(w, f"{name}.weight", width, x.shape[1], *ones)
    return x @ weight.flatten(1).T + _tensor(w, f"{name}.bias", width)


def _conv(w: Tensors, name: str, x: torch.Tensor, width: int, kernel: int = 3) -> torch.Tensor:
    weight = _tensor(w, f"{name}.weight", width, x.shape[1], kernel, kernel)
    return F.conv2d(x, weight, _tensor(w, f"{name}.bias", width), padding=kernel // 2)


def _affine(w: Tensors, name: str, x: torch.Tensor) -> list[torch.Tensor]:
    return [_tensor(w, f"{name}.{kind}", x.shape[1]) for kind in ("weight", "bias")]


def _group_norm(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, min(32, x.shape[1]), *_affine(w, name, x), eps=1e-5)


def _sinusoid(t: torch.Tensor, dimension: int) -> torch.Tensor:
    half = dimension // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angles = t.double()[:, None] * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def _attention(w: Tensors, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    channels = x.shape[1]
    flat = _group_norm(w, f"{name}.norm", x).flatten(2).transpose(1, 2)  # (B, HW, C)
    qkv = _pixelwise(w, f"{name}.qkv", flat, 3 * channels)
    attended = []
    for head in qkv.chunk(heads, dim=2):  # heads are split before query, key and value
        query, key, value = head.chunk(3, dim=2)
        weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(key.shape[2]), dim=-1)
        attended.append(weights @ value)
    out = _pixelwise(w, f"{name}.proj_out", torch.cat(attended, dim=2), channels)
    return x + out.transpose(1, 2).reshape(x.shape)


def _pixelwise(w: Tensors, name: str, x: torch.Tensor, width: int) -> torch.Tensor:
    """(B, HW, C) -> (B, HW, width)."""
    return _linear(w, name, x.flatten(0, 1), width, 1).unflatten(0, x.shape[:2])


def _resample(x: torch.Tensor, how: str | None) -> torch.Tensor:
    if how == "down":
        return F.avg_pool2d(x, 2)
    if how == "up":
        return x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    return x


Conditions = tuple[torch.Tensor, torch.Tensor] | None  # time embedding and code, in the decoder


def _block(
    w: Tensors, name: str, x: torch.Tensor, width: int, conditions: Conditions, how: str | None = None
) -> torch.Tensor:
    h = _conv(w, f"{name}.in_layers.2", _resample(F.silu(_group_norm(w, f"{name}.in_layers.0", x)), how), width)
    if conditions is not None:
        time, latent = conditions
        scale_t, shift_t = _linear(w, f"{name}.emb_layers.1", F.silu(time), 2 * width)[:, :, None, None].chunk(2, dim=1)
        scale_z = _linear(w, f"{name}.cond_emb_layers.1", F.silu(latent), width)[:, :, None, None]
        h = _group_norm(w, f"{name}.out_layers.0", h)
        h = (h * (1 + scale_t) + shift_t) * (1 + scale_z)
        h = _conv(w, f"{name}.out_layers.3", F.silu(h), width)
    x = _resample(x, how)
    if x.shape[1] != width:
        x = _conv(w, f"{name}.skip_connection", x, width, 1)
    return x + h


def _walk_down(
    w: Tensors, prefix: str, a: Architecture, x: torch.Tensor, conditions: Conditions
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Stem, way down and middle; and what goes over the skip connections."""
    multipliers, blocks = (a.encoder_multipliers, a.encoder_blocks) if prefix else (a.decoder_multipliers, a.blocks)
    h = _conv(w, f"{prefix}input_blocks.0.0", x, a.base * multipliers[0])
    skips = [h]
    for level, multiplier in enumerate(multipliers):
        width = a.base * multiplier
        for _ in range(blocks):
            name = f"{prefix}input_blocks.{len(skips)}"
            h = _block(w, f"{name}.0", h, width, conditions)
            if h.shape[-1] in a.attention:
                h = _attention(w, f"{name}.1", h, a.heads)
            skips.append(h)
        if level + 1 < len(multipliers):
            h = _block(w, f"{prefix}input_blocks.{len(skips)}.0", h, width, conditions, "down")
            skips.append(h)
    h = _block(w, f"{prefix}middle_block.0", h, width, conditions)
    h = _attention(w, f"{prefix}middle_block.1", h, a.heads)
    return _block(w, f"{prefix}middle_block.2", h, width, conditions), skips


def encode(w: Tensors, a: Architecture, x: torch.Tensor) -> torch.Tensor:
    h, _ = _walk_down(w, "encoder.", a, x, None)
    pooled = F.silu(_group_norm(w, "encoder.out.0", h)).mean(dim=(2, 3))
    return _linear(w, "encoder.out.3", pooled, a.latent, 1, 1)


def predict_noise(w: Tensors, a: Architecture, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    time = _linear(w, "time_embed.time_embed.0", _sinusoid(t, a.base), a.embed)
    conditions = (_linear(w, "time_embed.time_embed.2", F.silu(time), a.embed), z)
    h, skips = _walk_down(w, "", a, x, conditions)
    index = 0
    for level, multiplier in reversed(list(enumerate(a.decoder_multipliers))):
        width = a.base * multiplier
        for block in range(a.blocks + 1):
            name, entry = f"output_blocks.{index}", 1
            h = _block(w, f"{name}.0", torch.cat([h, skips.pop()], dim=1), width, conditions)
            if h.shape[-1] in a.attention:
                h, entry = _attention(w, f"{name}.1", h, a.heads), 2
            if level > 0 and block == a.blocks:
                h = _block(w, f"{name}.{entry}", h, width, conditions, "up")
            index += 1
    return _conv(w, "out.2", F.silu(_group_norm(w, "out.0", h)), 3)


def predict_latent_noise(w: Tensors, a: Architecture, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    time = _linear(w, "latent_net.time_embed.0", _sinusoid(t, a.latent_sinusoid), a.latent)
    time = _linear(w, "latent_net.time_embed.2", F.silu(time), a.latent)
    h = x
    for index in range(a.latent_layers):
        name, last = f"latent_net.layers.{index}", index == a.latent_layers - 1
        h = torch.cat([h, x], dim=1) if index else h
        h = _linear(w, f"{name}.linear", h, a.latent if last else a.latent_hidden)
        if not last:
            # One layer, registered in two places.
            scale, same = (
                _linear(w, f"{name}.{one}", F.silu(time), a.latent_hidden) for one in ("linear_emb", "cond_layers.1")
            )
            h = h * (1 + (scale + same) / 2)
            h = F.silu(F.layer_norm(h, h.shape[1:], *_affine(w, f"{name}.norm", h), eps=1e-5))
    return h


# ---- trajectories ----------------------------------------------------------------------------------------------------


def _ddim(
    w: Tensors, a: Architecture, x: torch.Tensor, z: torch.Tensor, indices: list[int], end: float
) -> torch.Tensor:
    """Updates at the indices, each to the alpha_bar of the next one, the last to `end`."""
    alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    targets = [*(float(alpha_bars[index]) for index in indices[1:]), end]
    for index, target in zip(indices, targets, strict=True):
        alpha_bar = float(alpha_bars[index])
        noise = predict_noise(w, a, x, torch.full((x.shape[0],), index), z)
        x_0 = ((x - math.sqrt(1 - alpha_bar) * noise) / math.sqrt(alpha_bar)).clamp(-1, 1)
        noise = (x - math.sqrt(alpha_bar) * x_0) / math.sqrt(1 - alpha_bar)
        x = math.sqrt(target) * x_0 + math.sqrt(1 - target) * noise
    return x


def decode(w: Tensors, a: Architecture, x_t: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
    return _ddim(w, a, x_t, z, list(range(0, 1000, 1000 // steps))[::-1], 1.0)


def invert(w: Tensors, a: Architecture, x_0: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
    return _ddim(w, a, x_0, z, list(range(0, 1000, 1000 // steps)), 0.0)
