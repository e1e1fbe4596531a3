"""Measures the images of a latent code model: Fréchet distance to the training images, and distance to the nearest.

    python benchmarks/measure_sampling.py mine train.parquet test.parquet --codes codes --output sampling

`--codes` are the training images' codes (`diffae-hub encode`). FD-VGG16 to the training images is measured for images
of the latent code model, for decoded Gaussian codes with the mean and covariance of the training codes, and for
held-out images. It falls with the number of images: compare equal numbers of them (`--num-images`).
`nearest` is the median distance (normalised codes) to the nearest training code over that of held-out images: a value
far below 1 says that the model copies. Writes figures.json and samples.png, which has each sample above the training
image of the nearest code. Needs the extra `eval`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset

from diffae_hub import DiffusionAutoencoderPipeline, VPDPMSolverMultistepScheduler, load_codes, nearest_codes
from diffae_hub.images import image_grid, to_pil
from diffae_hub.metrics.frechet import frechet_distance, vgg16_features

BATCH_SIZE = 50


def saved(images: torch.Tensor, folder: Path) -> list[Path]:
    """Writes images (N, C, H, W) in [0, 1] to files, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:05}.png" for index in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        to_pil(image).save(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="pipeline with a latent code model")
    parser.add_argument("train", metavar="TRAIN_PARQUET")
    parser.add_argument("test", metavar="TEST_PARQUET")
    parser.add_argument("--codes", required=True, help="codes of the training images")
    parser.add_argument("--num-images", type=int, default=3000, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps of DPM-Solver++ (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()

    pipe = DiffusionAutoencoderPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = VPDPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(options.seed)

    def images_of(file: str) -> torch.Tensor:
        rows = load_dataset("parquet", data_files=file, split="train")["image"]
        return torch.cat([pipe.image_processor.preprocess(image) for image in rows]) / 2 + 0.5

    train, test = images_of(options.train), images_of(options.test)
    test_codes = torch.cat([pipe.encode(batch) for batch in test.split(BATCH_SIZE)]).numpy()
    train_codes = load_codes(options.codes)["latent_code"].astype(np.float64)

    batches = [min(BATCH_SIZE, options.num_images - first) for first in range(0, options.num_images, BATCH_SIZE)]
    sampled = [pipe.sample(count, generator, options.steps, output_type="pt") for count in batches]
    codes = torch.cat([output.latent_code for output in sampled]).numpy()
    draw = np.random.default_rng(options.seed).multivariate_normal
    gaussian = draw(train_codes.mean(axis=0), np.cov(train_codes.T), options.num_images, check_valid="ignore")
    decoded = [
        pipe.decode(batch, num_inference_steps=options.steps, generator=generator, output_type="pt").images
        for batch in torch.from_numpy(gaussian).float().split(BATCH_SIZE)
    ]
    sets = {"latent_code_model": torch.cat([output.images for output in sampled]), "gaussian": torch.cat(decoded)}
    vectors = {"latent_code_model": codes, "gaussian": gaussian, "held_out": test_codes}
    files = {name: saved(images, options.output / name) for name, images in (sets | {"held_out": test}).items()}
    features = vgg16_features()
    references = features(saved(train, options.output / "train"))

    figures = {"model": Path(options.model).name, "steps": options.steps}
    typical = np.median(nearest_codes(train_codes, test_codes, 1, "euclidean")[0])
    for name, paths in files.items():
        distances, rows = nearest_codes(train_codes, vectors[name], 1, "euclidean")
        figures[name] = {
            "num_images": len(paths),
            "fd_vgg16": frechet_distance(features(paths), references),
            "nearest": float(np.median(distances) / typical),
        }
        print(name, figures[name], flush=True)
        if name == "latent_code_model":
            nearest = train[rows[:16, 0]]
            shown = [images for part in (slice(8), slice(8, 16)) for images in (sets[name][part], nearest[part])]
            image_grid(torch.cat(shown), columns=8).save(options.output / "samples.png")
    (options.output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
