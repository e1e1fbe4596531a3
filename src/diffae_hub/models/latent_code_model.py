"""LatentCodeModel: (z_t, timestep) -> noise or velocity, a model of the distribution of codes (official DiffAE)."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from .layers import LatentStatisticsMixin, TimeEmbedding, check_configuration
from .safetensors_only import SafetensorsOnlyMixin


class LatentCodeLayer(nn.Module):
    """Linear, times `1 + Linear(SiLU(time embedding))`, LayerNorm, SiLU."""

    def __init__(self, in_features: int, out_features: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.time_projection = nn.Linear(time_embed_dim, out_features)
        self.norm = nn.LayerNorm(out_features)

    def forward(self, hidden: torch.Tensor, activated_time: torch.Tensor) -> torch.Tensor:
        """(B, in_features) and SiLU of the time embedding, (B, time_embed_dim) -> (B, out_features)."""
        return F.silu(self.norm(self.linear(hidden) * (1 + self.time_projection(activated_time))))


class LatentCodeModel(LatentStatisticsMixin, SafetensorsOnlyMixin, ModelMixin, ConfigMixin):
    """The latent code model of a diffusion autoencoder: an MLP with skip connections from its input.

    Every layer except the first gets the concatenation [hidden, input]; the last of the `num_layers` is a plain Linear.
    The scheduler says what the network predicts: noise in the official checkpoints. Codes are normalised with the mean
    and standard deviation of the training codes, which are saved with the network. The defaults are the official model
    for FFHQ and CelebA (54,109,696 parameters); horse and bedroom have 20 layers (117,106,176).
    """

    __module__ = "diffae_hub"

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 512,
        hidden_dim: int = 2048,
        num_layers: int = 10,
        time_sinusoid_dim: int = 64,
        time_embed_dim: int = 512,
    ) -> None:
        super().__init__()
        check_configuration(self.config)
        self.time_embedding = TimeEmbedding(time_sinusoid_dim, time_embed_dim)
        self.layers = nn.ModuleList(
            LatentCodeLayer(latent_dim if index == 0 else hidden_dim + latent_dim, hidden_dim, time_embed_dim)
            for index in range(num_layers - 1)
        )
        self.linear_out = nn.Linear(hidden_dim + latent_dim, latent_dim)
        self.register_latent_statistics(latent_dim)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, return_dict: bool = True
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predicts the noise (or what the model was trained for) in normalised, noised codes z_t, (B, latent_dim).

        `timestep` is a number or a tensor of shape () or (B,); in the official schedule, an index from 0 to 999. The
        result, `sample`, has the shape of the codes.
        """
        activated_time = F.silu(self.time_embedding(timestep, len(sample), like=sample))
        hidden = sample
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden if index == 0 else torch.cat([hidden, sample], dim=1), activated_time)
        output = self.linear_out(torch.cat([hidden, sample], dim=1))
        return UNet2DOutput(sample=output) if return_dict else (output,)
