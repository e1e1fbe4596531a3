"""Streams: every image once per epoch, shared out over processes, resumed exactly at any batch."""

import gc
import json
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from diffae_hub.data import TrainingError
from diffae_hub.data.loader import Batch
from diffae_hub.data.open_dataset import open_dataset
from diffae_hub.data.streaming import StreamedBatches, streaming_loader
from diffae_hub.data.transform import ImageTransform

from .pictures import BAD, encoded, table

COUNT = 23
GOOD = encoded(np.full((4, 4), 100))


@pytest.fixture(scope="module")
def parquet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images in three files; image i is filled with the value 10 i."""
    folder = tmp_path_factory.mktemp("parquet")
    dataset = table([encoded(np.full((4, 4), 10 * index)) for index in range(COUNT)])
    for part in range(3):
        dataset.shard(3, part, contiguous=True).to_parquet(folder / f"train-{part}.parquet")
    return folder


def stream(folder: Path, **options: object) -> StreamedBatches:
    dataset = open_dataset(str(folder), "train", "image", streaming=True)
    options = {"batch_size": 4, "buffer_size": 6, "seed": 0, **options}
    return StreamedBatches(dataset, "image", ImageTransform(4, 1), **options)


def indices(batch: Batch) -> list[int]:
    return ((batch.images[:, 0, 0, 0] + 1) * 12.75).round().int().tolist()


def first(batches: StreamedBatches, count: int) -> list[Batch]:
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def test_every_epoch_visits_every_image_once(parquet_folder: Path) -> None:
    seen = [index for batch in first(stream(parquet_folder), 18) for index in indices(batch)]
    epochs = [seen[COUNT * epoch : COUNT * (epoch + 1)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])
    assert [i for batch in first(stream(parquet_folder, seed=1), 5) for i in indices(batch)] != seen[:20]


@pytest.mark.parametrize("num_processes", [1, 2, 5])  # fewer processes than files, and more
def test_resumes_after_any_batch(parquet_folder: Path, num_processes: int) -> None:
    for process_index in {0, num_processes - 1}:
        process = {"process_index": process_index, "num_processes": num_processes, "batch_size": 3}
        whole = first(stream(parquet_folder, **process), 23)
        for cut in range(0, 20, 4):
            position = json.loads(json.dumps(whole[cut].position))  # as a checkpoint keeps it
            resumed = first(stream(parquet_folder, position=position, **process), 3)
            assert all(torch.equal(a.images, b.images) for a, b in zip(resumed, whole[cut + 1 : cut + 4], strict=True))


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_processes_share_the_data(parquet_folder: Path, num_processes: int) -> None:
    shares = []
    for rank in range(num_processes):
        batches = stream(parquet_folder, process_index=rank, num_processes=num_processes, batch_size=1)
        own = []
        for batch in batches:
            if batch.position["epoch"] > 0:
                break
            own += indices(batch)
        shares.append(own)
    assert sorted(index for share in shares for index in share) == list(range(COUNT))


def test_loader_process_changes_nothing(parquet_folder: Path) -> None:
    alone = first(stream(parquet_folder), 10)
    parallel = first(streaming_loader(stream(parquet_folder), num_workers=2), 10)
    for a, b in zip(alone, parallel, strict=True):
        assert torch.equal(a.images, b.images)
        assert a.position == b.position


def test_closing_does_not_wait_for_a_block() -> None:
    """The block of the second epoch would take too long. Only a few of its rows are read ahead."""
    read = []

    def rows() -> Iterator[dict]:
        for number in range(6 if not read else 10**5):
            read.append(number)
            yield {"image": GOOD}

    before = threading.active_count()
    features = datasets.Features({"image": datasets.Image(decode=False)})
    dataset = datasets.IterableDataset.from_generator(rows, features=features)
    options = {"batch_size": 2, "buffer_size": 10**6, "seed": 0}
    batches = iter(StreamedBatches(dataset, "image", ImageTransform(4, 1), **options))
    next(batches)
    batches.close()
    assert threading.active_count() <= before  # those of earlier tests may have ended
    assert 6 < len(read) < 100


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_that_is_dropped_leaves_nothing_behind(parquet_folder: Path, workers: int) -> None:
    gc.collect()  # loaders of other tests, in tracebacks
    children, before = multiprocessing.active_children(), set(threading.enumerate())
    batches = iter(streaming_loader(stream(parquet_folder), workers))
    next(batches)
    assert len(multiprocessing.active_children()) == len(children) + workers
    del batches
    assert set(multiprocessing.active_children()) <= set(children)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=60)  # multiprocessing does not wait for those that feed its queues
        assert not thread.is_alive()


def test_unreadable_images_are_named_and_passed_over(tmp_path: Path) -> None:
    """The name is the same in every epoch, and in a stream that is resumed in the middle of a shard."""
    table([GOOD] * 2 + [{"bytes": b"damaged", "path": "broken.png"}] * 9).to_parquet(tmp_path / "train-0.parquet")
    table([GOOD] * 3 + [BAD]).to_parquet(tmp_path / "train-1.parquet")
    options = {"batch_size": 2, "buffer_size": 2, "skip_bad_images": True}  # a long row of them, beyond the buffer
    batches = first(stream(tmp_path, **options), 10)
    assert all(batch.images.shape == (2, 1, 4, 4) for batch in batches)
    problems = [line for batch in batches for line in batch.unreadable]
    assert 30 <= len(problems) <= 50  # ten per epoch of five good images
    for batch in batches[:5]:
        resumed = first(stream(tmp_path, position=json.loads(json.dumps(batch.position)), **options), 4)
        problems += [line for later in resumed for line in later.unreadable]
    named = set(problems)
    assert len(named) == 2
    assert any("broken.png" in line for line in named) and any("row 3 of shard 1" in line for line in named)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_stops_the_training_is_raised(tmp_path: Path, workers: int) -> None:
    examples = {"one": [GOOD] * 3 + [BAD], "all": [BAD] * 3, "single": [GOOD], "damaged": [GOOD] * 400}
    for name, rows in examples.items():
        (tmp_path / name).mkdir()
        table(rows).to_parquet(tmp_path / name / "train.parquet")
    damaged, file = stream(tmp_path / "damaged", skip_bad_images=True), tmp_path / "damaged" / "train.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes(len(content) - 404) + content[-400:])
    for batches, named in (
        (damaged, "shard 0 "),
        (stream(tmp_path / "one"), "row 3 of shard 0"),
        (stream(tmp_path / "all", skip_bad_images=True, buffer_size=4096), "of shard 0"),
        (stream(tmp_path / "single", process_index=1, num_processes=2), "dataset"),
    ):
        with pytest.raises(TrainingError, match=named) as caught:
            list(streaming_loader(batches, workers))
        assert "Traceback" not in str(caught.value)
