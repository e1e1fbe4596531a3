"""The bundled model on real photographs that scikit-learn ships: it loads by name, reconstructs, and uses its code."""

import json
import logging
from pathlib import Path

import diffusers
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.datasets import load_sample_image

from diffae_hub import (
    ConditionedUNet2DModel,
    DiffusionAutoencoderPipeline,
    SchedulerMixin,
    SemanticEncoderModel,
    VPDPMSolverMultistepScheduler,
)
from diffae_hub.metrics.psnr import peak_signal_to_noise_ratio
from diffae_hub.pretrained import bundled_model_path, list_models
from diffae_hub.publishing import repository_files
from diffae_hub.training.presets import preset_named

from .schedulers.test_compatibility import SOLVERS

NAME = "cifar10-32-small"


@pytest.fixture(scope="module")
def pipeline() -> DiffusionAutoencoderPipeline:
    return DiffusionAutoencoderPipeline.from_pretrained(NAME)


@pytest.fixture(scope="module")
def photographs(pipeline: DiffusionAutoencoderPipeline) -> torch.Tensor:
    pictures = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    return pipeline.image_processor.preprocess(pictures)


def psnr(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    return peak_signal_to_noise_ratio((images / 2 + 0.5).clamp(0, 1), references / 2 + 0.5)


def test_bundled_models_are_what_their_presets_say() -> None:
    assert list_models() == [NAME, "noto-emoji-64"]
    for name in list_models():
        preset, folder = preset_named(name), bundled_model_path(name)
        assert "_name_or_path" not in "".join(path.read_text() for path in folder.rglob("*.json"))
        for model_class, options in ((SemanticEncoderModel, preset.encoder), (ConditionedUNet2DModel, preset.decoder)):
            subfolder = "encoder" if model_class is SemanticEncoderModel else "decoder"
            config = model_class.from_pretrained(name, subfolder=subfolder).config
            assert {key: config[key] for key in options} == json.loads(json.dumps(dict(options)))
    with pytest.raises(ValueError, match=f"name.*{NAME}"):
        bundled_model_path("x")


def test_a_bundled_model_is_published_with_licence_and_attribution() -> None:
    for name, source in (("noto-emoji-64", "by Google"), ("cifar10-32-small", "CIFAR-10")):
        files, _ = repository_files(bundled_model_path(name), "me/mine", None, {})
        card = ModelCard(files["README.md"].decode())
        assert card.data.license == "apache-2.0"
        assert source in card.text
        assert {result.dataset_name for result in card.data.eval_results} != {None}
        assert not any("baseline" in result.metric_name for result in card.data.eval_results)
        psnrs = [result for result in card.data.eval_results if "PSNR" in result.metric_name]
        assert not any("training" in result.dataset_name for result in psnrs)


def test_inversion_is_nearly_exact(pipeline: DiffusionAutoencoderPipeline, photographs: torch.Tensor) -> None:
    output = pipeline(photographs / 2 + 0.5, mode="inversion", num_inference_steps=20, output_type="latent")
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


def test_solvers_of_diffusers_follow_the_flow_and_leave_inversion_alone(
    photographs: torch.Tensor, caplog, monkeypatch
) -> None:
    pipe, image = DiffusionAutoencoderPipeline.from_pretrained(NAME), photographs[:1] / 2 + 0.5
    code, noise = pipe.encode(image), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours, inverted = pipe.scheduler, pipe.invert(image, num_inference_steps=5)

    def decode(scheduler: SchedulerMixin, steps: int = 20) -> torch.Tensor:
        pipe.scheduler = scheduler
        return pipe.decode(code, noise, num_inference_steps=steps, output_type="latent").images

    # diffusers' logger does not propagate, but for its own tests.
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    flow = decode(VPDPMSolverMultistepScheduler.from_config(ours.config, lambda_max=5.0), 30)
    least = psnr(decode(ours), flow) - 0.3
    for name in SOLVERS:
        assert psnr(decode(getattr(diffusers, name).from_config(ours.config)), flow) > least, name
        assert "ignored" not in caplog.text
        assert torch.equal(pipe.invert(image, num_inference_steps=5), inverted)
    karras = diffusers.DPMSolverMultistepScheduler.from_config(ours.config, use_karras_sigmas=True)
    assert psnr(decode(karras), flow) > 35
    beta = diffusers.HeunDiscreteScheduler.from_config(ours.config, use_beta_sigmas=True)
    assert psnr(decode(beta), flow) > least
    assert psnr(decode(diffusers.DDPMScheduler.from_config(ours.config)), photographs[:1]) > 15


# ---- noto-emoji-64 -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji() -> DiffusionAutoencoderPipeline:
    return DiffusionAutoencoderPipeline.from_pretrained("noto-emoji-64")


@pytest.fixture(scope="module")
def judge(emoji: DiffusionAutoencoderPipeline) -> torch.Tensor:
    """A light face, of a family that is not in the training data."""
    picture = Image.open(Path(__file__).parents[1] / "examples" / "app" / "pictures" / "judge.png")
    return emoji.image_processor.preprocess(picture.convert("RGBA")) / 2 + 0.5


def test_an_emoji_comes_back(emoji: DiffusionAutoencoderPipeline, judge: torch.Tensor) -> None:
    output = emoji(judge, mode="inversion", num_inference_steps=10, output_type="pt")
    assert float(peak_signal_to_noise_ratio(output.images, judge)) > 45


def test_new_emoji_stand_on_white_and_are_not_all_alike(emoji: DiffusionAutoencoderPipeline) -> None:
    generator = torch.Generator().manual_seed(0)
    images = emoji.sample(4, generator, num_inference_steps=5, output_type="pt").images
    corners = torch.stack([images[..., row, column] for row in (0, 1) for column in (0, 1, -2, -1)])
    assert float(corners.median()) > 0.95
    assert torch.pdist(images.flatten(1)).square().median() / images[0].numel() > 0.03


def test_an_edit_darkens_the_skin_and_not_the_background(
    emoji: DiffusionAutoencoderPipeline, judge: torch.Tensor
) -> None:
    options = {"num_inference_steps": 10, "output_type": "pt"}
    images = emoji.edit(judge, {"dark skin tone": [0.0, 0.4, 0.8]}, **options).images
    cheek, background = images[:, :, 30:34, 14:18].mean(dim=(1, 2, 3)), images[:, :, :8, 54:].mean(dim=(1, 2, 3))
    assert cheek[0] > cheek[1] + 0.05
    assert cheek[1] > cheek[2] + 0.05
    assert (background > 0.95).all()
