"""The folder of an evaluation, where its three steps meet.

    options.json                the options of the last run
    settings.json               what the reconstructions depend on; settings_*.json: the same for a part of them
    originals/0000000.png       each image as the model gets it
    stochastic/0000000.png      its reconstruction, one folder per method: stochastic, inversion, mean_image, pca, ...
    scores_stochastic_0.jsonl   PSNR, SSIM and high-pass energy per image, one file per process
    path_lengths_100_0.jsonl    perceptual path length per pair of images
    codes_train, codes_test     latent codes and labels, for the probe
    interpolation_10000.png     interpolations between some of the first 10,000 images
    run.json                    the model's size, the machine
    report.json, report.md      figures and page

An evaluation can be continued: an image counts as done if its scores are there, which are written after its files.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import append_json_lines, read_json_lines, write_png
from ..images import read_image, to_pil
from ..metrics.psnr import peak_signal_to_noise_ratio
from ..metrics.sharpness import high_pass_energy
from ..metrics.ssim import structural_similarity
from .options import EvaluationOptions

ORIGINALS = "originals"
# The PSNR of an image that equals its original: an infinite one would spoil the mean, and JSON has no number for it.
PSNR_LIMIT_DB = 100.0


def batches(indices: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    """Yields the indices in slices of at most `batch_size`."""
    for first in range(0, len(indices), batch_size):
        yield indices[first : first + batch_size]


def image_pairs(count: int, num_pairs: int, seed: int) -> list[tuple[int, int]]:
    """Draws pairs of different images by the seed, no pair twice; a longer list begins with the shorter one."""
    random, pairs = np.random.default_rng(seed), {}
    while len(pairs) < min(num_pairs, count * (count - 1) // 2):
        pair = random.choice(count, size=2, replace=False).tolist()
        pairs.setdefault(frozenset(pair), tuple(pair))
    return list(pairs.values())


class EvaluationFolder:
    """Images and records of an evaluation; each process writes its own files of records."""

    def __init__(self, path: Path, process_index: int = 0) -> None:
        self.path = path
        self.process_index = process_index

    def file(self, method: str, index: int) -> Path:
        """The PNG file of an image. `ORIGINALS` is a method, too."""
        return self.path / method / f"{index:07d}.png"

    def read(self, method: str, indices: Sequence[int]) -> torch.Tensor:
        """Reads images from their PNG files: (B, C, H, W) in [0, 1]."""
        arrays = [np.atleast_3d(np.array(read_image(self.file(method, index)))) for index in indices]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255

    def scores(self, method: str) -> dict[int, dict[str, float]]:
        """Reads scores by index, in order: `psnr_db`, `ssim`, `high_pass`, `high_pass_original`, for JPEG `bytes`."""
        records = sorted(self.records(f"scores_{method}"), key=lambda record: record["index"])
        return {record["index"]: record for record in records}

    def add(
        self,
        method: str,
        indices: Sequence[int],
        originals: torch.Tensor,
        reconstructions: torch.Tensor,
        sizes: Sequence[int] | None = None,
    ) -> None:
        """Scores a batch (B, C, H, W), float, in [0, 1], and writes its files and scores.

        The scores are computed on floats, PSNR up to 100 dB; the PNG files hold both images rounded to 8 bits. `sizes`
        are the bytes of each compressed image, for methods that compress.
        """
        columns = {
            "psnr_db": peak_signal_to_noise_ratio(reconstructions, originals).clamp(max=PSNR_LIMIT_DB),
            "ssim": structural_similarity(reconstructions, originals),
            "high_pass": high_pass_energy(reconstructions),
            "high_pass_original": high_pass_energy(originals),
        }
        if sizes is not None:
            columns["bytes"] = sizes
        for name, images in ((ORIGINALS, originals), (method, reconstructions)):
            (self.path / name).mkdir(exist_ok=True)
            for index, image in zip(indices, images, strict=True):
                path = self.file(name, index)
                if name == method or not path.is_file():
                    write_png(path, to_pil(image), compress_level=1)
        records = [
            {"index": index, **{name: float(values[row]) for name, values in columns.items()}}
            for row, index in enumerate(indices)
        ]
        self.append(f"scores_{method}", records)

    def append(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds records to this process's file of that name."""
        append_json_lines(self.path / f"{name}_{self.process_index}.jsonl", records)

    def records(self, name: str) -> list[dict[str, Any]]:
        """Reads the records of that name, of all processes, without half-written lines, which are made again."""
        return [record for path in sorted(self.path.glob(f"{name}_*.jsonl")) for record in read_json_lines(path)]

    def path_lengths(self, options: EvaluationOptions, count: int) -> dict[tuple[int, int], dict[str, Any]]:
        """Reads the wanted pairs that are measured: `path_length` and, for a fade between both images, `cross_fade`."""
        records = self.records(f"path_lengths_{options.path_length_intervals}")
        found = {tuple(record["images"]): record for record in records}
        pairs = image_pairs(count, options.path_length_pairs, options.seed)  # they depend on the number of images
        return {pair: found[pair] for pair in pairs if pair in found}

    def interpolation(self, count: int) -> Path:
        """The picture of interpolations between some of the first `count` images."""
        return self.path / f"interpolation_{count}.png"
