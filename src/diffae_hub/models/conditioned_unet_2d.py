"""ConditionedUNet2DModel: (x_t, timestep, z) -> noise, x_0 or velocity; an ADM U-Net (section 8, table 6)."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .layers import (
    ConditionedResidualBlock,
    Float32GroupNorm,
    SelfAttentionBlock,
    TimeEmbedding,
    check_configuration,
    check_images,
    zero_initialized,
)
from .safetensors_only import SafetensorsOnlyMixin


class LatentConditioning(NamedTuple):
    """What the decoder derives from the latent code and its own weights; the same for every step of a trajectory."""

    modulations: tuple[torch.Tensor, ...]  # per residual block, in the order of execution, (B, C) or (B, 2C)
    spatial: torch.Tensor | None  # projection to a feature map, (B, C, S, S)


class ConditionedUNet2DModel(SafetensorsOnlyMixin, ModelMixin, ConfigMixin):
    """The conditional diffusion decoder of a diffusion autoencoder: `D(x_t, t, z)`.

    After a 3x3 stem, each level has `layers_per_block` residual blocks on the way down and one more on the way up, with
    self-attention at the listed resolutions; residual blocks also do the down- and upsampling. The middle is a residual
    block, attention and a residual block. Time embedding and latent code modulate every residual block (adaptive group
    norm). The defaults are the official DiffAE network for FFHQ at 256 pixels (138,341,891 parameters). The paper's
    networks set `latent_scale_shift=True` and, at 32 pixels, `time_embed_dim=1024, latent_mlp_layers=2`.

    Args:
        sample_size: Height and width of the training images, in pixels. Determines which levels have attention.
        base_channels: Channels of the first level before its multiplier, and the dimension of the time sinusoid.
        channel_multipliers: One per level; each level after the first halves the resolution.
        layers_per_block: Residual blocks per level on the way down (one more on the way up).
        attention_resolutions: Resolutions, in pixels, at which self-attention follows each residual block.
        norm_num_groups: Groups of each group norm (at most one per channel).
        latent_scale_shift: Whether the latent code gives a scale and a shift (the paper) or only a scale (official).
        latent_mlp_layers: Linear layers of an MLP (SiLU between) applied to the latent code first; 0 for none.
        latent_spatial_size: Height and width of a feature map to which the latent code is also projected. It is added
            where the up path enters that resolution, and fixes the image size to `sample_size`. Beyond the paper.
        patch_size: Pixels per side that the network treats as one (space to depth, and back). The feature maps have
            `sample_size / patch_size` pixels, and the resolutions above are in these pixels. Beyond the paper.
    """

    __module__ = "diffae_hub"
    _supports_gradient_checkpointing = True
    _no_split_modules = _repeated_blocks = ["ConditionedResidualBlock", "SelfAttentionBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_dim: int = 512,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4, 4),
        layers_per_block: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        num_attention_heads: int = 1,
        dropout: float = 0.1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        time_embed_dim: int = 512,
        latent_scale_shift: bool = False,
        latent_mlp_layers: int = 0,
        latent_spatial_size: int | None = None,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        check_configuration(self.config)
        resolutions = [sample_size // patch_size // 2**level for level in range(len(channel_multipliers))]
        if latent_spatial_size is not None and latent_spatial_size not in resolutions:
            raise ValueError(f"latent_spatial_size must be None or one of {resolutions}, got {latent_spatial_size!r}")
        self.gradient_checkpointing = False
        self.downsampling_factor = patch_size * 2 ** (len(channel_multipliers) - 1)

        self.time_embedding = TimeEmbedding(base_channels, time_embed_dim)
        mlp: list[nn.Module] = []
        for index in range(latent_mlp_layers):
            mlp += [nn.SiLU()] * (index > 0) + [nn.Linear(latent_dim, latent_dim)]
        self.latent_mlp = nn.Sequential(*mlp)

        norm = {"norm_num_groups": norm_num_groups, "norm_eps": norm_eps}
        residual = partial(
            ConditionedResidualBlock,
            time_embed_dim=time_embed_dim,
            latent_dim=latent_dim,
            latent_scale_shift=latent_scale_shift,
            dropout=dropout,
            **norm,
        )

        def attention(channels: int, wanted: bool) -> nn.Module:
            return SelfAttentionBlock(channels, num_heads=num_attention_heads, **norm) if wanted else nn.Identity()

        # Way down. Every entry leaves one skip connection, and so does the stem.
        channels = base_channels * channel_multipliers[0]
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, channels, 3, padding=1)
        skip_channels = [channels]
        self.down_residuals, self.down_attentions = nn.ModuleList(), nn.ModuleList()
        for level, multiplier in enumerate(channel_multipliers):
            for _ in range(layers_per_block):
                self.down_residuals.append(residual(channels, base_channels * multiplier))
                channels = base_channels * multiplier
                self.down_attentions.append(attention(channels, resolutions[level] in attention_resolutions))
                skip_channels.append(channels)
            if level < len(channel_multipliers) - 1:
                self.down_residuals.append(residual(channels, channels, resample="down"))
                self.down_attentions.append(nn.Identity())
                skip_channels.append(channels)

        self.middle_residuals = nn.ModuleList([residual(channels, channels), residual(channels, channels)])
        self.middle_attention = attention(channels, True)

        # Way up. Each level has `layers_per_block + 1` blocks that take a skip and, except the last level, one that
        # upsamples.
        self.up_residuals, self.up_attentions = nn.ModuleList(), nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(channel_multipliers))):
            if resolutions[level] == latent_spatial_size:
                self.latent_spatial_projection = nn.Linear(latent_dim, channels * latent_spatial_size**2)
            for _ in range(layers_per_block + 1):
                self.up_residuals.append(residual(channels + skip_channels.pop(), base_channels * multiplier))
                channels = base_channels * multiplier
                self.up_attentions.append(attention(channels, resolutions[level] in attention_resolutions))
            if level > 0:
                self.up_residuals.append(residual(channels, channels, resample="up"))
                self.up_attentions.append(nn.Identity())

        self.norm_out = Float32GroupNorm(norm_num_groups, channels, norm_eps)
        self.conv_out = zero_initialized(nn.Conv2d(channels, out_channels * patch_size**2, 3, padding=1))

    def _run(self, block: nn.Module, hidden: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, hidden, *conditions)
        return block(hidden, *conditions)

    @apply_forward_hook
    def prepare_latent(self, latent_code: torch.Tensor) -> LatentConditioning:
        """Computes from z, (B, latent_dim), what does not depend on the timestep: once for a whole denoising loop."""
        embedding = self.latent_mlp(latent_code)
        spatial = None
        if self.config.latent_spatial_size is not None:
            size = self.config.latent_spatial_size
            spatial = self.latent_spatial_projection(embedding).unflatten(1, (-1, size, size))
        activated = F.silu(embedding)
        blocks = [*self.down_residuals, *self.middle_residuals, *self.up_residuals]
        return LatentConditioning(tuple(block.latent_projection(activated) for block in blocks), spatial)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        latent_code: torch.Tensor | None,
        latent_conditioning: LatentConditioning | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predicts noise, x_0 or velocity, as the model was trained: `sample`, (B, out_channels, H, W).

        Args:
            sample: x_t, shape (B, in_channels, H, W); H and W divisible by `downsampling_factor`
                (equal to `sample_size` with `latent_spatial_size`).
            timestep: 1000 t, a number or a tensor of shape () or (B,), in [0, 1000].
            latent_code: z, shape (B, latent_dim).
            latent_conditioning: Result of [`~ConditionedUNet2DModel.prepare_latent`], used instead of `latent_code`.
        """
        spatial_size = self.config.latent_spatial_size
        check_images(sample, self.downsampling_factor, self.config.sample_size if spatial_size else None)
        if latent_conditioning is None:
            latent_conditioning = self.prepare_latent(latent_code)
        if len(latent_conditioning.modulations[0]) != len(sample):
            raise ValueError(
                f"latent_code must have one row per image, {len(sample)}, got {len(latent_conditioning.modulations[0])}"
            )
        time = F.silu(self.time_embedding(timestep, len(sample), like=sample))
        downs, modulations = len(self.down_residuals), latent_conditioning.modulations
        down, middle, up = modulations[:downs], modulations[downs : downs + 2], modulations[downs + 2 :]

        hidden = self.conv_in(F.pixel_unshuffle(sample, self.config.patch_size))
        skips = [hidden]
        for residual, attention, modulation in zip(self.down_residuals, self.down_attentions, down, strict=True):
            hidden = self._run(residual, hidden, time, modulation)
            hidden = self._run(attention, hidden)
            skips.append(hidden)

        hidden = self._run(self.middle_residuals[0], hidden, time, middle[0])
        hidden = self._run(self.middle_attention, hidden)
        hidden = self._run(self.middle_residuals[1], hidden, time, middle[1])

        for residual, attention, modulation in zip(self.up_residuals, self.up_attentions, up, strict=True):
            if hidden.shape[-1] == spatial_size:  # the up path enters that resolution
                hidden, spatial_size = hidden + latent_conditioning.spatial, None
            if residual.resample is None:
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = self._run(residual, hidden, time, modulation)
            hidden = self._run(attention, hidden)

        output = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(hidden))), self.config.patch_size)
        return UNet2DOutput(sample=output) if return_dict else (output,)
