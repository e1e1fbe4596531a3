"""The official DiffAE networks in plain torch functions and float64: a reference that shares no code with the package.

Names and shapes of the tensors, the forward passes and the DDIM trajectories are written down here from the description
of the official implementation, on a dictionary of tensors with the official names.
"""

from __future__ import annotations

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
TINY = Architecture(
    image_size=32,
    base=32,
    decoder_multipliers=(1, 2),
    encoder_multipliers=(1, 2, 2),
    blocks=1,
    encoder_blocks=1,
    embed=24,
    latent=12,
    latent_layers=4,
    latent_hidden=20,
    latent_sinusoid=8,
)
# Smaller still, for trajectories of hundreds of steps.
MINIATURE = replace(TINY, image_size=16, base=8)


# ---- names and shapes ------------------------------------------------------------------------------------------------


def _layer(shapes: Shapes, name: str, *weight: int) -> None:
    shapes[f"{name}.weight"] = weight
    shapes[f"{name}.bias"] = weight[:1]


def _attention_shapes(shapes: Shapes, name: str, channels: int) -> None:
    _layer(shapes, f"{name}.norm", channels)
    _layer(shapes, f"{name}.qkv", 3 * channels, channels, 1)
    _layer(shapes, f"{name}.proj_out", channels, channels, 1)


def _block_shapes(shapes: Shapes, name: str, channels_in: int, channels: int, conditions: Architecture | None) -> None:
    _layer(shapes, f"{name}.in_layers.0", channels_in)
    _layer(shapes, f"{name}.in_layers.2", channels, channels_in, 3, 3)
    if conditions is not None:
        _layer(shapes, f"{name}.emb_layers.1", 2 * channels, conditions.embed)
        _layer(shapes, f"{name}.cond_emb_layers.1", channels, conditions.latent)
        _layer(shapes, f"{name}.out_layers.0", channels)
        _layer(shapes, f"{name}.out_layers.3", channels, channels, 3, 3)
    if channels_in != channels:
        _layer(shapes, f"{name}.skip_connection", channels, channels_in, 1, 1)


def _downward_shapes(
    shapes: Shapes, prefix: str, a: Architecture, multipliers: tuple[int, ...], blocks: int, conditioned: bool
) -> tuple[int, list[list[int]]]:
    """Stem and way down; returns the channels at the end and, per level, those of the skip connections."""
    conditions = a if conditioned else None
    channels, index = a.base * multipliers[0], 1
    _layer(shapes, f"{prefix}input_blocks.0.0", channels, 3, 3, 3)
    skips: list[list[int]] = [[channels]]
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            _block_shapes(shapes, f"{prefix}input_blocks.{index}.0", channels, a.base * multiplier, conditions)
            channels = a.base * multiplier
            if a.image_size >> level in a.attention:
                _attention_shapes(shapes, f"{prefix}input_blocks.{index}.1", channels)
            skips[level].append(channels)
            index += 1
        if level + 1 < len(multipliers):
            _block_shapes(shapes, f"{prefix}input_blocks.{index}.0", channels, channels, conditions)
            skips.append([channels])
            index += 1
    _block_shapes(shapes, f"{prefix}middle_block.0", channels, channels, conditions)
    _attention_shapes(shapes, f"{prefix}middle_block.1", channels)
    _block_shapes(shapes, f"{prefix}middle_block.2", channels, channels, conditions)
    return channels, skips


def autoencoder_shapes(a: Architecture) -> Shapes:
    shapes: Shapes = {}
    _layer(shapes, "time_embed.time_embed.0", a.embed, a.base)
    _layer(shapes, "time_embed.time_embed.2", a.embed, a.embed)
    channels, skips = _downward_shapes(shapes, "", a, a.decoder_multipliers, a.blocks, conditioned=True)
    index = 0
    for level in reversed(range(len(a.decoder_multipliers))):
        width = a.base * a.decoder_multipliers[level]
        for block in range(a.blocks + 1):
            name = f"output_blocks.{index}"
            _block_shapes(shapes, f"{name}.0", channels + skips[level].pop(), width, a)
            channels, entry = width, 1
            if a.image_size >> level in a.attention:
                _attention_shapes(shapes, f"{name}.1", channels)
                entry = 2
            if level > 0 and block == a.blocks:
                _block_shapes(shapes, f"{name}.{entry}", channels, channels, a)
            index += 1
    _layer(shapes, "out.0", channels)
    _layer(shapes, "out.2", 3, channels, 3, 3)

    channels, _ = _downward_shapes(shapes, "encoder.", a, a.encoder_multipliers, a.encoder_blocks, conditioned=False)
    _layer(shapes, "encoder.out.0", channels)
    _layer(shapes, "encoder.out.3", a.latent, channels, 1, 1)
    return shapes


def latent_net_shapes(a: Architecture) -> Shapes:
    shapes: Shapes = {}
    _layer(shapes, "latent_net.time_embed.0", a.latent, a.latent_sinusoid)
    _layer(shapes, "latent_net.time_embed.2", a.latent, a.latent)
    for index in range(a.latent_layers):
        name, last = f"latent_net.layers.{index}", index == a.latent_layers - 1
        inputs = a.latent if index == 0 else a.latent_hidden + a.latent
        _layer(shapes, f"{name}.linear", a.latent if last else a.latent_hidden, inputs)
        if not last:
            _layer(shapes, f"{name}.linear_emb", a.latent_hidden, a.latent)
            _layer(shapes, f"{name}.cond_layers.1", a.latent_hidden, a.latent)
            _layer(shapes, f"{name}.norm", a.latent_hidden)
    return shapes


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


def _linear(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{name}.weight"].flatten(1).T + w[f"{name}.bias"]


def _conv(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def _group_norm(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    batch, channels = x.shape[:2]
    grouped = x.reshape(batch, min(32, channels), -1)
    mean, variance = grouped.mean(-1, keepdim=True), grouped.var(-1, unbiased=False, keepdim=True)
    normed = ((grouped - mean) / torch.sqrt(variance + 1e-5)).reshape(x.shape)
    shape = (1, channels, *(1,) * (x.ndim - 2))
    return normed * w[f"{name}.weight"].view(shape) + w[f"{name}.bias"].view(shape)


def _sinusoid(t: torch.Tensor, dimension: int) -> torch.Tensor:
    half = dimension // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / half)
    angles = t.double()[:, None] * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def _attention(w: Tensors, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    batch, channels = x.shape[:2]
    flat = _group_norm(w, f"{name}.norm", x).flatten(2)
    qkv = torch.einsum("oc,bct->bot", w[f"{name}.qkv.weight"][..., 0], flat) + w[f"{name}.qkv.bias"][:, None]
    width = channels // heads
    attended = []
    for head in range(heads):  # heads are split before query, key and value
        query, key, value = qkv[:, head * 3 * width : (head + 1) * 3 * width].split(width, dim=1)
        weights = torch.softmax(torch.einsum("bct,bcs->bts", query, key) / math.sqrt(width), dim=-1)
        attended.append(torch.einsum("bts,bcs->bct", weights, value))
    out = torch.einsum("oc,bct->bot", w[f"{name}.proj_out.weight"][..., 0], torch.cat(attended, dim=1))
    return x + (out + w[f"{name}.proj_out.bias"][:, None]).view_as(x)


def _resample(x: torch.Tensor, how: str | None) -> torch.Tensor:
    if how == "down":
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    if how == "up":
        return x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    return x


def _block(
    w: Tensors,
    name: str,
    x: torch.Tensor,
    how: str | None = None,
    conditions: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    h = _conv(w, f"{name}.in_layers.2", _resample(_silu(_group_norm(w, f"{name}.in_layers.0", x)), how))
    if conditions is not None:
        time, latent = conditions
        scale_t, shift_t = _linear(w, f"{name}.emb_layers.1", _silu(time))[:, :, None, None].chunk(2, dim=1)
        scale_z = _linear(w, f"{name}.cond_emb_layers.1", _silu(latent))[:, :, None, None]
        h = _group_norm(w, f"{name}.out_layers.0", h)
        h = (h * (1 + scale_t) + shift_t) * (1 + scale_z)
        h = _conv(w, f"{name}.out_layers.3", _silu(h))
    x = _resample(x, how)
    if f"{name}.skip_connection.weight" in w:
        x = _conv(w, f"{name}.skip_connection", x)
    return x + h


def _walk_down(
    w: Tensors,
    prefix: str,
    a: Architecture,
    x: torch.Tensor,
    levels: int,
    blocks: int,
    conditions: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    h, index = _conv(w, f"{prefix}input_blocks.0.0", x), 1
    skips = [[h]]
    for level in range(levels):
        for _ in range(blocks):
            h = _block(w, f"{prefix}input_blocks.{index}.0", h, None, conditions)
            if h.shape[-1] in a.attention:
                h = _attention(w, f"{prefix}input_blocks.{index}.1", h, a.heads)
            skips[level].append(h)
            index += 1
        if level + 1 < levels:
            h = _block(w, f"{prefix}input_blocks.{index}.0", h, "down", conditions)
            skips.append([h])
            index += 1
    h = _block(w, f"{prefix}middle_block.0", h, None, conditions)
    h = _attention(w, f"{prefix}middle_block.1", h, a.heads)
    return _block(w, f"{prefix}middle_block.2", h, None, conditions), skips


def encode(w: Tensors, a: Architecture, x: torch.Tensor) -> torch.Tensor:
    h, _ = _walk_down(w, "encoder.", a, x, len(a.encoder_multipliers), a.encoder_blocks, None)
    return _linear(w, "encoder.out.3", _silu(_group_norm(w, "encoder.out.0", h)).mean(dim=(2, 3)))


def predict_noise(w: Tensors, a: Architecture, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    time = _linear(w, "time_embed.time_embed.0", _sinusoid(t, a.base))
    conditions = (_linear(w, "time_embed.time_embed.2", _silu(time)), z)
    h, skips = _walk_down(w, "", a, x, len(a.decoder_multipliers), a.blocks, conditions)
    index = 0
    for level in reversed(range(len(a.decoder_multipliers))):
        for block in range(a.blocks + 1):
            name, entry = f"output_blocks.{index}", 1
            h = _block(w, f"{name}.0", torch.cat([h, skips[level].pop()], dim=1), None, conditions)
            if h.shape[-1] in a.attention:
                h, entry = _attention(w, f"{name}.1", h, a.heads), 2
            if level > 0 and block == a.blocks:
                h = _block(w, f"{name}.{entry}", h, "up", conditions)
            index += 1
    return _conv(w, "out.2", _silu(_group_norm(w, "out.0", h)))


def predict_latent_noise(w: Tensors, a: Architecture, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    time = _linear(w, "latent_net.time_embed.0", _sinusoid(t, a.latent_sinusoid))
    time = _linear(w, "latent_net.time_embed.2", _silu(time))
    h = x
    for index in range(a.latent_layers):
        name = f"latent_net.layers.{index}"
        h = _linear(w, f"{name}.linear", torch.cat([h, x], dim=1) if index else h)
        if index < a.latent_layers - 1:
            h = h * (1 + _linear(w, f"{name}.linear_emb", _silu(time)))
            h = (h - h.mean(1, keepdim=True)) / torch.sqrt(h.var(1, unbiased=False, keepdim=True) + 1e-5)
            h = _silu(h * w[f"{name}.norm.weight"] + w[f"{name}.norm.bias"])
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
