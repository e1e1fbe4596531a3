"""LPIPS, the learned perceptual image patch similarity (Zhang et al., 2018), by the lpips package."""

import torch

from .psnr import check_pair
from .weights import fetching_weights

MINIMUM_SIZE = {"alex": 31, "vgg": 16}  # the network's pooling leaves nothing of smaller images


class PerceptualDistance:
    """LPIPS 0.1 with an AlexNet (the paper's tables) or a VGG16 (its path lengths, section 10).

    The trunk's weights are torchvision's, found in `TORCH_HOME` or downloaded once. Raises `WeightsUnavailable` if they
    are not available.
    """

    def __init__(self, network: str = "alex", device: torch.device | str = "cpu") -> None:
        import lpips

        self.network = network
        with fetching_weights(f"LPIPS-{network}"):
            model = lpips.LPIPS(net=network, verbose=False)
        self._model = model.to(device).requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Computes the distance per image, (B,), float32, at least 0, for images (B, C, H, W) in [0, 1], C of 3 or 1.

        Images must have at least 31 x 31 pixels for "alex", 16 x 16 for "vgg".
        """
        check_pair(images, references)
        minimum = MINIMUM_SIZE[self.network]
        if min(images.shape[-2:]) < minimum:
            raise ValueError(f"images must have at least {minimum} pixels a side, got {tuple(images.shape[-2:])}")
        pair = [batch.float().expand(-1, 3, -1, -1) for batch in (images, references)]
        return self._model(*pair, normalize=True).flatten()
