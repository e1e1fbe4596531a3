"""The plain implementation that the benchmarks compare with: the same weights, with the arithmetic as usually written.

It is eager, in float32 and NCHW, with a materialised softmax in attention. Every residual block projects the latent
code again at each step, and applies the scale and shift of the time and of the code one after the other.
"""

import math

import torch
import torch.nn.functional as F

from diffae_hub import ConditionedUNet2DModel
from diffae_hub.models.layers import ConditionedResidualBlock, SelfAttentionBlock


def plain_attention(block: SelfAttentionBlock, hidden: torch.Tensor) -> torch.Tensor:
    """Computes attention with explicit weights; heads are split before query, key and value."""
    batch, channels, height, width = hidden.shape
    tokens = block.norm(hidden).reshape(batch, channels, height * width)
    qkv = F.conv1d(tokens, block.qkv.weight[:, :, None], block.qkv.bias)
    query, key, value = qkv.reshape(batch * block.num_heads, -1, height * width).chunk(3, dim=1)
    scale = 1 / math.sqrt(math.sqrt(query.shape[1]))
    weights = torch.softmax(torch.einsum("bct,bcs->bts", query * scale, key * scale), dim=-1)
    attended = torch.einsum("bts,bcs->bct", weights, value).reshape(batch, channels, height * width)
    attended = F.conv1d(attended, block.projection.weight[:, :, None], block.projection.bias)
    return hidden + attended.reshape(hidden.shape)


def plain_residual(
    block: ConditionedResidualBlock, hidden: torch.Tensor, time: torch.Tensor, latent: torch.Tensor
) -> torch.Tensor:
    """Computes a residual block, one operation after the other."""

    def resample(x: torch.Tensor) -> torch.Tensor:
        if block.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if block.resample == "up" else x

    h = block.conv_1(resample(F.silu(block.norm_1(hidden))))
    time_scale, time_shift = block.time_projection(F.silu(time))[:, :, None, None].chunk(2, dim=1)
    h = block.norm_2(h) * (1 + time_scale) + time_shift
    modulation = block.latent_projection(F.silu(latent))[:, :, None, None]
    if block.latent_scale_shift:
        latent_scale, latent_shift = modulation.chunk(2, dim=1)
        h = h * (1 + latent_scale) + latent_shift
    else:
        h = h * (1 + modulation)
    return block.skip(resample(hidden)) + block.conv_2(F.silu(h))


def plain_decoder(
    model: ConditionedUNet2DModel, sample: torch.Tensor, timestep: torch.Tensor, latent_code: torch.Tensor
) -> torch.Tensor:
    """Computes `ConditionedUNet2DModel.forward` with the model's own weights, in evaluation mode."""
    time = model.time_embedding(timestep, sample.shape[0], sample)
    latent = model.latent_mlp(latent_code)

    def attend(block: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        return plain_attention(block, hidden) if isinstance(block, SelfAttentionBlock) else hidden

    hidden = model.conv_in(sample)
    skips = [hidden]
    for residual, attention in zip(model.down_residuals, model.down_attentions, strict=True):
        hidden = attend(attention, plain_residual(residual, hidden, time, latent))
        skips.append(hidden)
    hidden = attend(model.middle_attention, plain_residual(model.middle_residuals[0], hidden, time, latent))
    hidden = plain_residual(model.middle_residuals[1], hidden, time, latent)
    size, added = model.config.latent_spatial_size, False
    for residual, attention in zip(model.up_residuals, model.up_attentions, strict=True):
        if size is not None and not added and hidden.shape[-1] == size:
            hidden, added = hidden + model.latent_spatial_projection(latent).unflatten(1, (-1, size, size)), True
        if residual.resample is None:
            hidden = torch.cat([hidden, skips.pop()], dim=1)
        hidden = attend(attention, plain_residual(residual, hidden, time, latent))
    return model.conv_out(F.silu(model.norm_out(hidden)))
