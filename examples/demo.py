"""Encodes, decodes and edits real pictures with the bundled models, offline.

    python examples/demo.py --output demo_output

Two photographs, which come with scikit-learn, go through `cifar10-32-small` in overlapping tiles of 32x32 pixels. Each
tile becomes a latent code of 512 numbers. The decoder turns the codes back into the photograph, once from random noise
(stochastic autoencoding, which shows what the codes alone hold) and once from the photograph's own noise (inversion,
which is nearly exact).

Six emoji that `noto-emoji-64` has never seen are reconstructed, given another skin tone, and interpolated;
six new ones are drawn.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from diffae_hub import DiffusionAutoencoderPipeline, VPDDIMScheduler, VPDPMSolverMultistepScheduler
from diffae_hub.devices import load_pipeline
from diffae_hub.images import film_strip, image_grid, pil_to_array
from diffae_hub.metrics.psnr import peak_signal_to_noise_ratio

STEPS = 10  # from random noise, the paper's solver needs 50 for the same quality
EMOJI = Path(__file__).parent / "app" / "pictures"


def main() -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    photographs(load("cifar10-32-small"), output)
    emoji(load("noto-emoji-64"), output)
    print(f"done in {time.perf_counter() - started:.0f} s")


def load(model: str) -> DiffusionAutoencoderPipeline:
    """Loads a bundled model, with progress bars if the output is a terminal."""
    pipeline = load_pipeline(model, torch.device("cpu"))
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return pipeline


def photographs(pipeline: DiffusionAutoencoderPipeline, output: Path) -> None:
    """Draws each photograph: the original, from the codes alone, and by inversion."""
    pipeline.enable_tiling()
    for name in ("china.jpg", "flower.jpg"):
        photograph = Image.fromarray(load_sample_image(name))
        original = torch.from_numpy(pil_to_array(photograph, size=(224, 144))).permute(2, 0, 1)
        pictures = [original]
        for mode, solver in (("stochastic", VPDPMSolverMultistepScheduler), ("inversion", VPDDIMScheduler)):
            pipeline.scheduler = solver.from_config(pipeline.scheduler.config)
            made = pipeline(original, mode, STEPS, torch.Generator().manual_seed(0), output_type="pt")
            pictures.append(made.images[0])
            psnr = float(peak_signal_to_noise_ratio(pictures[-1][None], pictures[0][None]))
            print(f"{name}: {len(made.latent_code)} tiles, {mode}: PSNR {psnr:.2f} dB")
        path = output / f"{Path(name).stem}.png"
        film_strip(pictures).save(path)
        print(f"  original | stochastic | inversion: {path.resolve()}")


def emoji(pipeline: DiffusionAutoencoderPipeline, output: Path) -> None:
    """Draws rows of six: originals, from the code alone, round trips, two edits, an interpolation, samples."""
    names = ("judge", "princess", "vampire", "woman", "heart_eyes", "panda")
    images = [Image.open(EMOJI / f"{name}.png").convert("RGBA") for name in names]
    original = torch.cat([pipeline.image_processor.preprocess(image) for image in images]) / 2 + 0.5
    strengths = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    options = {"num_inference_steps": STEPS, "output_type": "pt"}
    round_trip = pipeline(original, "inversion", **options).images
    rows = [original, round_trip]
    for index, attribute in ((2, "medium-dark skin tone"), (1, "light skin tone")):
        rows.append(pipeline.edit(original[index], {attribute: strengths}, **options).images)
    rows.append(pipeline.interpolate(original[:2], num_frames=6, **options).images)
    pipeline.scheduler = VPDPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    rows.insert(1, pipeline(original, "stochastic", generator=torch.Generator().manual_seed(0), **options).images)
    rows.append(pipeline.sample(6, torch.Generator().manual_seed(0), **options).images)
    psnr = float(peak_signal_to_noise_ratio(round_trip, original).mean())
    print(f"emoji, inversion: PSNR {psnr:.2f} dB")
    path = output / "emoji.png"
    image_grid(torch.cat(rows), 6).save(path)
    print(f"  original, from the code alone, round trip, two edits, interpolation, samples: {path.resolve()}")


if __name__ == "__main__":
    main()
