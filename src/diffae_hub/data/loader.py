"""Batches with random access, in an order that can be resumed.

The order of the examples is a pure function of the seed and the number of examples seen. A resumed run therefore has
exactly the batches of an uninterrupted one, whatever the number of processes. `streaming.py` is for data sets that do
not fit on the disk.
"""

import atexit
import gc
import signal
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from . import TrainingError
from .transform import ImageTransform


class Batch(NamedTuple):
    """A process's share of a global batch."""

    images: torch.Tensor  # (B, C, H, W), float32, in [-1, 1]
    unreadable: list[str]  # one line for each skipped image; the next readable one replaces it
    position: dict[str, Any] | None = None  # position of a stream after this batch


@dataclass(eq=False)
class ImageTensorDataset(torch.utils.data.Dataset):
    """Rows of a data set as image tensors.

    With `skip_bad_images`, the next readable image replaces one that cannot be read. It is always the same one, so that
    the training stays reproducible.
    """

    rows: Sequence[Mapping[str, Any]]
    transform: ImageTransform
    skip_bad_images: bool = False

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> Batch | Exception:
        """Returns the images at pairs (index, position in the training).

        The error that stops the training is returned, too: see [`TrainingDataLoader`].
        """
        unreadable: list[str] = []
        try:
            return Batch(torch.stack([self._image(*key, unreadable) for key in keys]), unreadable)
        except TrainingError as error:
            return error

    def _image(self, index: int, position: int, unreadable: list[str]) -> torch.Tensor:
        """Returns the first readable image from `index` on, and adds a line to `unreadable` for each before it."""
        for offset in range(len(self.rows)):
            try:
                return self.transform(self.rows[(index + offset) % len(self.rows)], (position,))
            except ValueError as error:
                if not self.skip_bad_images:
                    raise unreadable_image(error) from error
                unreadable.append(str(error))
        raise TrainingError(f"none of the {len(self.rows)} images can be read; the last: {unreadable[-1]}")


def unreadable_image(error: ValueError) -> TrainingError:
    """Makes the error that stops a training that must not skip images."""
    return TrainingError(f"unreadable image (--skip-bad-images skips it): {error}")


@dataclass(eq=False)
class ResumableBatchSampler:
    """Batches of (index, position) pairs in an order that depends only on the seed and the position.

    Epoch e visits the data set in the permutation seeded by (seed, e). Batches continue over the ends of epochs, and
    all are full, including the last. With several processes, each takes its contiguous share of every global batch.
    """

    dataset_size: int
    batch_size: int  # of all processes together
    _: KW_ONLY
    start: int  # examples seen before the first batch
    stop: int  # ends when at least this many examples are seen
    seed: int
    process_index: int = 0
    num_processes: int = 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = process_share(self.batch_size, self.process_index, self.num_processes)
        epoch, permutation = -1, np.empty(0, dtype=np.int64)
        for first in range(self.start, self.stop, self.batch_size):
            batch = []
            for position in range(first, first + self.batch_size)[share]:
                if position // self.dataset_size != epoch:
                    epoch = position // self.dataset_size
                    permutation = np.random.default_rng((self.seed, epoch)).permutation(self.dataset_size)
                batch.append((int(permutation[position % self.dataset_size]), position))
            yield batch


def process_share(batch_size: int, process_index: int, num_processes: int) -> slice:
    """Returns the contiguous share of a global batch for one process. Shares differ by at most one example."""
    return slice(batch_size * process_index // num_processes, batch_size * (process_index + 1) // num_processes)


class TrainingDataLoader(DataLoader):
    """A loader of whole [`Batch`]es, decoded ahead by `num_workers` processes.

    A data set returns the error that stops the training in place of a batch; it is raised here, because it would be a
    traceback in a loader's process. The processes ignore SIGTERM and Ctrl-C, which go to the whole group: the training
    needs them until its next checkpoint. They end with the program; multiprocessing alone would wait for ever.
    """

    def __init__(self, dataset: torch.utils.data.Dataset, num_workers: int, **options: Any) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=_prepare_worker,
            **options,
        )

    def __iter__(self) -> Iterator[Batch]:
        batches = super().__iter__()
        if self.num_workers:  # runs before multiprocessing's own, which was registered earlier
            atexit.register(_end_processes, weakref.ref(batches), batches._workers)
        return _raising(batches)


def _end_processes(batches: weakref.ref, processes: list[Any]) -> None:
    if batches() is not None:  # else they may still run, since they ignore SIGTERM
        batches()._shutdown_workers()
    for process in processes:
        process.kill()  # it may hang while reading


def _raising(batches: Iterator[Batch | Exception]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, Exception):
            break
        yield batch
    else:
        return
    del batches  # ends the processes now: collected with a traceback, they would be waited for
    raise batch


def _prepare_worker(worker_index: int) -> None:
    gc.freeze()  # collecting inherited objects would copy the pages that are shared with the training
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
