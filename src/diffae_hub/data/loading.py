"""Training data: an image folder, parquet files or a `datasets` dataset -> batches of images in [-1, 1].

The order of the examples is a pure function of the seed and the number of examples seen, so that a resumed run
continues with exactly the batches an uninterrupted one would have had, whatever the number of processes. Data sets that
do not fit on the disk are in `streaming.py`, the rules by which files are found in `sources.py`.
"""

from __future__ import annotations

import atexit
import glob
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Sampler

from ..images import pil_to_array, read_image, read_image_bytes, upright
from ..network import check_hub_answers
from .sources import ImageFolder, image_folder, local_path, metadata_files, parquet_files, rows_of_slice, split_name

if TYPE_CHECKING:
    import datasets

CROPS = ("center", "random", "d2c")

# Rows and columns that the official networks' crop of CelebA (178 x 218 pixels) keeps: left, upper, right, lower.
_D2C_BOX = (25, 57, 153, 185)
_CELEBA_SIZE = (178, 218)


class TrainingError(RuntimeError):
    """The training cannot go on; the message is one line for the user."""


class Batch(NamedTuple):
    """A process's share of a global batch.

    Args:
        images: (B, C, H, W), float32, in [-1, 1].
        unreadable: One line for each image that was skipped; the next readable one is in its place.
        position: Where a stream stands after this batch; None for data sets with random access.
    """

    images: torch.Tensor
    unreadable: list[str]
    position: dict[str, Any] | None = None


class _ImageColumn(Sequence):
    """The undecoded rows `{"path": ..., "bytes": ...}` of a dataset's image column."""

    def __init__(self, dataset: datasets.Dataset, column: str) -> None:
        self.dataset = dataset
        self.column = column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index][self.column] or {}
        return {"path": row.get("path") or f"row {index}", "bytes": row.get("bytes")}


def open_dataset(
    source: str, split: str, image_column: str, streaming: bool, columns: Sequence[str] = ()
) -> datasets.Dataset | datasets.IterableDataset:
    """Opens parquet files, a dataset saved by `datasets` or a Hub dataset, with its images left undecoded.

    Args:
        source: A parquet file, a folder of parquet files, a folder of `Dataset.save_to_disk`, a folder of images (for
            streaming) or the name of a Hub dataset. `~` is the home folder.
        split: Its split, with a slice (`"train[:90%]"`) unless streaming. Among parquet files those named
            `<split>.parquet`, `<split>-*.parquet`, `<split>_<digits>*.parquet` or `<split>.*.parquet`, or in a folder
            `<split>`; `source` or its folder `data` holds them. Of a folder of images the subfolder with the name (or
            one that means the same, as "val" and "validation") if all subfolders with images are named like splits,
            else all images. A single parquet file, and a dataset saved without splits, is any split.
        image_column: The column that holds the images.
        streaming: Whether to read it while training, without a copy on the disk.
        columns: Columns to keep beside the images.

    Raises:
        ValueError: If the source, the split or a column does not exist.
    """
    import datasets
    from pyarrow import ArrowException

    path, name = local_path(source), split_name(split)
    if streaming and split != name:
        raise ValueError(f"split must be a name without a slice when streaming, got {split!r}")
    try:
        if path.exists():
            dataset = _open_local(path, name, streaming, with_columns=bool(columns))
            if split != name:
                dataset = dataset.select(rows_of_slice(split, len(dataset)))
        else:
            if not datasets.config.HF_HUB_OFFLINE:
                check_hub_answers()
            dataset = datasets.load_dataset(source, split=split, streaming=streaming)
    except (FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(
            f"dataset must be a folder, a parquet file or a Hub dataset, got {source!r}: {error}"
        ) from error
    except ConnectionError as error:
        raise ValueError(f"dataset {source!r} is no local path and the Hub cannot be reached: {error}") from error
    except (datasets.exceptions.DatasetGenerationError, ArrowException) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"dataset must hold files that can be read, got {source!r}: {cause}") from error
    features = dataset.features or {}
    if dataset.column_names is not None and image_column not in dataset.column_names:
        raise ValueError(f"image_column must be one of {dataset.column_names}, got {image_column!r}")
    with_images = [name for name, feature in features.items() if _holds_images(feature)]
    if features and image_column not in with_images:
        raise ValueError(f"image_column must hold images, as {with_images} do, got {image_column!r}")
    missing = [name for name in columns if name not in (dataset.column_names or columns)]
    if missing:
        raise ValueError(f"columns must be among {dataset.column_names}, got {missing}")
    return dataset.select_columns([image_column, *columns]).cast_column(image_column, datasets.Image(decode=False))


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def _open_local(
    path: Path, split: str, streaming: bool, with_columns: bool
) -> datasets.Dataset | datasets.IterableDataset:
    import datasets

    if files := parquet_files(path, split):
        kind = "parquet"
    elif _is_saved(path):
        dataset = datasets.load_from_disk(str(path))
        if isinstance(dataset, datasets.DatasetDict):
            if split not in dataset:
                raise ValueError(f"split must be one of {sorted(dataset)}, got {split!r}")
            dataset = dataset[split]
        return dataset.to_iterable_dataset() if streaming else dataset
    elif path.is_dir():
        folder = image_folder(path, split)
        kind, files = "imagefolder", ImageFolder(folder).paths
        if with_columns:  # which come from the folders' names and from these files, and only rows in these count
            files = [*files, *metadata_files(folder)]
    else:
        raise ValueError(
            "dataset must be a folder of images or of parquet files, a .parquet file, a folder saved by `datasets` or "
            f"the name of a Hub dataset, got the file {path}"
        )
    names = {split: [glob.escape(name) for name in files]}  # names are patterns there
    return datasets.load_dataset(kind, data_files=names, split=split, streaming=streaming)


def _holds_images(feature: Any) -> bool:
    """Whether a column holds encoded images: marked as such, or as plain bytes with or without a path."""
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def load_rows(source: str, split: str = "train", image_column: str = "image") -> Sequence[Mapping[str, Any]]:
    """The rows of a data set with random access, each `{"path": ..., "bytes": ...}`, still encoded.

    Args:
        source: A folder of images (with subfolders), or what [`open_dataset`] opens.
        split: Its split, by the rules of [`open_dataset`].
        image_column: The column that holds the images; a folder of images has none.

    Raises:
        ValueError: If the source, the split or the column does not exist, or there is no image.
    """
    path, name = local_path(source), split_name(split)
    if path.is_dir() and not _is_saved(path) and not parquet_files(path, name):
        rows = ImageFolder(image_folder(path, name))
        if split != name:
            rows.paths = [rows.paths[index] for index in rows_of_slice(split, len(rows))]
    else:
        rows = _ImageColumn(open_dataset(source, split, image_column, streaming=False), image_column)
    if not len(rows):
        raise ValueError(f"dataset must hold at least one image, got none in split {split!r} of {source!r}")
    return rows


class UnfitImage(ValueError):
    """An intact image that the crop is not for: the command line must change, not the image."""


class ImageTransform:
    """An encoded image -> a float tensor in [-1, 1], shape (channels, resolution, resolution).

    Args:
        resolution: Height and width of the result.
        channels: 1 (grayscale) or 3 (RGB).
        horizontal_flip: Whether to flip with probability 1/2.
        crop: "center" or "random": a square of the shorter side, resized; "d2c": the official networks' crop of CelebA,
            for images of 178 x 218 pixels only.
        seed: Seed of the flips and the random crops, which depend on the position in the training only.

    Raises:
        ValueError: If `crop` or `channels` is not allowed.
    """

    def __init__(
        self, resolution: int, channels: int = 3, horizontal_flip: bool = False, crop: str = "center", seed: int = 0
    ) -> None:
        if crop not in CROPS:
            raise ValueError(f"crop must be one of {CROPS}, got {crop!r}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels!r}")
        self.resolution = resolution
        self.channels = channels
        self.horizontal_flip = horizontal_flip
        self.crop = crop
        self.seed = seed

    def __call__(self, row: Mapping[str, Any], position: tuple[int, ...] | None = None) -> torch.Tensor:
        """The image of a row `{"path", "bytes"}`. `position` seeds what is random; None makes nothing random.

        Raises:
            UnfitImage: If the crop is not for images of this size.
            ValueError: If the image cannot be read; the message names it.
        """
        path, content = row["path"], row["bytes"]
        image = read_image(path) if content is None else read_image_bytes(content, path)
        try:
            image = self._cropped(image, path, position)
            array = pil_to_array(image, channels=self.channels, size=(self.resolution, self.resolution))
        except UnfitImage:
            raise
        except Exception as error:  # a mode without a known range, or what Pillow raises on files that are odd
            raise ValueError(f"image {path} cannot be used: {error}") from error
        if self.horizontal_flip and position is not None and self._random(0, position).random() < 0.5:
            array = array[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))) * 2.0 - 1.0

    def _random(self, purpose: int, position: tuple[int, ...]) -> np.random.Generator:
        return np.random.default_rng((self.seed, purpose, *position))

    def _cropped(self, image: Image.Image, path: str, position: tuple[int, ...] | None) -> Image.Image:
        if self.crop == "center":
            return image  # `pil_to_array` does it
        image = upright(image)
        if self.crop == "d2c":
            if image.size != _CELEBA_SIZE:
                raise UnfitImage(
                    "--crop must be 'center' or 'random' for images that are not of 178x218 pixels, got 'd2c' for "
                    f"{path} of {image.width}x{image.height}"
                )
            return image.crop(_D2C_BOX)
        side = min(image.size)
        room = [length - side for length in image.size]
        left, upper = (length // 2 for length in room)
        if position is not None:
            left, upper = (int(v) for v in self._random(1, position).integers(0, np.asarray(room) + 1))
        return image.crop((left, upper, left + side, upper + side))


class ImageTensorDataset(torch.utils.data.Dataset):
    """Rows of a data set as image tensors.

    Args:
        rows: What [`load_rows`] returns.
        transform: Decodes a row.
        skip_bad_images: Whether the next readable image takes the place of one that cannot be read.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], transform: ImageTransform, skip_bad_images: bool = False
    ) -> None:
        self.rows = rows
        self.transform = transform
        self.skip_bad_images = skip_bad_images

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[torch.Tensor, list[str]]:
        """(image, unreadable) at an index, or at (index, position in the training), which seeds what is random.

        With `skip_bad_images` the place of an image that cannot be read is taken by the next one that can, always the
        same, so that the training stays reproducible; `unreadable` holds one line for each that was passed over.

        Raises:
            TrainingError: If an image cannot be read and is not to be skipped, or none can be read.
            UnfitImage: If the crop is not for images of this size.
        """
        index, position = key if isinstance(key, tuple) else (key, None)
        unreadable: list[str] = []
        for offset in range(len(self.rows)):
            try:
                row = self.rows[(index + offset) % len(self.rows)]
                return self.transform(row, None if position is None else (position,)), unreadable
            except UnfitImage:
                raise
            except ValueError as error:
                if not self.skip_bad_images:
                    raise bad_image(error) from error
                unreadable.append(str(error))
        raise TrainingError(f"none of the {len(self.rows)} images can be read; the first: {unreadable[0]}")

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[tuple[torch.Tensor, list[str]]] | Exception:
        """The items of a batch, or what stops the training: raised in a loader's process it would be a traceback."""
        try:
            return [self[key] for key in keys]
        except (TrainingError, UnfitImage) as error:
            return error


def bad_image(error: ValueError) -> TrainingError:
    """What stops a training that is not to skip images."""
    return TrainingError(f"unreadable image (--skip_bad_images goes on without it): {error}")


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (index, position) pairs in an order that the seed and the position alone decide.

    Epoch e visits the data set in the permutation seeded by (seed, e). Batches run on over epoch ends and all are full,
    the last one too. With several processes each takes its contiguous share of every global batch.

    Args:
        dataset_size: Number of images.
        batch_size: Global batch size.
        start: Examples seen before the first batch.
        stop: Batches end when at least this many examples are seen.
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
        self.share = process_share(batch_size, process_index, num_processes)
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def _index_at(self, position: int) -> int:
        epoch, offset = divmod(position, self.dataset_size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng((self.seed, epoch)).permutation(self.dataset_size)
        return int(self._permutation[offset])

    def __len__(self) -> int:
        return max(0, -(-(self.stop - self.start) // self.batch_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(self.start, self.stop, self.batch_size):
            positions = range(first, first + self.batch_size)[self.share]
            yield [(self._index_at(position), position) for position in positions]


def process_share(batch_size: int, process_index: int, num_processes: int) -> slice:
    """The contiguous share of a global batch that a process works on; shares differ by at most one example."""
    bounds = [batch_size * rank // num_processes for rank in (process_index, process_index + 1)]
    return slice(*bounds)


def _collate(items: list[tuple[torch.Tensor, list[str]]] | Exception) -> Batch | Exception:
    if isinstance(items, Exception):
        return items
    return Batch(torch.stack([image for image, _ in items]), [line for _, lines in items for line in lines])


class TrainingDataLoader(DataLoader):
    """A loader whose processes outlive SIGTERM and Ctrl-C, which go to the whole group, and end with the program.

    Left to multiprocessing they would keep a program that breaks off, or ends in the midst of the data, for ever: it
    sends SIGTERM, which they ignore, and waits.
    """

    _running: weakref.WeakSet[Any] = weakref.WeakSet()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, worker_init_fn=prepare_worker, **options)

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        if self.num_workers:
            self._running.add(batches)
        return batches

    @classmethod
    def end_all(cls) -> None:
        """Ends the processes of all loaders."""
        for batches in list(cls._running):
            batches._shutdown_workers()
            for worker in batches._workers:
                worker.kill()  # one that hangs in reading


atexit.register(TrainingDataLoader.end_all)  # after, and therefore run before, multiprocessing's own


def training_loader(dataset: ImageTensorDataset, sampler: ResumableBatchSampler, num_workers: int) -> DataLoader:
    """[`Batch`]es in the sampler's order; `num_workers` processes decode images ahead.

    In place of a batch comes the exception, for the trainer to raise, if an image must stop the training.
    """
    return TrainingDataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if num_workers else None,
    )


def prepare_worker(worker_index: int) -> None:
    """Lets a loader's process outlive SIGTERM and Ctrl-C: the trainer needs it until its next checkpoint."""
    import gc
    import signal

    gc.freeze()  # a collection of what the process was born with would copy the pages it shares with the trainer
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def where_from(rows: Sequence[Mapping[str, Any]], source: str, split: str) -> str:
    """How many images there are and where, in words: `1,234 images in pictures/train`."""
    paths = getattr(rows, "paths", None)
    place = f"in {Path(os.path.commonpath(paths))}" if paths else f"of {source}, split {split}"
    return f"{len(rows):,} images {place}"
