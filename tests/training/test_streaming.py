"""Streams: every image once per epoch, shared out over processes, resumed exactly at any batch."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffae_hub.training.data import Batch, ImageTransform, open_dataset
from diffae_hub.training.streaming import StreamedBatches, streaming_loader

COUNT = 23


@pytest.fixture(scope="module")
def parquet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images in three files; image i is filled with the value 10 i."""
    folder = tmp_path_factory.mktemp("parquet")
    rows = []
    for index in range(COUNT):
        buffer = io.BytesIO()
        Image.new("L", (4, 4), 10 * index).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"image": rows}, features=features)
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


def test_another_seed_is_another_order(parquet_folder: Path) -> None:
    orders = [
        [i for batch in first(stream(parquet_folder, seed=seed), 5) for i in indices(batch)] for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("num_processes", [1, 2, 5])  # fewer processes than files, and more
def test_resumes_after_any_batch(parquet_folder: Path, num_processes: int) -> None:
    for process_index in range(num_processes):
        process = {"process_index": process_index, "num_processes": num_processes, "batch_size": 3}
        whole = first(stream(parquet_folder, **process), 23)
        for cut in range(20):
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


def test_unreadable_images_are_named_and_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), 100).save(buffer, "PNG")
    rows = [{"bytes": buffer.getvalue(), "path": None}] * 4 + [{"bytes": b"damaged", "path": "broken.png"}]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "train.parquet")
    batches = first(stream(tmp_path, batch_size=2), 4)
    assert all(batch.images.shape == (2, 1, 4, 4) for batch in batches)
    problems = [line for batch in batches for line in batch.unreadable]
    assert len(problems) in (1, 2)  # once per epoch of four good images
    assert all("broken.png" in line for line in problems)


def test_a_folder_of_images_can_be_streamed(tmp_path: Path) -> None:
    for index in range(5):
        Image.fromarray(np.full((4, 4), 10 * index, np.uint8)).save(tmp_path / f"{index}.png")
    seen = [i for batch in first(stream(tmp_path, batch_size=5), 2) for i in indices(batch)]
    assert sorted(seen) == sorted([*range(5), *range(5)])
