"""The order of the examples, and what happens to images that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffae_hub.data import TrainingError
from diffae_hub.data.loader import ImageTensorDataset, ResumableBatchSampler, TrainingDataLoader
from diffae_hub.data.open_dataset import load_rows
from diffae_hub.data.transform import ImageTransform

from .pictures import BAD, GRADIENT, encoded, grayscale_values, save, table


def test_every_epoch_visits_every_image_once() -> None:
    sampler = ResumableBatchSampler(50, 16, start=0, stop=160, seed=4)
    pairs = [pair for batch in sampler for pair in batch]
    assert [position for _, position in pairs] == list(range(160))
    epochs = [[index for index, _ in pairs[50 * e : 50 * e + 50]] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != list(range(50))
    assert epochs[1] == np.random.default_rng((4, 1)).permutation(50).tolist(), "as of all versions"


@pytest.mark.parametrize(("start", "num_processes"), [(16, 1), (48, 2), (96, 3)])
def test_order_depends_on_the_position_only(start: int, num_processes: int) -> None:
    whole = list(ResumableBatchSampler(50, 16, start=0, stop=150, seed=4))
    options = {"start": start, "stop": 150, "seed": 4, "num_processes": num_processes}
    shares = [list(ResumableBatchSampler(50, 16, process_index=rank, **options)) for rank in range(num_processes)]
    together = [[pair for share in batch for pair in share] for batch in zip(*shares, strict=True)]
    assert together == whole[start // 16 :]
    assert all(len(batch) == 16 for batch in together), "the last batch is full too"
    assert max(map(len, (share[0] for share in shares))) - min(map(len, (share[0] for share in shares))) <= 1


@pytest.fixture
def bad_folder(tmp_path: Path) -> str:
    """A folder of six images, of which 2, 4 and 5 cannot be read."""
    for index in range(6):
        save(tmp_path / f"{index}.png", Image.fromarray(GRADIENT + index))
    content = (tmp_path / "4.png").read_bytes()
    for index, damaged in ((2, b"not an image"), (4, content[:-40]), (5, b"")):
        (tmp_path / f"{index}.png").write_bytes(damaged)
    (tmp_path / "notes.txt").write_text("no image, and not named like one")
    return str(tmp_path)


def test_unreadable_files_are_named_and_replaced(bad_folder: str) -> None:
    dataset = ImageTensorDataset(load_rows(bad_folder), ImageTransform(8, 1), skip_bad_images=True)
    for index, (shown, problems) in enumerate([(0, 0), (1, 0), (3, 1), (3, 0), (0, 2), (0, 1)]):
        (image,), unreadable, _ = dataset[[(index, 0)]]
        np.testing.assert_allclose(grayscale_values(image), GRADIENT + shown, atol=1e-4)
        assert len(unreadable) == problems
        assert all(f"{(index + offset) % 6}.png" in line for offset, line in enumerate(unreadable))


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    table([{"bytes": b"damaged", "path": "inner/name.png"}, BAD, encoded()]).to_parquet(tmp_path / "train.parquet")
    rows = load_rows(str(tmp_path / "train.parquet"))
    _, (first, second), _ = ImageTensorDataset(rows, ImageTransform(8, 1), skip_bad_images=True)[[(0, 0)]]
    assert "name.png" in first and "row 1" in second


@pytest.mark.parametrize("workers", [0, 1])
def test_what_stops_the_training_is_raised(bad_folder: str, workers: int) -> None:
    rows = load_rows(bad_folder)
    sampler = ResumableBatchSampler(6, 6, start=0, stop=6, seed=0)
    for crop, skip in (("center", False), ("d2c", True)):  # none has the crop's size
        dataset = ImageTensorDataset(rows, ImageTransform(8, 1, crop=crop), skip)
        with pytest.raises(TrainingError, match=r"\d\.png") as caught:
            list(TrainingDataLoader(dataset, workers, sampler=sampler))
        assert "Traceback" not in str(caught.value)


def test_loader_processes_change_nothing(bad_folder: str) -> None:
    batches = []
    for workers in (0, 2):
        transform = ImageTransform(8, 1, horizontal_flip=True, crop="random")
        dataset = ImageTensorDataset(load_rows(bad_folder), transform, skip_bad_images=True)
        sampler = ResumableBatchSampler(len(dataset.rows), 4, start=0, stop=32, seed=0)
        batches.append(list(TrainingDataLoader(dataset, workers, sampler=sampler)))
    for alone, parallel in zip(*batches, strict=True):
        assert torch.equal(alone.images, parallel.images)
        assert alone.unreadable == parallel.unreadable
    assert sum(len(batch.unreadable) for batch in batches[0]) >= 3
