"""A real training, from image files to a pipeline: two phases on scikit-learn's handwritten digits.

The training takes 19,200 examples (13 epochs) of 1,500 images of 8 x 8 pixels; 150 others are reconstructed.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from diffae_hub import DiffusionAutoencoderPipeline

from .runner import TINY_EXPERIMENT, arguments, run

NETWORK = {"latent_dim": 16, "base_channels": 16, "norm_num_groups": 8}
DECODER = {"time_embed_dim": 64, "dropout": 0.0, "latent_spatial_size": 4}
EXPERIMENT = {
    "encoder": {**TINY_EXPERIMENT["encoder"], **NETWORK, "latent_head": "flatten"},
    "decoder": {**TINY_EXPERIMENT["decoder"], **NETWORK, **DECODER},
}
EXPERIMENT |= {"batch_size": 64, "training_examples": 19_200, "warmup_examples": 640, "learning_rate": 2e-3}
EXPERIMENT |= {"ema_decay": 0.99, "horizontal_flip": False}


def mean_psnr(images: np.ndarray, references: np.ndarray) -> float:
    return float((-10 * np.log10(((images - references) ** 2).mean(axis=(1, 2)))).mean())


def as_array(output: object) -> np.ndarray:
    return output.images[:, 0].double().numpy()


def test_two_phases_on_digits(tmp_path: Path) -> None:
    digits = load_digits().images / 16
    training, held_out = digits[:1500], digits[1500:1650]
    images = tmp_path / "images"
    images.mkdir()
    for index, digit in enumerate(training):
        Image.fromarray((digit * 255).round().astype(np.uint8)).save(images / f"{index:04d}.png")
    run(arguments(images, tmp_path / "run", "--checkpoint-every=19200", "--log-every=4800", **EXPERIMENT))
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    originals = torch.from_numpy(held_out).float()[:, None]

    def noise() -> dict[str, object]:
        return {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}

    # 16 numbers for 64 pixels, against the mean image's 11.4 dB.
    baseline = mean_psnr(np.broadcast_to(training.mean(axis=0), held_out.shape), held_out)
    stochastic = as_array(pipeline(originals, num_inference_steps=20, **noise()))
    assert mean_psnr(stochastic, held_out) > baseline + 2
    # Inverted, nearly exact.
    inverted = as_array(pipeline(originals, mode="inversion", num_inference_steps=20, **noise()))
    assert mean_psnr(inverted, held_out) > 28
    # With another image's code, from the same noise, clearly worse.
    codes = pipeline.encode(originals).roll(1, dims=0)
    other = as_array(pipeline.decode(codes, num_inference_steps=20, **noise()))
    assert mean_psnr(other, held_out) < mean_psnr(stochastic, held_out) - 4
