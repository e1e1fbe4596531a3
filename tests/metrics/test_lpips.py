"""LPIPS against torchmetrics' own, with locally made random trunks."""

from pathlib import Path

import pytest
import torch
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

from diffae_hub.metrics.lpips import PerceptualDistance

from .conftest import photograph_pair


@pytest.mark.parametrize(("network", "minimum"), [("alex", 31), ("vgg", 16)])
def test_equals_torchmetrics(network: str, minimum: int, torch_home: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    distance = PerceptualDistance(network)
    images, references = (batch.float() for batch in photograph_pair(minimum, 45))
    mean = learned_perceptual_image_patch_similarity(images, references, network, normalize=True)
    torch.testing.assert_close(distance(images, references).mean(), mean, rtol=1e-4, atol=1e-6)
    alone = torch.cat([distance(images[k : k + 1], references[k : k + 1]) for k in range(2)])
    torch.testing.assert_close(distance(images, references), alone)
    assert distance(references, references).abs().max() == 0
    gray = [batch[:, :1] for batch in (images, references)]
    torch.testing.assert_close(distance(*gray), distance(*(batch.repeat(1, 3, 1, 1) for batch in gray)))
    assert not distance(images.requires_grad_(), references).requires_grad
    for other in (references[..., 1:, :], references):  # nothing would be left of them in the network
        with pytest.raises(ValueError, match="images"):
            distance(images[..., 1:, :], other)
