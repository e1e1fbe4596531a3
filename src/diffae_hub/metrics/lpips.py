"""LPIPS, the learned perceptual image patch similarity (Zhang et al., 2018), by the lpips package."""

from __future__ import annotations

import torch

from .psnr import check_image_pair
from .weights import fetching_weights

_MINIMUM_SIZE = {"alex": 31, "vgg": 16}  # below it, nothing is left of an image after the network's pooling
NETWORKS = tuple(_MINIMUM_SIZE)


class PerceptualDistance:
    """LPIPS 0.1 with an AlexNet (the paper's tables) or a VGG16 (its path lengths, section 10).

    The trunk's weights are torchvision's, which it fetches once or finds in `TORCH_HOME`.

    Args:
        network: "alex" or "vgg".
        device: Where it runs.

    Raises:
        ValueError: If there is no such network.
        WeightsUnavailable: If the trunk's weights cannot be had.
    """

    def __init__(self, network: str = "alex", device: torch.device | str = "cpu") -> None:
        if network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
        import lpips

        self.network = network
        with fetching_weights(f"LPIPS-{network}"):
            model = lpips.LPIPS(net=network, verbose=False)
        self._model = model.to(device).requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """The distance per image, independent of the other images of the batch.

        Args:
            images: (B, C, H, W), floating point, in [0, 1]; C is 3, or 1, which is repeated. At least 31 x 31 pixels
                with "alex", 16 x 16 with "vgg".
            references: As `images`.

        Returns:
            (B,), float32, from 0.

        Raises:
            ValueError: If the shapes differ or are not allowed.
        """
        check_image_pair(images, references)
        minimum = _MINIMUM_SIZE[self.network]
        if images.shape[1] not in (1, 3) or min(images.shape[-2:]) < minimum:
            raise ValueError(
                f"images must have 1 or 3 channels and at least {minimum} x {minimum} pixels for LPIPS-{self.network}, "
                f"got {tuple(images.shape[1:])}"
            )
        pair = [batch.float().expand(-1, 3, -1, -1) for batch in (images, references)]
        return self._model(*pair, normalize=True).flatten()
