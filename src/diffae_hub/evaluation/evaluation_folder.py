"""The folder of an evaluation: originals and reconstructions as PNG files, PSNR and SSIM per image.

    settings.json               what the reconstructions depend on; settings_*.json likewise, of a part
    originals/0000000.png       each image as the model gets it
    stochastic/0000000.png      its reconstruction, one folder per method: stochastic, inversion, mean_image, pca, ...
    scores_stochastic_0.jsonl   PSNR and SSIM per image, one file per process

The folder can be continued: an image counts as done once its scores are written, which happens after its files are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..files import SETTINGS, check_new_or_continued, keep_settings, write_png
from ..metrics.psnr import peak_signal_to_noise_ratio
from ..metrics.ssim import structural_similarity

ORIGINALS = "originals"
# What an image that equals its original counts with: an infinite figure has no mean, and JSON no number for it.
PSNR_LIMIT_DB = 100.0


def batches(indices: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    """The indices in slices of at most `batch_size`."""
    for first in range(0, len(indices), batch_size):
        yield indices[first : first + batch_size]


class EvaluationFolder:
    """Opens or makes the folder of an evaluation.

    Args:
        folder: Where it is.
        settings: What the reconstructions depend on, as JSON values; the same each time the folder is opened.
        process_index: The process that writes; each has its own file of scores.

    Raises:
        ValueError: If the folder holds another evaluation, or files that are not an evaluation.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], process_index: int = 0) -> None:
        self.folder = folder
        self.process_index = process_index
        if process_index == 0:
            check_new_or_continued(folder, "an evaluation")
        keep_settings(folder / SETTINGS, settings, "an evaluation", write=process_index == 0)

    def keep_settings(self, name: str, settings: Mapping[str, Any]) -> None:
        """Checks, or keeps, what a part of the evaluation depends on that not every evaluation has.

        Raises:
            ValueError: If that part was made with others.
        """
        path = self.folder / f"settings_{name}.json"
        keep_settings(path, settings, f"an evaluation ({name})", write=self.process_index == 0)

    def images(self, method: str) -> Path:
        """The folder of a method's PNG files; `ORIGINALS` for the originals."""
        return self.folder / method

    def scores(self, method: str) -> dict[int, dict[str, float]]:
        """PSNR and SSIM by index, in the order of the images; a line that a killed process left half is left out."""
        scores = {}
        for path in sorted(self.folder.glob(f"scores_{method}_*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                    scores[int(record.pop("index"))] = record
                except (json.JSONDecodeError, KeyError):
                    continue
        return dict(sorted(scores.items()))

    def add(
        self,
        method: str,
        indices: Sequence[int],
        originals: torch.Tensor,
        reconstructions: torch.Tensor,
        sizes: Sequence[int] | None = None,
    ) -> None:
        """Measures a batch and writes its files and scores.

        PSNR and SSIM are taken on floats in [0, 1], PSNR up to 100 dB; the PNG files hold both images rounded to 8
        bits.

        Args:
            method: Name of the method.
            indices: Number of each image.
            originals: (B, C, H, W), float, in [0, 1]; C is 1 or 3.
            reconstructions: As `originals`.
            sizes: Bytes that each reconstruction was made from, where a method has such a thing.

        Raises:
            ValueError: If the images have neither 1 nor 3 channels.
        """
        if originals.shape[1] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels to be kept as PNG files, got {originals.shape[1]}")
        psnr = peak_signal_to_noise_ratio(reconstructions, originals).clamp(max=PSNR_LIMIT_DB)
        ssim = structural_similarity(reconstructions, originals)
        for name, images in ((ORIGINALS, originals), (method, reconstructions)):
            self.images(name).mkdir(exist_ok=True)
            for index, image in zip(indices, images, strict=True):
                path = self._file(name, index)
                if name == method or not path.is_file():
                    _save_png(image, path)
        path = self.folder / f"scores_{method}_{self.process_index}.jsonl"
        with path.open("ab+") as file:
            if file.tell() and _last_byte(path) != b"\n":
                file.write(b"\n")  # a killed process left half a line: the next one stands alone
            for row, index in enumerate(indices):
                record = {"index": index, "psnr_db": float(psnr[row]), "ssim": float(ssim[row])}
                if sizes is not None:
                    record["bytes"] = int(sizes[row])
                file.write(json.dumps(record).encode() + b"\n")

    def pairs(
        self, method: str, indices: Sequence[int], batch_size: int = 100
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(originals, reconstructions) from the PNG files, (B, C, H, W) in [0, 1] each."""
        for batch in batches(indices, batch_size):
            yield self.read(ORIGINALS, batch), self.read(method, batch)

    def read(self, method: str, indices: Sequence[int]) -> torch.Tensor:
        """Images of a method, or `ORIGINALS`, from their PNG files: (B, C, H, W) in [0, 1]."""
        return torch.stack([_read_png(self._file(method, index)) for index in indices])

    def _file(self, method: str, index: int) -> Path:
        return self.images(method) / f"{index:07d}.png"


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)


def _save_png(image: torch.Tensor, path: Path) -> None:
    pixels = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    write_png(path, Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), compress_level=1)


def _read_png(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return pixels.float() / 255
