"""Data sets larger than memory or disk: read in order while training, shuffled in blocks, resumed where they stood.

A shuffle buffer that refills itself cannot be resumed exactly without saving its content. Here the stream is cut into
blocks of `buffer_size` consecutive rows, and each block is put in an order that the seed, the epoch and the block's
number decide: a position in the stream is a few numbers, and reading one block again restores it. A thread reads the
next block while the present one is decoded, so that the training does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from .errors import TrainingError, UnfitImage
from .loader import Batch, TrainingDataLoader, unreadable_image
from .transform import ImageTransform

if TYPE_CHECKING:
    import datasets

# A position. Where a block begins: the epoch, the shard in the epoch's order, where `datasets` stands in it, the rows
# read of it. The block's number in the epoch, how many of its rows are used, and how many rows in all.
_START = {"epoch": 0, "shard": 0, "shard_state": None, "shard_row": 0, "block": 0, "offset": 0, "examples": 0}

# The reading thread goes on by so many batches' rows for every batch that is decoded. All at once the rows of a block
# would take the interpreter from the decoding threads, and a batch would be as late as if there were no thread.
_BATCHES_READ_AHEAD = 4


def _readable(shard: datasets.IterableDataset, name: str) -> Iterator[dict[str, Any]]:
    """The shard's rows; what goes wrong in reading them ends the training, with the shard's name."""
    try:
        yield from shard
    except Exception as error:  # each format and place of storage has its own
        raise TrainingError(f"{name} cannot be read: {' '.join(str(error).split())}") from error


@dataclass(eq=False)
class StreamedBatches(IterableDataset):
    """An endless stream of one process's [`Batch`]es. Its last item is what stops the training: [`TrainingDataLoader`].

    Epoch e visits the shards (files) in the permutation seeded by (seed, e). Where there are at least as many shards as
    processes, each process reads its own; otherwise each reads all and keeps every `num_processes`-th row.

    `position` is where to begin: that of the last batch that was trained on, with this number of processes.
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
        """This process's rows `{"path", "bytes"}` of an epoch from `start` on, each with the place that follows it."""
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
            rows = _readable(shard, f"shard {index} (of {num_shards}, from 0) of the dataset")
            for number, row in enumerate(rows, rows_read):
                if number % every == first:
                    image = row[self.image_column] or {}
                    path = image.get("path") or f"row {number} of shard {index}"
                    place = {"shard": shard_number, "shard_state": shard, "shard_row": number + 1}
                    yield {"path": path, "bytes": image.get("bytes")}, place

    def _blocks(self) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]] | None]:
        """The stream's blocks of rows in the order of reading, each with the position to begin at: before its first
        row, or in its midst where the stream is resumed there. After every few rows comes None, and the caller chooses
        when to read on.
        """
        start, step = dict(self.position or _START), _BATCHES_READ_AHEAD * self.batch_size
        while True:
            rows = self._epoch_rows(start)
            while True:
                block: list[dict[str, Any]] = []
                while more := list(islice(rows, min(step, self.buffer_size - len(block)))):
                    block += [row for row, _ in more]
                    place = more[-1][1]
                    yield None
                if not block:
                    break
                # The state is taken here, once per block, where the generator stands right after the block's last row.
                following = {**place, "shard_state": place["shard_state"].state_dict()}
                yield block, start
                examples = start["examples"] + len(block) - start["offset"]
                start = {**start, **following, "block": start["block"] + 1, "offset": 0, "examples": examples}
            if start["block"] == 0:
                raise TrainingError("dataset must hold at least one image per process, got none")
            start = {**_START, "epoch": start["epoch"] + 1, "examples": start["examples"]}

    def _shuffled_rows(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Rows in training order, each with the position after it."""
        # Only the thread touches the blocks' generator. Who closes this one waits for the few rows being read.
        with closing(self._blocks()) as blocks, ThreadPoolExecutor(1, "block-reader") as reader:
            ahead = reader.submit(next, blocks)
            while True:
                while not (block := ahead.result()):
                    ahead = reader.submit(next, blocks)
                ahead = reader.submit(next, blocks)
                rows, position = block
                order = np.random.default_rng((self.seed, position["epoch"], position["block"])).permutation(len(rows))
                for offset in range(position["offset"], len(rows)):
                    position = {**position, "offset": offset + 1, "examples": position["examples"] + 1}
                    yield rows[order[offset]], position
                    # A whole block, or an error, is kept until this block is used up.
                    if ahead.done() and not ahead.exception() and not ahead.result():
                        ahead = reader.submit(next, blocks)

    def _decoded(
        self, items: list[tuple[dict[str, Any], dict[str, Any]]]
    ) -> list[tuple[torch.Tensor | str, dict[str, Any]]]:
        """The image, or why there is none, of each row, with the row's position."""
        decoded: list[tuple[torch.Tensor | str, dict[str, Any]]] = []
        for row, position in items:
            try:
                decoded.append((self.transform(row, (self.process_index, position["examples"])), position))
            except UnfitImage:
                raise
            except ValueError as error:
                if not self.skip_bad_images:
                    raise unreadable_image(error) from error
                decoded.append((str(error), position))
        return decoded

    def __iter__(self) -> Iterator[Batch | Exception]:
        try:
            yield from self._batches()
        except (TrainingError, UnfitImage) as error:  # raised in a loader's process it would become a traceback
            yield error

    def _batches(self) -> Iterator[Batch]:
        images: list[torch.Tensor] = []
        unreadable: list[str] = []
        epoch = (self.position or _START)["epoch"]  # of the newest readable image
        with closing(self._shuffled_rows()) as rows, ThreadPoolExecutor(self.decoding_threads) as pool:
            while True:
                wanted = list(islice(rows, self.batch_size - len(images)))
                # One share per thread, and no thread for one: handing over single small images costs more than they do.
                length = -(-len(wanted) // self.decoding_threads)
                shares = [wanted[first : first + length] for first in range(0, len(wanted), length)]
                decode = map if self.decoding_threads == 1 else pool.map
                for image, position in chain.from_iterable(decode(self._decoded, shares)):
                    if isinstance(image, str):
                        unreadable.append(image)
                    else:
                        images.append(image)
                        epoch = position["epoch"]
                if not images and position["epoch"] > epoch + 1:
                    raise TrainingError(f"no image of the stream can be read; the first: {unreadable[0]}")
                if len(images) == self.batch_size:
                    yield Batch(torch.stack(images), unreadable, position)
                    images, unreadable = [], []


def streaming_loader(stream: StreamedBatches, num_workers: int) -> DataLoader:
    """The stream's batches, decoded ahead by one process with `num_workers` threads, beside the thread that reads.

    Without workers the process of the training decodes; the next block is read ahead all the same.
    """
    stream.decoding_threads = max(1, num_workers)
    return TrainingDataLoader(stream, min(1, num_workers), batch_size=None)
