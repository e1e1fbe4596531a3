"""SemanticEncoderModel: image -> latent code z, the downsampling half of an ADM U-Net (section 8, table 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn

from .layers import EncoderResidualBlock, Float32GroupNorm, SelfAttentionBlock, check_configuration, check_images
from .safetensors_only import SafetensorsOnlyMixin


@dataclass
class SemanticEncoderOutput(BaseOutput):
    """`latent_code`: z, (B, latent_dim), unbounded, in the model's dtype."""

    latent_code: torch.Tensor


class SemanticEncoderModel(SafetensorsOnlyMixin, ModelMixin, ConfigMixin):
    """The encoder of a diffusion autoencoder: `z = E(x_0)`.

    After a 3x3 stem, each level has `layers_per_block` single-convolution residual blocks, with self-attention at the
    listed resolutions, and all but the last a downsampling block. Then come a residual block, attention, a residual
    block and a head. The defaults are the official DiffAE network for FFHQ at 256 pixels (30,150,400 parameters).

    Because the decoder's last layers start at zero, the encoder's gradient is exactly zero for the first two optimizer
    steps of a new model (the first step moves the decoder's output layer, the second its residual blocks).

    Arguments that are not listed are as in [`ConditionedUNet2DModel`].

    Args:
        latent_head: `"pool"` averages the last feature map over space (the paper and the official networks).
            `"flatten"` projects it, which keeps positions but fixes the image size to `sample_size`. Beyond the paper.
    """

    __module__ = "diffae_hub"
    _supports_gradient_checkpointing = True
    _no_split_modules = _repeated_blocks = ["EncoderResidualBlock", "SelfAttentionBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        in_channels: int = 3,
        latent_dim: int = 512,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4, 4, 4),
        layers_per_block: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        num_attention_heads: int = 1,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        latent_head: str = "pool",
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        check_configuration(self.config)
        if latent_head not in ("pool", "flatten"):
            raise ValueError(f"latent_head must be one of 'pool', 'flatten', got {latent_head!r}")
        self.gradient_checkpointing = False
        self.downsampling_factor = patch_size * 2 ** (len(channel_multipliers) - 1)
        norm = {"norm_num_groups": norm_num_groups, "norm_eps": norm_eps}
        residual = partial(EncoderResidualBlock, dropout=dropout, **norm)
        attention = partial(SelfAttentionBlock, num_heads=num_attention_heads, **norm)

        channels = base_channels * channel_multipliers[0]
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, channels, 3, padding=1)
        self.blocks = nn.ModuleList()
        resolution = sample_size // patch_size
        for level, multiplier in enumerate(channel_multipliers):
            for _ in range(layers_per_block):
                out_channels = base_channels * multiplier
                self.blocks.append(residual(channels, out_channels))
                channels = out_channels
                if resolution in attention_resolutions:
                    self.blocks.append(attention(channels))
            if level < len(channel_multipliers) - 1:
                self.blocks.append(residual(channels, channels, resample="down"))
                resolution //= 2
        self.blocks += [residual(channels, channels), attention(channels), residual(channels, channels)]

        self.norm_out = Float32GroupNorm(norm_num_groups, channels, norm_eps)
        head_in = channels if latent_head == "pool" else channels * resolution * resolution
        self.head = nn.Linear(head_in, latent_dim)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> SemanticEncoderOutput | tuple[torch.Tensor]:
        """Encodes images in [-1, 1], (B, in_channels, H, W), to z, (B, latent_dim).

        H and W must be divisible by `downsampling_factor`; with `latent_head="flatten"` they must be `sample_size`.
        """
        flatten = self.config.latent_head == "flatten"
        check_images(sample, self.downsampling_factor, self.config.sample_size if flatten else None)
        hidden = self.conv_in(F.pixel_unshuffle(sample, self.config.patch_size))
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden = self._gradient_checkpointing_func(block, hidden)
            else:
                hidden = block(hidden)
        hidden = F.silu(self.norm_out(hidden))
        latent_code = self.head(hidden.flatten(1) if flatten else hidden.mean(dim=(2, 3)))
        return SemanticEncoderOutput(latent_code=latent_code) if return_dict else (latent_code,)
