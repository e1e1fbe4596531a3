"""The bundled model on real photographs that scikit-learn ships: it loads by name, reconstructs, and uses its code."""

from __future__ import annotations

from pathlib import Path

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
    assert list_models() == [NAME, "noto-emoji-64"]
    weights = [file for name in list_models() for file in bundled_model_path(name).rglob("*.safetensors")]
    assert sum(file.stat().st_size for file in weights) < 45e6
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


# ---- noto-emoji-64 -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji() -> DiffusionAutoencoderPipeline:
    pipeline = DiffusionAutoencoderPipeline.from_pretrained("noto-emoji-64")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def judge(emoji: DiffusionAutoencoderPipeline) -> torch.Tensor:
    """A light face, of a family that is not in the training data."""
    picture = Image.open(Path(__file__).parents[1] / "examples" / "app" / "pictures" / "judge.png")
    return emoji.image_processor.preprocess(picture.convert("RGBA")) / 2 + 0.5


def test_emoji_is_what_the_preset_says(emoji: DiffusionAutoencoderPipeline) -> None:
    preset = preset_named("noto-emoji-64")
    for model, configuration in ((emoji.encoder, preset.encoder), (emoji.decoder, preset.decoder)):
        for key, value in configuration.items():
            assert model.config[key] == (list(value) if isinstance(value, tuple) else value)
    for path in bundled_model_path("noto-emoji-64").rglob("*.json"):
        assert "_name_or_path" not in path.read_text()


def test_an_emoji_comes_back(emoji: DiffusionAutoencoderPipeline, judge: torch.Tensor) -> None:
    output = emoji(judge, mode="inversion", num_inference_steps=10, output_type="pt")
    assert float(peak_signal_to_noise_ratio(output.images, judge)) > 45


def test_an_edit_darkens_the_skin_and_not_the_background(
    emoji: DiffusionAutoencoderPipeline, judge: torch.Tensor
) -> None:
    options = {"num_inference_steps": 10, "output_type": "pt"}
    images = emoji.edit(judge, {"dark skin tone": [0.0, 0.4, 0.8]}, **options).images
    cheek, background = images[:, :, 30:34, 14:18].mean(dim=(1, 2, 3)), images[:, :, :8, 54:].mean(dim=(1, 2, 3))
    assert cheek[0] > cheek[1] + 0.05
    assert cheek[1] > cheek[2] + 0.05
    assert (background > 0.95).all()
