"""A real training, from image files to a pipeline: two phases on scikit-learn's handwritten digits.

1,500 images of 8 x 8 pixels are trained on for 32,000 examples (21 epochs); 150 others are reconstructed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.training.checkpoints import load_checkpoint

from .runner import arguments, run

_COMMON = {
    "sample_size": 8,
    "in_channels": 1,
    "latent_dim": 16,
    "base_channels": 16,
    "channel_multipliers": [1, 2],
    "layers_per_block": 1,
    "attention_resolutions": [],
    "norm_num_groups": 8,
}
EXPERIMENT = {
    "encoder": {**_COMMON, "latent_head": "flatten"},
    "decoder": {**_COMMON, "out_channels": 1, "time_embed_dim": 64, "dropout": 0.0, "latent_spatial_size": 4},
    "batch_size": 64,
    "training_examples": 32_000,
    "warmup_examples": 1_280,
    "learning_rate": 2e-3,
    "ema_decay": 0.995,
    "horizontal_flip": False,
}
END_OF_PHASE_1 = 8_000
STEPS = 20


class Trained(NamedTuple):
    training: np.ndarray  # (1500, 8, 8), in [0, 1]
    held_out: np.ndarray  # (150, 8, 8), in [0, 1]
    pipeline: DiffusionAutoencoderPipeline
    phase_1: DiffusionAutoencoderPipeline  # with the averaged weights at the end of phase 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    digits = load_digits().images / 16
    training, held_out = digits[:1500], digits[1500:1650]
    base = tmp_path_factory.mktemp("digits")
    images = base / "images"
    images.mkdir()
    for index, digit in enumerate(training):
        Image.fromarray((digit * 255).round().astype(np.uint8)).save(images / f"{index:04d}.png")
    flags = (f"--checkpoint-every={END_OF_PHASE_1}", "--keep-checkpoints=9", "--log-every=8000")
    code, text = run(arguments(images, base / "run", *flags, **EXPERIMENT))
    assert code == 0, text

    pipeline, phase_1 = (DiffusionAutoencoderPipeline.from_pretrained(base / "run" / "pipeline") for _ in range(2))
    state = load_checkpoint(base / "run" / f"checkpoint-{END_OF_PHASE_1}.pt")
    averaged = dict(zip(state["model"], state["ema"]["shadow_params"], strict=True))
    for component in ("encoder", "decoder"):
        weights = {n.removeprefix(f"{component}."): w for n, w in averaged.items() if n.startswith(component)}
        getattr(phase_1, component).load_state_dict(weights)
    for pipe in (pipeline, phase_1):
        pipe.set_progress_bar_config(disable=True)
    return Trained(training, held_out, pipeline, phase_1)


def as_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).float()[:, None]


def as_array(output: object) -> np.ndarray:
    return output.images[:, 0].double().numpy()


def mean_psnr(images: np.ndarray, references: np.ndarray) -> float:
    return float((-10 * np.log10(((images - references) ** 2).mean(axis=(1, 2)))).mean())


def fine_energy(images: np.ndarray) -> float:
    """Energy of the spatial frequencies 3 and 4 (of at most 4), where blur takes effect."""
    frequency = np.abs(np.fft.fftfreq(8) * 8)
    fine = np.maximum(frequency[:, None], frequency[None]) >= 3
    return float((np.abs(np.fft.fft2(images)) ** 2)[:, fine].sum())


@pytest.fixture(scope="module")
def reconstructed(trained: Trained) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return as_array(
        trained.pipeline(as_tensor(trained.held_out), num_inference_steps=STEPS, generator=generator, output_type="pt")
    )


def test_stochastic_reconstruction(trained: Trained, reconstructed: np.ndarray) -> None:
    """16 numbers for 64 pixels: above 15.5 dB, where the mean image has 11.4."""
    mean_image = np.broadcast_to(trained.training.mean(axis=0), trained.held_out.shape)
    baseline, psnr = mean_psnr(mean_image, trained.held_out), mean_psnr(reconstructed, trained.held_out)
    assert baseline == pytest.approx(11.4, abs=0.1)
    assert psnr > 15.5
    assert psnr > baseline + 4


def test_inverted_reconstruction_is_nearly_exact(trained: Trained) -> None:
    output = trained.pipeline(
        as_tensor(trained.held_out), mode="inversion", num_inference_steps=STEPS, output_type="pt"
    )
    assert mean_psnr(as_array(output), trained.held_out) > 28


def test_the_latent_code_is_used(trained: Trained, reconstructed: np.ndarray) -> None:
    """Decoding with another image's code, from the same noise, is clearly worse: by more than 5 dB."""
    codes = trained.pipeline.encode(as_tensor(trained.held_out))
    generator = torch.Generator().manual_seed(0)
    output = trained.pipeline.decode(
        codes.roll(1, dims=0), num_inference_steps=STEPS, generator=generator, output_type="pt"
    )
    other = as_array(output)
    assert mean_psnr(other, trained.held_out) < mean_psnr(reconstructed, trained.held_out) - 5


def test_phase_2_is_sharper_than_phase_1(trained: Trained, reconstructed: np.ndarray) -> None:
    """Fine detail, as a share of the originals' energy: below 0.65 after phase 1, which averages, above 0.8 at last."""
    generator = torch.Generator().manual_seed(0)
    output = trained.phase_1(as_tensor(trained.held_out), num_inference_steps=1, generator=generator, output_type="pt")
    blurred = as_array(output)
    # Phase 1 has learned to reconstruct; what it lacks is the detail.
    assert mean_psnr(blurred, trained.held_out) > 14.5
    original = fine_energy(trained.held_out)
    assert fine_energy(blurred) / original < 0.65
    assert 0.8 < fine_energy(reconstructed) / original < 1.2
