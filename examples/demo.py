"""The main job on two real photographs: encode, decode, and look, with the bundled model and no network.

    python examples/demo.py --output demo_output

Each photograph (they come with scikit-learn) is taken in overlapping tiles of 32x32 pixels. A tile becomes a latent
code of 512 numbers; the decoder turns the codes back into the photograph, once from random noise (stochastic
autoencoding: the picture shows what the codes alone hold) and once from the noise that the photograph itself leads to
(inversion: nearly exact).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from diffae_hub import DiffusionAutoencoderPipeline, VPDDIMScheduler, VPDPMSolverMultistepScheduler
from diffae_hub.images import film_strip, pil_to_array
from diffae_hub.metrics.psnr import peak_signal_to_noise_ratio

STEPS = 10  # the paper's solver needs 50 for as much from random noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--model", default="cifar10-32-small")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(arguments.model)
    for network in (pipeline.encoder, pipeline.decoder):
        network.to(memory_format=torch.channels_last)  # faster
    pipeline.enable_tiling()
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    for name in ("china.jpg", "flower.jpg"):
        photograph = Image.fromarray(load_sample_image(name))
        original = torch.from_numpy(pil_to_array(photograph, size=(224, 144))).permute(2, 0, 1)
        pictures = [original]
        for mode, solver in (("stochastic", VPDPMSolverMultistepScheduler), ("inversion", VPDDIMScheduler)):
            pipeline.scheduler = solver.from_config(pipeline.scheduler.config)
            output = pipeline(
                original,
                mode=mode,
                num_inference_steps=STEPS,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            )
            pictures.append(output.images[0])
            psnr = float(peak_signal_to_noise_ratio(pictures[-1][None], pictures[0][None]))
            print(f"{name}: {len(output.latent_code)} tiles, {mode}: PSNR {psnr:.2f} dB")
        path = arguments.output / f"{Path(name).stem}.png"
        film_strip(pictures).save(path)
        print(f"  original | stochastic | inversion: {path.resolve()}")
    print(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
