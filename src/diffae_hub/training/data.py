"""Training data: an image folder, a parquet file or a Hub dataset -> batches of images in [-1, 1].

The order of the examples is a pure function of the seed and the number of examples seen, so that a resumed run continues
with exactly the batches an uninterrupted one would have had, whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image, load_dataset
from torch.utils.data import DataLoader, Sampler

from ..pipelines.image_processor import pil_to_array


def load_image_dataset(source: str, split: str = "train", image_column: str = "image") -> Dataset:
    """Opens a data set of images.

    Args:
        source: A folder of images (subfolders allowed), a parquet file, or the name of a Hub dataset.
        split: Split of a Hub dataset or of an image folder with splits.
        image_column: Column that holds the images.

    Returns:
        The dataset, with only its image column, decoded to PIL images on access.

    Raises:
        ValueError: If the source holds no such column, or is empty.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".parquet":
        dataset = load_dataset("parquet", data_files={split: str(path)}, split=split)
    elif path.is_dir() and list(path.glob("*.parquet")):
        files = sorted(str(file) for file in path.glob(f"{split}*.parquet"))
        dataset = load_dataset("parquet", data_files={split: files}, split=split)
    elif path.is_dir():
        dataset = load_dataset("imagefolder", data_dir=str(path), split=split)
    else:
        dataset = load_dataset(source, split=split)
    if image_column not in dataset.column_names:
        raise ValueError(f"image_column must be one of {dataset.column_names}, got {image_column!r}")
    if len(dataset) == 0:
        raise ValueError(f"source must hold at least one image, got none in {source!r}")
    dataset = dataset.select_columns([image_column])
    if image_column != "image":
        dataset = dataset.rename_column(image_column, "image")
    return dataset.cast_column("image", Image())


class ImageTensorDataset(torch.utils.data.Dataset):
    """Images of a dataset as float tensors in [-1, 1], shape (channels, resolution, resolution).

    Args:
        dataset: Has an `image` column of PIL images.
        resolution: Height and width of the result; images are centre-cropped to a square and resized to it.
        channels: 1 (grayscale) or 3 (RGB).
        horizontal_flip: Whether to flip with probability 1/2.
        crop: None, or "d2c": rows 57..185 and columns 25..153, the official crop of CelebA.
        seed: Seed of the flips, which depend on the position in the training only.
    """

    def __init__(
        self,
        dataset: Dataset,
        resolution: int,
        channels: int = 3,
        horizontal_flip: bool = False,
        crop: str | None = None,
        seed: int = 0,
    ) -> None:
        if crop not in (None, "d2c"):
            raise ValueError(f"crop must be None or 'd2c', got {crop!r}")
        self.dataset = dataset
        self.resolution = resolution
        self.channels = channels
        self.horizontal_flip = horizontal_flip
        self.crop = crop
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> torch.Tensor:
        """The image at an index, or at (index, position in the training), which decides whether it is flipped."""
        index, position = key if isinstance(key, tuple) else (key, None)
        image = self.dataset[index]["image"]
        if self.crop == "d2c":
            image = image.crop((25, 57, 153, 185))
        array = pil_to_array(image, channels=self.channels, size=(self.resolution, self.resolution))
        if self.horizontal_flip and position is not None:
            if np.random.default_rng((self.seed, position)).random() < 0.5:
                array = array[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))) * 2.0 - 1.0


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (index, position) pairs in an order that the seed and the position alone decide.

    Epoch e visits the data set in the permutation seeded by (seed, e). Batches run on over epoch ends, so every batch is
    full. With several processes each takes its contiguous share of every global batch.

    Args:
        dataset_size: Number of images.
        batch_size: Global batch size.
        start: Examples seen before the first batch.
        stop: Examples seen after the last batch; the last batch may be smaller.
        seed: Seed of the permutations.
        process_index: This process.
        num_processes: Number of processes.
    """

    def __init__(
        self,
        dataset_size: int,
        batch_size: int,
        *,
        start: int,
        stop: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.dataset_size = dataset_size
        self.batch_size = batch_size
        self.start = start
        self.stop = stop
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def _index_at(self, position: int) -> int:
        epoch, offset = divmod(position, self.dataset_size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng((self.seed, epoch)).permutation(self.dataset_size)
        return int(self._permutation[offset])

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(self.start, self.stop, self.batch_size):
            positions = range(first, min(first + self.batch_size, self.stop))
            share = process_share(len(positions), self.process_index, self.num_processes)
            yield [(self._index_at(position), position) for position in positions[share]]


def process_share(batch_size: int, process_index: int, num_processes: int) -> slice:
    """The contiguous share of a global batch that a process works on; shares differ by at most one example."""
    bounds = [batch_size * rank // num_processes for rank in (process_index, process_index + 1)]
    return slice(*bounds)


def training_loader(dataset: ImageTensorDataset, sampler: ResumableBatchSampler, num_workers: int) -> DataLoader:
    """Batches (B, C, H, W) in the sampler's order; `num_workers` processes decode images ahead."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )
