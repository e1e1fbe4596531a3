"""`pipe.sample`: codes from the latent code model, then images."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from diffae_hub import DiffusionAutoencoderPipeline, LatentCodeModel, VPDDIMScheduler

from ..conftest import randomize

LATENT_SCHEDULER = {
    "noise_schedule": "constant_beta",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}


@pytest.fixture
def generative(tiny_pipeline) -> DiffusionAutoencoderPipeline:
    torch.manual_seed(0)
    model = randomize(LatentCodeModel(8, hidden_dim=16, num_layers=3, time_sinusoid_dim=8, time_embed_dim=12))
    model.latent_mean.copy_(torch.randn(8))
    model.latent_std.copy_(torch.rand(8) + 0.5)
    pipeline = DiffusionAutoencoderPipeline(
        **tiny_pipeline.components
        | {"latent_code_model": model, "latent_scheduler": VPDDIMScheduler(**LATENT_SCHEDULER)}
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_codes_follow_the_official_rule(generative) -> None:
    """DDIM on constant beta 0.008, indices 0, s, 2s ..., written out in float64; codes are denormalised after it."""
    steps = 20
    output = generative.sample(
        3, generator=torch.Generator().manual_seed(5), num_inference_steps=2, latent_num_inference_steps=steps,
        output_type="latent",
    )  # fmt: skip
    model = generative.latent_code_model.double()
    generator = torch.Generator().manual_seed(5)
    code = torch.randn(3, 8, generator=generator).double()
    for index in reversed(range(0, 1000, 50)):
        alpha_bar = (1 - 0.008) ** (index + 1)
        before = (1 - 0.008) ** (index - 50 + 1) if index else 1.0
        noise = model(code, float(index)).sample
        clean = (code - math.sqrt(1 - alpha_bar) * noise) / math.sqrt(alpha_bar)
        code = math.sqrt(before) * clean + math.sqrt(1 - before) * noise
    expected = code * model.latent_std + model.latent_mean
    torch.testing.assert_close(output.latent_code.double(), expected, atol=1e-3, rtol=1e-3)
    noise = torch.randn(3, 3, 16, 16, generator=generator)  # the images' noise comes after the codes'
    torch.testing.assert_close(output.noise, noise)
    decoded = generative.decode(output.latent_code, noise=noise, num_inference_steps=2, output_type="latent").images
    torch.testing.assert_close(output.images, decoded)


def test_perfect_latent_model_of_gaussian_codes_gives_their_statistics(generative) -> None:
    """For normally distributed codes the best noise prediction is sigma z_t: sampling must give N(mean, std) back."""
    model = generative.latent_code_model

    class Optimal(LatentCodeModel):
        def forward(self, sample, timestep, return_dict=True):
            return (math.sqrt(1 - (1 - 0.008) ** (float(timestep) + 1)) * sample,)

    optimal = Optimal(8, hidden_dim=16, num_layers=3, time_sinusoid_dim=8, time_embed_dim=12)
    optimal.load_state_dict(model.state_dict())
    generative.latent_code_model = optimal
    codes = generative.sample(
        2000, generator=torch.Generator().manual_seed(0), num_inference_steps=1, latent_num_inference_steps=250,
        output_type="latent",
    ).latent_code  # fmt: skip
    torch.testing.assert_close(codes.mean(dim=0), model.latent_mean, atol=0.1, rtol=0)
    torch.testing.assert_close(codes.std(dim=0), model.latent_std, atol=0.0, rtol=0.1)


def test_survives_saving_and_one_generator_per_image(generative, tmp_path: Path) -> None:
    generative.save_pretrained(tmp_path)
    loaded = DiffusionAutoencoderPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)

    def images(pipeline, seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline.sample(
            len(seeds), generator=generators, num_inference_steps=2, latent_num_inference_steps=2, output_type="pt"
        ).images

    both = images(generative, [1, 2])
    assert torch.equal(images(loaded, [1, 2]), both)
    torch.testing.assert_close(images(generative, [2])[0], both[1], atol=1e-4, rtol=0)


def test_bad_input(tiny_pipeline, generative) -> None:
    with pytest.raises(ValueError, match="latent_code_model"):
        tiny_pipeline.sample(1)
    with pytest.raises(ValueError, match="num_images"):
        generative.sample(0)
    with pytest.raises(ValueError, match="generator"):
        generative.sample(2, generator=[torch.Generator()])
    with pytest.raises(ValueError, match="num_inference_steps"):
        generative.sample(1, latent_num_inference_steps=60)
