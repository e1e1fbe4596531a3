"""Image files of every kind, the order of the examples, and sources of data."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffae_hub.training.data import (
    ImageFolder,
    ImageTensorDataset,
    ImageTransform,
    ResumableBatchSampler,
    UnfitImage,
    load_rows,
    open_dataset,
    process_share,
    training_loader,
)
from diffae_hub.training.faults import TrainingError

GRADIENT = np.add.outer(np.arange(8) * 16, np.arange(8) * 8).astype(np.uint8)  # 0 .. 168, row and column differ


def save(path: Path, image: Image.Image, **options: object) -> dict:
    image.save(path, **options)
    return {"path": str(path), "bytes": None}


def grayscale_values(tensor: torch.Tensor) -> np.ndarray:
    """Back to 0 .. 255, from (1, H, W) in [-1, 1]."""
    return (tensor[0].double().numpy() + 1) * 127.5


def test_grayscale(tmp_path: Path) -> None:
    row = save(tmp_path / "a.png", Image.fromarray(GRADIENT))
    one, three = (ImageTransform(8, channels)(row) for channels in (1, 3))
    assert one.shape == (1, 8, 8)
    assert one.dtype == torch.float32
    np.testing.assert_allclose(grayscale_values(one), GRADIENT, atol=1e-4)
    assert torch.equal(three, one.expand(3, 8, 8))


def test_rgba_is_put_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (200, 100, 0, 255)  # opaque
    pixels[4:] = (200, 100, 0, 0)  # transparent: its hidden colour must not show
    image = ImageTransform(8)(save(tmp_path / "a.png", Image.fromarray(pixels)))
    expected = torch.tensor([200, 100, 0]) / 127.5 - 1
    assert torch.allclose(image[:, :4], expected[:, None, None].expand(3, 4, 8), atol=1e-6)
    assert torch.equal(image[:, 4:], torch.ones(3, 4, 8))


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray((np.arange(64).reshape(8, 8) % 2).astype(np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 150, 100] + [0] * 762)
    result = ImageTransform(8)(save(tmp_path / "a.png", image))
    odd = torch.arange(64).reshape(8, 8) % 2 == 1
    for channel, (even_value, odd_value) in enumerate(((10, 200), (20, 150), (30, 100))):
        expected = torch.where(odd, odd_value, even_value) / 127.5 - 1
        assert torch.allclose(result[channel], expected, atol=1e-6)


def test_cmyk(tmp_path: Path) -> None:
    """Without a colour profile: R = 255 (1 - C) (1 - K), and so on."""
    image = Image.new("CMYK", (8, 8), (0, 255, 128, 51))
    result = ImageTransform(8)(save(tmp_path / "a.tiff", image))
    key = 1 - 51 / 255
    expected = torch.tensor([255 * key, 0.0, 255 * (1 - 128 / 255) * key]) / 127.5 - 1
    assert torch.allclose(result.mean(dim=(1, 2)), expected, atol=0.02)


def test_16_bit(tmp_path: Path) -> None:
    values = np.add.outer(np.arange(8) * 8000, np.arange(8) * 100).astype(np.uint16)  # 0 .. 56,700
    result = ImageTransform(8, 1)(save(tmp_path / "a.png", Image.fromarray(values)))
    np.testing.assert_allclose(grayscale_values(result), values / 257.0, atol=0.51)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, lambda a: np.rot90(a, 1))],
)
@pytest.mark.parametrize("crop", ["center", "random"])
def test_exif_rotation(tmp_path: Path, orientation: int, upright, crop: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    row = save(tmp_path / "a.png", Image.fromarray(GRADIENT), exif=exif)
    np.testing.assert_allclose(grayscale_values(ImageTransform(8, 1, crop=crop)(row)), upright(GRADIENT), atol=1e-4)


def test_d2c_crop(tmp_path: Path) -> None:
    """Rows 57 .. 185 and columns 25 .. 153 of 218 x 178."""
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178), dtype=np.uint8)
    row = save(tmp_path / "a.png", Image.fromarray(pixels))
    np.testing.assert_allclose(
        grayscale_values(ImageTransform(128, 1, crop="d2c")(row)), pixels[57:185, 25:153], atol=1e-4
    )
    other = save(tmp_path / "b.png", Image.fromarray(pixels[:-1]))
    with pytest.raises(UnfitImage, match=r"--crop must be 'center' or 'random' .*got 'd2c' for .*b\.png of 178x217"):
        ImageTransform(128, 1, crop="d2c")(other)
    # Not an image to skip, nor a reason to read the whole data set.
    for workers in (0, 1):
        dataset = ImageTensorDataset(load_rows(str(tmp_path)), ImageTransform(8, 1, crop="d2c"), skip_bad_images=True)
        sampler = ResumableBatchSampler(2, 2, start=0, stop=2, seed=0)
        (error,) = training_loader(dataset, sampler, workers)
        assert isinstance(error, UnfitImage)
        assert "Traceback" not in str(error)


def test_center_and_random_crop(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 20), dtype=np.uint8)
    row = save(tmp_path / "a.png", Image.fromarray(pixels))
    center = ImageTransform(8, 1)(row)
    np.testing.assert_allclose(grayscale_values(center), pixels[:, 6:14], atol=1e-4)
    windows = {pixels[:, left : left + 8].tobytes(): left for left in range(13)}
    transform = ImageTransform(8, 1, crop="random", seed=3)
    lefts = [windows[grayscale_values(transform(row, (p,))).round().astype(np.uint8).tobytes()] for p in range(300)]
    assert set(lefts) == set(range(13))
    assert torch.equal(transform(row, (5,)), transform(row, (5,)))
    assert torch.equal(transform(row), center)


def test_flip_is_half_of_the_positions(tmp_path: Path) -> None:
    row = save(tmp_path / "a.png", Image.fromarray(GRADIENT))
    transform = ImageTransform(8, 1, horizontal_flip=True, seed=1)
    plain = transform(row)
    flipped = [torch.equal(transform(row, (position,)), plain.flip(-1)) for position in range(400)]
    kept = [torch.equal(transform(row, (position,)), plain) for position in range(400)]
    assert [not f for f in flipped] == kept
    assert abs(sum(flipped) - 200) < 4 * 10  # four deviations


def bad_folder(folder: Path) -> Path:
    folder.mkdir()
    for index in range(6):
        save(folder / f"{index}.png", Image.fromarray(GRADIENT + index))
    (folder / "2.png").write_bytes(b"not an image")
    content = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(content[: len(content) - 40])  # truncated
    (folder / "5.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image, and not named like one")
    return folder


def test_unreadable_files_are_named_and_replaced(tmp_path: Path) -> None:
    folder = bad_folder(tmp_path / "images")
    dataset = ImageTensorDataset(load_rows(str(folder)), ImageTransform(8, 1), skip_bad_images=True)
    assert len(dataset) == 6
    for index, (shown, problems) in enumerate([(0, 0), (1, 0), (3, 1), (3, 0), (0, 2), (0, 1)]):
        image, unreadable = dataset[index]
        np.testing.assert_allclose(grayscale_values(image), GRADIENT + shown, atol=1e-4)
        assert len(unreadable) == problems
    assert "2.png" in dataset[2][1][0]
    assert ["4.png" in dataset[4][1][0], "5.png" in dataset[4][1][1]] == [True, True]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_unreadable_file_stops(tmp_path: Path, workers: int) -> None:
    dataset = ImageTensorDataset(load_rows(str(bad_folder(tmp_path / "images"))), ImageTransform(8, 1))
    with pytest.raises(TrainingError, match=r"--skip_bad_images goes on without it\): .*2\.png"):
        dataset[2]
    batches = list(training_loader(dataset, ResumableBatchSampler(6, 6, start=0, stop=6, seed=0), workers))
    assert [type(batch) for batch in batches] == [TrainingError]
    assert "Traceback" not in str(batches[0])


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"none of the 1 images can be read; the first: .*a\.png"):
        ImageTensorDataset(load_rows(str(tmp_path)), ImageTransform(8), skip_bad_images=True)[0]


def test_folders(tmp_path: Path) -> None:
    for name in ("train/cat/b.png", "train/dog/a.JPG", "test/c.webp", "train/cat/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GRADIENT).save(tmp_path / name)
    names = [Path(path).name for path in load_rows(str(tmp_path), "train").paths]
    assert names == ["b.png", "a.JPG"]
    assert [Path(path).name for path in load_rows(str(tmp_path), "test").paths] == ["c.webp"]
    assert len(load_rows(str(tmp_path), "validation")) == 3  # no such subfolder: the whole folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="dataset must hold at least one image file"):
        ImageFolder(tmp_path / "empty")


def test_linked_and_hidden_folders(tmp_path: Path) -> None:
    for name in ("root/cat/a.png", "root/.cache/b.png", "elsewhere/dog/c.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(GRADIENT).save(tmp_path / name)
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "root" / "cat" / "loop").symlink_to(tmp_path / "root")
    assert ImageFolder(tmp_path / "root").paths == [
        str(tmp_path / "root" / name) for name in ("cat/a.png", "dog/c.png")
    ]


def test_images_of_other_types_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.jfif", "c.AVIF", "d.txt"):
        Image.fromarray(GRADIENT).save(tmp_path / name, "PNG")
    with pytest.warns(UserWarning, match="2 files were passed over, read are .bmp"):
        assert len(ImageFolder(tmp_path)) == 1
    (tmp_path / "b.jfif").unlink()
    (tmp_path / "c.AVIF").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageFolder(tmp_path)


def encoded(index: int) -> dict:
    buffer = io.BytesIO()
    Image.fromarray((GRADIENT // 2 + index).astype(np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def picture_dataset() -> datasets.Dataset:
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"picture": [encoded(index) for index in range(10)], "label": list(range(10))}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["parquet file", "parquet folder", "saved", "saved with splits"])
def test_tables(tmp_path: Path, picture_dataset: datasets.Dataset, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "parquet file":
        source = source.with_suffix(".parquet")
        picture_dataset.to_parquet(source)
    elif kind == "parquet folder":
        source.mkdir()
        for part in range(2):
            picture_dataset.shard(2, part, contiguous=True).to_parquet(source / f"held_out-{part}-of-2.parquet")
        picture_dataset.select([0]).to_parquet(source / "train.parquet")
    elif kind == "saved":
        picture_dataset.save_to_disk(source)
    else:
        datasets.DatasetDict({"held_out": picture_dataset}).save_to_disk(source)
    rows = load_rows(str(source), "held_out", "picture")
    assert len(rows) == 10
    for index in range(10):
        np.testing.assert_allclose(
            grayscale_values(ImageTransform(8, 1)(rows[index])), GRADIENT // 2 + index, atol=1e-4
        )
    with pytest.raises(ValueError, match=r"image_column must be one of \['picture', 'label'\], got 'image'"):
        load_rows(str(source), "held_out", "image")
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"image_column must hold images, as \['picture'\] do, got 'label'"):
            open_dataset(str(source), "held_out", "label", streaming)
    if kind in ("parquet folder", "saved with splits"):
        with pytest.raises(ValueError, match="split must .* got 'validation'"):
            load_rows(str(source), "validation", "picture")


def test_damaged_rows_are_named(tmp_path: Path, picture_dataset: datasets.Dataset) -> None:
    features = datasets.Features({"image": datasets.Image()})
    images = [encoded(0), {"bytes": b"damaged", "path": "inner/name.png"}, {"bytes": b"", "path": None}]
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(tmp_path / "a.parquet")
    dataset = ImageTensorDataset(load_rows(str(tmp_path / "a.parquet")), ImageTransform(8, 1), skip_bad_images=True)
    assert "name.png" in dataset[1][1][0]
    assert "row 2" in dataset[1][1][1]


def test_missing_source() -> None:
    with pytest.raises(ValueError, match="nowhere/at/all"):
        open_dataset("nowhere/at/all", "train", "image", streaming=False)


UNREACHABLE = """
import sys
from diffae_hub.training.data import open_dataset
try:
    open_dataset("nope", "train", "image", streaming=sys.argv[1] == "streaming")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("offline", ["0", "1"])
@pytest.mark.parametrize("streaming", ["streaming", "random access"])
def test_mistyped_path_where_there_is_no_hub(tmp_path: Path, offline: str, streaming: str) -> None:
    """One line, and the Hub is asked at most once (its client would print each of its attempts)."""
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": offline}
    result = subprocess.run(
        [sys.executable, "-c", UNREACHABLE, streaming],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    (line,) = result.stdout.splitlines()
    assert line.startswith("dataset 'nope' is no local path and the Hub cannot be reached: ")
    assert result.stderr == ""


def test_every_epoch_visits_every_image_once() -> None:
    sampler = ResumableBatchSampler(50, 16, start=0, stop=160, seed=4)
    pairs = [pair for batch in sampler for pair in batch]
    assert len(sampler) == 10
    assert [position for _, position in pairs] == list(range(160))
    epochs = [[index for index, _ in pairs[50 * e : 50 * e + 50]] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != list(range(50))


@pytest.mark.parametrize("start", [0, 16, 48, 96])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_order_depends_on_the_position_only(start: int, num_processes: int) -> None:
    whole = list(ResumableBatchSampler(50, 16, start=0, stop=150, seed=4))
    shares = [
        list(
            ResumableBatchSampler(
                50, 16, start=start, stop=150, seed=4, process_index=rank, num_processes=num_processes
            )
        )
        for rank in range(num_processes)
    ]
    together = [[pair for share in batch for pair in share] for batch in zip(*shares, strict=True)]
    assert together == whole[start // 16 :]
    assert all(len(batch) == 16 for batch in together), "the last batch is full too"


def test_shares() -> None:
    for batch_size, num_processes in ((16, 2), (15, 2), (7, 3)):
        shares = [range(batch_size)[process_share(batch_size, rank, num_processes)] for rank in range(num_processes)]
        assert [index for share in shares for index in share] == list(range(batch_size))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_loader_processes_change_nothing(tmp_path: Path) -> None:
    folder = bad_folder(tmp_path / "images")
    batches = []
    for workers in (0, 2):
        transform = ImageTransform(8, 1, horizontal_flip=True, crop="random")
        dataset = ImageTensorDataset(load_rows(str(folder)), transform, skip_bad_images=True)
        sampler = ResumableBatchSampler(len(dataset), 4, start=0, stop=32, seed=0)
        batches.append(list(training_loader(dataset, sampler, workers)))
    for alone, parallel in zip(*batches, strict=True):
        assert torch.equal(alone.images, parallel.images)
        assert alone.unreadable == parallel.unreadable
    assert sum(len(batch.unreadable) for batch in batches[0]) >= 3
