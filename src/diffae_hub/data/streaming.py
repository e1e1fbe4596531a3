"""Data sets larger than memory or disk: read in order while training, shuffled in blocks, resumed at any batch.

A shuffle buffer that refills itself cannot be resumed exactly without saving its content. Here the stream is cut into
blocks of `buffer_size` consecutive rows, and the order within a block depends on the seed, the epoch and the block's
number. So a position in the stream is a few numbers, and reading one block again restores it. The next block is read
row by row while the present one is used, so that the training does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from . import TrainingError
from .loader import Batch, TrainingDataLoader, unreadable_image
from .open_dataset import image_of
from .transform import ImageTransform

if TYPE_CHECKING:
    import datasets

# A position: where a block begins (epoch, number of the shard in the epoch's order, state of `datasets` in the shard,
# rows read of the shard), the block's number in the epoch, and the rows used of the block and of the whole stream.
_START = {"epoch": 0, "shard": 0, "shard_state": None, "shard_row": 0, "block": 0, "offset": 0, "examples": 0}


@dataclass(eq=False)
class StreamedBatches(IterableDataset):
    """An endless stream of one process's [`Batch`]es; an error may end it: see [`TrainingDataLoader`].

    Epoch e visits the shards (files) in the permutation seeded by (seed, e). If there are at least as many shards as
    processes, each process reads its own; otherwise each reads all and keeps every `num_processes`-th row.

    `position` is where to begin: after the last batch of a training with the same number of processes.
    """

    dataset: datasets.IterableDataset  # from `open_dataset`
    image_column: str
    transform: ImageTransform
    _: KW_ONLY
    batch_size: int  # of this process
    buffer_size: int  # rows per block; memory holds two blocks of encoded images: the present one and the next
    seed: int
    position: dict[str, Any] | None = None
    process_index: int = 0
    num_processes: int = 1
    skip_bad_images: bool = False
    decoding_threads: int = 1

    def _epoch_rows(self, start: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yields this process's rows `{"path", "bytes"}` of an epoch from `start` on, each with the place after it."""
        num_shards = self.dataset.num_shards
        order = np.random.default_rng((self.seed, start["epoch"])).permutation(num_shards)
        first, every = self.process_index, self.num_processes  # of a shard's rows
        if num_shards >= self.num_processes:
            order, first, every = order[first::every], 0, 1
        for shard_number in range(start["shard"], len(order)):
            index = int(order[shard_number])
            shard, rows_read = self.dataset.shard(num_shards=num_shards, index=index), 0
            if shard_number == start["shard"] and start["shard_state"] is not None:
                shard.load_state_dict(start["shard_state"])
                rows_read = start["shard_row"]
            try:
                for number, row in enumerate(shard, rows_read):
                    if number % every == first:
                        place = {"shard": shard_number, "shard_state": shard, "shard_row": number + 1}
                        yield image_of(row, self.image_column, f"{number} of shard {index}"), place
            except Exception as error:  # each format and storage has its own errors
                told = " ".join(str(error).split())
                raise TrainingError(f"shard {index} (of {num_shards}, from 0) cannot be read: {told}") from error

    def _blocks(self) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]] | None]:
        """Yields blocks of rows in reading order, each with the position to begin at, and None after each row read."""
        start = dict(self.position or _START)
        while True:
            rows = self._epoch_rows(start)
            while True:
                block: list[dict[str, Any]] = []
                place: dict[str, Any] = {}
                for row, place in islice(rows, self.buffer_size):  # noqa: B007
                    block.append(row)
                    yield None
                if not block:
                    break
                # The state is taken once per block, here, because the generator is right after the block's last row.
                following = {**place, "shard_state": place["shard_state"].state_dict()}
                yield block, start
                examples = start["examples"] + len(block) - start["offset"]
                start = {**start, **following, "block": start["block"] + 1, "offset": 0, "examples": examples}
            if start["block"] == 0:
                raise TrainingError("dataset must hold at least one image per process, got none")
            start = {**_START, "epoch": start["epoch"] + 1, "examples": start["examples"]}

    def _shuffled_rows(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yields rows in training order, each with the position after it. For each, a row of the next block is read."""
        blocks = self._blocks()
        block = None
        while True:
            rows, position = block or next(filter(None, blocks))
            block = None
            order = np.random.default_rng((self.seed, position["epoch"], position["block"])).permutation(len(rows))
            for offset in range(position["offset"], len(rows)):
                position = {**position, "offset": offset + 1, "examples": position["examples"] + 1}
                block = block or next(blocks)
                yield rows[order[offset]], position

    def _decoded(self, row: dict[str, Any], position: dict[str, Any]) -> tuple[torch.Tensor | str, dict[str, Any]]:
        """Returns the image of a row, or the reason why it has none, and the row's position."""
        try:
            return self.transform(row, (self.process_index, position["examples"])), position
        except ValueError as error:
            if not self.skip_bad_images:
                raise unreadable_image(error) from error
            return str(error), position

    def __iter__(self) -> Iterator[Batch | Exception]:
        images: list[torch.Tensor] = []
        unreadable: list[str] = []
        epoch = (self.position or _START)["epoch"]  # of the newest readable image
        try:
            with ThreadPoolExecutor(1 + self.decoding_threads) as pool:
                for image, position in self._decoded_ahead(pool):
                    if isinstance(image, str):
                        unreadable.append(image)
                        if not images and position["epoch"] > epoch + 1:
                            raise TrainingError(f"no image of the stream can be read; the first: {unreadable[0]}")
                        continue
                    images.append(image)
                    epoch = position["epoch"]
                    if len(images) == self.batch_size:
                        yield Batch(torch.stack(images), unreadable, position)
                        images, unreadable = [], []
        except TrainingError as error:  # raised in a loader's process, it would print a traceback
            yield error

    def _decoded_ahead(self, pool: Executor) -> Iterator[tuple[torch.Tensor | str, dict[str, Any]]]:
        """Yields the results of `_decoded`; the rows of a batch are read while the rows before them are decoded."""
        rows = self._shuffled_rows()
        read = pool.submit(list, islice(rows, self.batch_size))
        while True:
            wanted = read.result()
            read = pool.submit(list, islice(rows, self.batch_size))
            yield from pool.map(self._decoded, *zip(*wanted, strict=True))


def streaming_loader(stream: StreamedBatches, num_workers: int) -> DataLoader:
    """Loads a stream's batches ahead in one process, with `num_workers` threads that decode and one that reads.

    Without workers, the training process decodes.
    """
    stream.decoding_threads = max(1, num_workers)
    return TrainingDataLoader(stream, min(1, num_workers))
