"""Measures quality against network evaluations, for decoding and for round trips, and writes steps.json.

    python benchmarks/measure_steps.py test.parquet --num-images 2000 --num-long 250

"From the code alone" decodes random noise, the same for all rows. `distance_db` is the PSNR to the converged image of
100 DPM-Solver steps from the same noise. The distance and round trips, which take long, are measured on the
first `--num-long` images. A round trip inverts in K steps and decodes in K steps; its evaluations include both.
"plain" is the paper's inversion, "predictor_corrector" is this package's. Needs the extra `eval`, and the weights of
LPIPS-Alex and VGG16. `python docs/figures.py` then draws the plot of the page "How many steps".
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path

import torch
from datasets import load_dataset
from tqdm import tqdm

from diffae_hub import DiffusionAutoencoderPipeline, VPDDIMScheduler, VPDPMSolverMultistepScheduler
from diffae_hub.images import to_pil
from diffae_hub.metrics.frechet import Features, frechet_distance, vgg16_features
from diffae_hub.metrics.lpips import PerceptualDistance
from diffae_hub.metrics.psnr import peak_signal_to_noise_ratio
from diffae_hub.metrics.sharpness import high_pass_energy

SOLVERS = {"ddim": VPDDIMScheduler, "dpmsolver": VPDPMSolverMultistepScheduler}
CONVERGED_STEPS, BATCH_SIZE = 100, 50


def decode(pipe: DiffusionAutoencoderPipeline, codes, noise, solver: str, steps: int) -> torch.Tensor:
    """Decodes codes and noise to images (N, C, H, W) in [0, 1]."""
    pipe.scheduler = SOLVERS[solver].from_config(pipe.scheduler.config)
    batches = zip(codes.split(BATCH_SIZE), noise.split(BATCH_SIZE), strict=True)
    return torch.cat([pipe.decode(*batch, num_inference_steps=steps, output_type="pt").images for batch in batches])


def invert(pipe: DiffusionAutoencoderPipeline, images, codes, inversion: str, steps: int) -> torch.Tensor:
    """Inverts images to x_T."""
    batches = zip(images.split(BATCH_SIZE), codes.split(BATCH_SIZE), strict=True)
    return torch.cat([pipe.invert(*batch, num_inference_steps=steps, inversion=inversion) for batch in batches])


def features_of(images: torch.Tensor, features: Features) -> torch.Tensor:
    """Computes features, which are those of image files."""
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / f"{index:05}.png" for index in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            to_pil(image).save(path)
        return features(paths)


def figures(images: torch.Tensor, originals: torch.Tensor, lpips: PerceptualDistance) -> dict[str, float]:
    """Measures reconstructions, rounded to 8 bits as in files."""
    images = (images * 255).round() / 255
    distances = [lpips(*pair) for pair in zip(images.split(100), originals.split(100), strict=True)]
    return {
        "psnr_db": float(peak_signal_to_noise_ratio(images, originals).mean()),
        "lpips": float(torch.cat(distances).mean()),
        "high_pass_energy": float(high_pass_energy(images).sum() / high_pass_energy(originals).sum()),
    }


def main() -> None:
    """Measures all rows, and writes the file again after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="PARQUET", help="images, in a column `image`")
    parser.add_argument("--model", default="cifar10-32-small", metavar="NAME_OR_PATH", help="(default: %(default)s)")
    parser.add_argument("--num-images", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--num-long", type=int, default=250, help="images for what takes long (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 10, 15, 20, 50], help="(default: %(default)s)")
    parser.add_argument("--dataset", default="", help="name of the data on the page (default: the file's name)")
    parser.add_argument("--hardware", default="a CPU", help="name of the machine on the page")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("steps.json"), metavar="FILE")
    options = parser.parse_args()

    pipe = DiffusionAutoencoderPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.decoder.to(memory_format=torch.channels_last)
    rows = load_dataset("parquet", data_files=options.data, split=f"train[:{options.num_images}]")["image"]
    originals = torch.cat([pipe.image_processor.preprocess(image) for image in rows]) / 2 + 0.5
    codes = torch.cat([pipe.encode(batch) for batch in originals.split(BATCH_SIZE)])
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(0))
    long = slice(options.num_long)
    converged = decode(pipe, codes[long], noise[long], "dpmsolver", CONVERGED_STEPS)
    lpips, features = PerceptualDistance(), vgg16_features()
    references = features_of(originals, features)
    document = {
        "model": options.model,
        "dataset": options.dataset or Path(options.data).name,
        "hardware": options.hardware,
        "command": shlex.join(["python", *sys.argv]).replace(options.data, Path(options.data).name),
        "rows": [],
    }

    def add(mode: str, solver: str, evaluations: int, images: torch.Tensor, **more: float) -> None:
        measured = figures(images, originals[: len(images)], lpips)
        measured["fd_vgg16"] = frechet_distance(features_of(images, features), references[: len(images)])
        row = {"mode": mode, "solver": solver, "evaluations": evaluations, "num_images": len(images)}
        document["rows"].append({**row, **measured, **more})
        options.output.write_text(json.dumps(document, indent=2) + "\n")

    for steps in tqdm(options.steps, "from the code alone"):
        for solver in SOLVERS:
            images = decode(pipe, codes, noise, solver, steps)
            distance = float(peak_signal_to_noise_ratio(images[long], converged).mean())
            add("from the code alone", solver, steps, images, distance_db=distance)
    images, codes = originals[long], codes[long]
    for inversion, extra in (("predictor_corrector", 1), ("plain", 0)):
        for steps in tqdm(options.steps, f"round trips, {inversion}"):
            x_t = invert(pipe, images, codes, inversion, steps)
            add("round trip", inversion, 2 * steps + extra, decode(pipe, codes, x_t, "ddim", steps))


if __name__ == "__main__":
    main()
