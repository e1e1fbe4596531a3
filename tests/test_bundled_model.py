"""The bundled model on real photographs that scikit-learn ships: it loads by name, reconstructs, and uses its code."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.metrics.psnr import peak_signal_to_noise_ratio
from diffae_hub.pretrained import bundled_model_path, list_models
from diffae_hub.training.presets import preset_named

NAME = "cifar10-32-small"


@pytest.fixture(scope="module")
def pipeline() -> DiffusionAutoencoderPipeline:
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(NAME)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def photographs(pipeline: DiffusionAutoencoderPipeline) -> torch.Tensor:
    pictures = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    return pipeline.image_processor.preprocess(pictures)


def psnr(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    return peak_signal_to_noise_ratio((images / 2 + 0.5).clamp(0, 1), references / 2 + 0.5)


def test_is_what_the_preset_says(pipeline: DiffusionAutoencoderPipeline) -> None:
    assert list_models() == [NAME]
    assert sum(file.stat().st_size for file in bundled_model_path(NAME).rglob("*.safetensors")) < 30e6
    with pytest.raises(ValueError, match=f"name.*{NAME}"):
        bundled_model_path("x")
    preset = preset_named(NAME)
    for model, configuration in ((pipeline.encoder, preset.encoder), (pipeline.decoder, preset.decoder)):
        for key, value in configuration.items():
            assert model.config[key] == (list(value) if isinstance(value, tuple) else value)
    config = pipeline.scheduler.config
    assert (config.noise_schedule, config.scaling_factor, config.prediction_type) == (
        "shifted_cosine", 4.0, "v_prediction",
    )  # fmt: skip


def test_inversion_is_nearly_exact(pipeline: DiffusionAutoencoderPipeline, photographs: torch.Tensor) -> None:
    output = pipeline(photographs / 2 + 0.5, mode="inversion", num_inference_steps=30, output_type="latent")
    assert (psnr(output.images, photographs) > 35).all()


def test_stochastic_reconstruction_beats_the_mean_colour_and_another_images_code(
    pipeline: DiffusionAutoencoderPipeline, photographs: torch.Tensor
) -> None:
    options = {"num_inference_steps": 10, "output_type": "latent"}
    output = pipeline(photographs / 2 + 0.5, generator=torch.Generator().manual_seed(0), **options)
    own = psnr(output.images, photographs)
    mean_colour = psnr(photographs.mean(dim=(2, 3), keepdim=True).expand_as(photographs), photographs)
    assert (own > mean_colour + 3).all()
    swapped = pipeline.decode(output.latent_code.flip(0), noise=output.noise, **options).images
    assert (own > psnr(swapped, photographs) + 5).all()
