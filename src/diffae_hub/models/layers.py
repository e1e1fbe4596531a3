"""What the networks share: normalisation, residual blocks, attention, embeddings, statistics of codes, checks.

The blocks follow the ADM architecture (Dhariwal and Nichol, 2021) as Preechakul et al. (2022) use it; the paper keeps
that architecture (section 8, tables 6 and 7).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn


def zero_initialized(module: nn.Module) -> nn.Module:
    """Sets every parameter of `module` to zero and returns it: the block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Float32GroupNorm(nn.GroupNorm):
    """Group normalisation that computes half precision in float32, and returns the input's dtype.

    With fewer channels than `num_groups`, each channel is a group.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float) -> None:
        groups = min(num_groups, num_channels)
        if num_channels % groups:
            raise ValueError(
                f"norm_num_groups must divide every channel count (base_channels times a multiplier), "
                f"got {num_groups} groups for {num_channels} channels"
            )
        super().__init__(groups, num_channels, eps=eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, num_channels, ...) -> the same shape and dtype."""
        if hidden.dtype == self.weight.dtype and hidden.dtype.itemsize >= 4:
            return super().forward(hidden)
        normed = F.group_norm(hidden.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(hidden.dtype)


class TimeEmbedding(TimestepEmbedding):
    """Sinusoid of the timestep (cosines first, float32), then Linear, SiLU, Linear."""

    def __init__(self, sinusoid_dim: int, embed_dim: int) -> None:
        super().__init__(sinusoid_dim, embed_dim)
        self.sinusoid = Timesteps(sinusoid_dim, flip_sin_to_cos=True, downscale_freq_shift=0)

    def forward(self, timestep: torch.Tensor | float, batch_size: int, like: torch.Tensor) -> torch.Tensor:
        """Embeds a timestep, 1000 t, a number or (B,), as (B, embed_dim), with the device and dtype of `like`."""
        timestep = torch.as_tensor(timestep, device=like.device, dtype=torch.float32)
        if timestep.ndim > 1 or timestep.numel() not in (1, batch_size):
            raise ValueError(f"timestep must be a number or of shape ({batch_size},), got {tuple(timestep.shape)}")
        return super().forward(self.sinusoid(timestep.expand(batch_size)).to(like.dtype))


def _resample(hidden: torch.Tensor, resample: str | None) -> torch.Tensor:
    if resample == "down":
        return F.avg_pool2d(hidden, kernel_size=2)
    if resample == "up":
        return F.interpolate(hidden, scale_factor=2.0, mode="nearest")
    return hidden


def _silu(hidden: torch.Tensor) -> torch.Tensor:
    """SiLU of a tensor that nothing else reads, in place if no gradient is recorded, which saves a feature map."""
    return F.silu(hidden, inplace=not torch.is_grad_enabled())


class EncoderResidualBlock(nn.Module):
    """Residual block of the encoder: GroupNorm, SiLU, (resample), one convolution, plus the skip path.

    `resample` is None, "down" (2x2 average pooling) or "up" (nearest), applied to both paths. A 1x1 convolution joins
    the skip path only where the numbers of channels differ.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm_num_groups: int,
        norm_eps: float,
        dropout: float = 0.0,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm_1 = Float32GroupNorm(norm_num_groups, in_channels, norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        residual = self.dropout(_resample(_silu(self.norm_1(hidden)), self.resample))
        return self.skip(_resample(hidden, self.resample)) + self.conv_1(residual)


class ConditionedResidualBlock(nn.Module):
    """Residual block of the decoder, modulated by the time embedding and by the latent code.

    GroupNorm, SiLU, (resample), convolution; then adaptive group norm
    `GroupNorm(h) (1 + s_t) + b_t`, times `(1 + s_z)` (plus `b_z` if `latent_scale_shift`), SiLU, dropout and a
    zero-initialised convolution. Each of `(s_t, b_t)` and `(s_z, b_z)` is SiLU then Linear of its embedding.
    `resample` as in [`EncoderResidualBlock`].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_embed_dim: int,
        latent_dim: int,
        latent_scale_shift: bool,
        norm_num_groups: int,
        norm_eps: float,
        dropout: float,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.latent_scale_shift = latent_scale_shift
        self.norm_1 = Float32GroupNorm(norm_num_groups, in_channels, norm_eps)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_projection = nn.Linear(time_embed_dim, 2 * out_channels)
        self.latent_projection = nn.Linear(latent_dim, (2 if latent_scale_shift else 1) * out_channels)
        self.norm_2 = Float32GroupNorm(norm_num_groups, out_channels, norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zero_initialized(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self, hidden: torch.Tensor, activated_time: torch.Tensor, latent_modulation: torch.Tensor
    ) -> torch.Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W').

        `activated_time` is SiLU of the time embedding, (B, time_embed_dim); `latent_modulation` is this block's
        `latent_projection` of SiLU of the latent code, (B, C or 2C), which the caller computes once per trajectory.
        """
        residual = self.conv_1(_resample(_silu(self.norm_1(hidden)), self.resample))

        # Both modulations together are one affine map per channel: composed on (B, C), they read the image only once.
        time_scale, time_shift = self.time_projection(activated_time).chunk(2, dim=1)
        if self.latent_scale_shift:
            latent_scale, latent_shift = latent_modulation.chunk(2, dim=1)
            shift = time_shift * (1 + latent_scale) + latent_shift
        else:
            latent_scale = latent_modulation
            shift = time_shift * (1 + latent_scale)
        scale = (1 + time_scale) * (1 + latent_scale)
        residual = torch.addcmul(shift[:, :, None, None], self.norm_2(residual), scale[:, :, None, None])

        residual = self.conv_2(self.dropout(_silu(residual)))
        return self.skip(_resample(hidden, self.resample)) + residual


class SelfAttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map; the output projection is zero-initialised.

    The output of `qkv` is split into heads first and into query, key and value second.
    """

    def __init__(self, channels: int, *, num_heads: int, norm_num_groups: int, norm_eps: float) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"num_attention_heads must divide the {channels} channels of a level, got {num_heads}")
        self.num_heads = num_heads
        self.norm = Float32GroupNorm(norm_num_groups, channels, norm_eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = zero_initialized(nn.Linear(channels, channels))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        batch, channels, height, width = hidden.shape
        tokens = self.norm(hidden).flatten(2).transpose(1, 2)  # (B, HW, C): no copy in channels_last
        qkv = self.qkv(tokens).view(batch, height * width, self.num_heads, 3, channels // self.num_heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # each (B, heads, HW, C / heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = self.projection(attended.transpose(1, 2).reshape(batch, height * width, channels))
        return hidden + attended.transpose(1, 2).reshape(batch, channels, height, width)


class LatentStatisticsMixin:
    """Mean and standard deviation of the training set's codes, (latent_dim,), saved as buffers of the network."""

    def register_latent_statistics(self, latent_dim: int) -> None:
        """Registers the buffers, as 0 and 1."""
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_std", torch.ones(latent_dim))

    def normalize(self, latent_code: torch.Tensor) -> torch.Tensor:
        """Latent codes (B, latent_dim) of the encoder -> codes of mean 0 and standard deviation 1."""
        if latent_code.shape[1:] != self.latent_mean.shape:  # (B, 1) would broadcast
            wanted = f"(batch, {len(self.latent_mean)})"
            raise ValueError(f"latent_code must have shape {wanted}, got {tuple(latent_code.shape)}")
        return (latent_code - self.latent_mean) / self.latent_std

    def denormalize(self, normalized_code: torch.Tensor) -> torch.Tensor:
        """The inverse of [`~LatentStatisticsMixin.normalize`]."""
        return normalized_code * self.latent_std + self.latent_mean


# Allowed numbers in a configuration. The upper ends are generous; they only prevent absurd cost.
_SIZES = ("sample_size", "in_channels", "out_channels", "base_channels", "patch_size", "num_attention_heads")
RANGES = dict.fromkeys((*_SIZES, "norm_num_groups", "time_embed_dim"), (1, 65_536)) | {
    "norm_eps": (1e-12, 1),
    "layers_per_block": (1, 64),
    "dropout": (0, 0.9999),
    "latent_dim": (1, 1_000_000),
    "latent_mlp_layers": (0, 64),
    "time_sinusoid_dim": (2, 65_536),
    "hidden_dim": (1, 1_000_000),
    "num_layers": (2, 1_000),
    "num_attributes": (1, 1_000_000),
}


def check_configuration(config: Mapping[str, Any]) -> None:
    """Raises a ValueError that names the argument, unless a network can be built from the configuration."""
    for name, (minimum, maximum) in RANGES.items():
        if name in config and not minimum <= config[name] <= maximum:
            raise ValueError(f"{name} must be between {minimum} and {maximum}, got {config[name]!r}")
    if "channel_multipliers" not in config:
        return
    multipliers, resolutions = config["channel_multipliers"], config["attention_resolutions"]
    if not 1 <= len(multipliers) <= 16 or min(multipliers) < 1:
        raise ValueError(f"channel_multipliers must be 1 to 16 positive integers, got {multipliers!r}")
    if any(resolution < 1 for resolution in resolutions):
        raise ValueError(f"attention_resolutions must be positive integers, got {resolutions!r}")
    factor = config["patch_size"] * 2 ** (len(multipliers) - 1)
    if config["sample_size"] % factor:
        raise ValueError(
            f"sample_size must be divisible by {factor} (patch_size and halvings), got {config['sample_size']}"
        )


def check_images(sample: torch.Tensor, downsampling_factor: int, fixed_size: int | None) -> None:
    """Raises ValueError for sizes at which a network would drop pixels, or fail deep inside."""
    height, width = sample.shape[-2:]
    if height % downsampling_factor or width % downsampling_factor or not height or not width:
        raise ValueError(f"sample height and width must be divisible by {downsampling_factor}, got {height} x {width}")
    if fixed_size is not None and (height, width) != (fixed_size, fixed_size):
        raise ValueError(f"sample height and width must be {fixed_size} for this model, got {height} x {width}")
