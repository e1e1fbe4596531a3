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

from diffae_hub.data.loading import (
    ImageTensorDataset,
    ImageTransform,
    ResumableBatchSampler,
    TrainingError,
    UnfitImage,
    load_rows,
    open_dataset,
    process_share,
    training_loader,
)
from diffae_hub.data.sources import ImageFolder

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


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("block", [b"garbagegarbage", b"MM\0*", b""])
def test_a_broken_exif_block_turns_nothing(tmp_path: Path, block: bytes, crop: str) -> None:
    plain = save(tmp_path / "plain.jpg", Image.fromarray(GRADIENT))
    broken = save(tmp_path / "broken.jpg", Image.fromarray(GRADIENT), exif=b"Exif\0\0" + block)
    transform = ImageTransform(8, 1, crop=crop)
    assert torch.equal(transform(broken), transform(plain))


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    save(tmp_path / "deep.tiff", Image.fromarray(np.full((8, 8), 2**31 - 1, np.int32)))
    save(tmp_path / "good.png", Image.fromarray(GRADIENT))
    message = r"deep\.tiff cannot be used: images must be in 0 .. 65535 .* got values in 2147483647 .. 2147483647"
    for crop in ("center", "random"):
        with pytest.raises(ValueError, match=message):
            ImageTransform(8, crop=crop)({"path": str(tmp_path / "deep.tiff"), "bytes": None})
    dataset = ImageTensorDataset(load_rows(str(tmp_path)), ImageTransform(8), skip_bad_images=True)
    assert "deep.tiff" in dataset[0][1][0]
    # What Pillow raises is often no ValueError: an OverflowError here, as no picture is that large.
    with pytest.raises(ValueError, match=r"good\.png cannot be used"):
        ImageTransform(2**40)({"path": str(tmp_path / "good.png"), "bytes": None})


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


def write_images(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GRADIENT).save(folder / name)
    return str(folder)


def names_of(source: str, split: str) -> list[str]:
    """The images of a folder's split, which are the same in every way of opening it."""
    paths = load_rows(source, split).paths
    if "[" not in split:
        streamed = open_dataset(source, split, "image", streaming=True)
        assert sorted(row["image"]["path"] for row in streamed) == sorted(paths)
    opened = open_dataset(source, split, "image", streaming=False)
    assert [row["image"]["path"] for row in opened] == paths
    return [Path(path).name for path in paths]


def test_folders(tmp_path: Path) -> None:
    names = ("train/cat/b.png", "train/dog/a.JPG", "Val/d.png", "test/c.webp", "train/cat/.hidden.png", ".cache/e.png")
    source = write_images(tmp_path / "divided", *names)
    (tmp_path / "divided" / "annotations").mkdir()  # holds no images: still divided
    (tmp_path / "divided" / "annotations" / "boxes.json").write_text("{}")
    assert names_of(source, "train") == names_of(source, "training") == ["b.png", "a.JPG"]
    assert names_of(source, "validation") == names_of(source, "dev") == names_of(source, "Val") == ["d.png"]
    assert names_of(source, "test") == ["c.webp"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="dataset must hold at least one image file"):
        ImageFolder(tmp_path / "empty")


@pytest.mark.parametrize("split", ["test", "train[:1]+test", "held_out", "cat", ""])
def test_splits_that_a_divided_folder_lacks(tmp_path: Path, split: str) -> None:
    source = write_images(tmp_path, "train/cat/a.png", "val/b.png")
    with pytest.raises(ValueError, match=r"split must be .* got "):
        load_rows(source, split)
    if "[" not in split:
        with pytest.raises(ValueError, match=r"one of \['train', 'val'\], got "):
            open_dataset(source, split, "image", streaming=True)


def test_a_class_named_like_a_split(tmp_path: Path) -> None:
    source = write_images(tmp_path, "train/a.png", "car/b.png", "bus/c.png")
    for split in ("train", "test", "validation"):
        with pytest.warns(UserWarning, match="all images are taken, those below train for no splits, .* below bus"):
            assert names_of(source, split) == ["c.png", "b.png", "a.png"]
    for split in ("car", "held_out"):
        with pytest.raises(ValueError, match=rf"split must be one of train, .* got '{split}'"):
            load_rows(source, split)


@pytest.mark.parametrize(
    ("split", "expected"),
    [("test[:2]", [0, 1]), ("test[-1:]", [9]), ("test[:30%]", [0, 1, 2]), ("test[a:b]", None), ("test[", None)],
)
@pytest.mark.parametrize("kind", ["flat", "divided", "parquet", "saved", "saved with splits"])
def test_slices(tmp_path: Path, picture_dataset: datasets.Dataset, kind: str, split: str, expected) -> None:
    picture_dataset = picture_dataset.rename_column("picture", "image")
    if kind in ("flat", "divided"):
        folder = tmp_path / "test" if kind == "divided" else tmp_path
        folder.mkdir(exist_ok=True)
        for index in range(10):
            Image.fromarray((GRADIENT // 2 + index).astype(np.uint8)).save(folder / f"{index}.png")
    elif kind == "parquet":
        picture_dataset.to_parquet(tmp_path / "test.parquet")
    elif kind == "saved":
        picture_dataset.save_to_disk(tmp_path)
    else:
        datasets.DatasetDict({"test": picture_dataset}).save_to_disk(tmp_path)
    if expected is None:
        with pytest.raises(ValueError, match=r"split must be a name, with or without a slice .* got 'test\["):
            load_rows(str(tmp_path), split)
        return
    rows = load_rows(str(tmp_path), split)
    shown = [round(float(grayscale_values(ImageTransform(8, 1)(row))[0, 0])) for row in rows]
    assert shown == expected
    if kind in ("flat", "divided"):
        assert names_of(str(tmp_path), split) == [f"{index}.png" for index in expected]
    with pytest.raises(ValueError, match="split must be a name without a slice when streaming"):
        open_dataset(str(tmp_path), split, "image", streaming=True)
    with pytest.raises(ValueError, match=r"at least one image, got none in split 'test\[:0\]'"):
        load_rows(str(tmp_path), "test[:0]")


def test_links_to_nothing_are_unreadable_images(tmp_path: Path) -> None:
    source = write_images(tmp_path, "b.png")
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "c.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "d.png")
    rows = load_rows(source)
    assert [Path(path).name for path in rows.paths] == ["a.png", "b.png"]
    with pytest.raises(TrainingError, match=r"a\.png does not exist"):
        ImageTensorDataset(rows, ImageTransform(8))[0]
    assert "a.png" in ImageTensorDataset(rows, ImageTransform(8), skip_bad_images=True)[0][1][0]
    with pytest.raises(ValueError, match=r"a\.png"):
        open_dataset(source, "train", "image", streaming=True)


def test_subfolders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", "cat/a.png", "dog/b.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "dog").chmod(0)
    tmp_path.chmod(0o755)
    superuser = os.geteuid() == 0  # who may read everything
    try:
        if superuser:
            os.seteuid(65534)
        with pytest.raises(ValueError, match=r"can be read with its subfolders, got images/dog: Permission denied"):
            load_rows("images")
        with pytest.raises(ValueError, match=r"got images/dog: Permission denied"):
            load_rows("images/dog")
    finally:
        if superuser:
            os.seteuid(0)
        (tmp_path / "images" / "dog").chmod(0o755)


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


@pytest.mark.parametrize(
    "name",
    ["test.parquet", "test-00000-of-00001.parquet", "test_0.parquet", "test.part.parquet", "test/any.parquet"],
)
@pytest.mark.parametrize("folder", [".", "data"])
def test_parquet_files_of_a_split(tmp_path: Path, picture_dataset: datasets.Dataset, name: str, folder: str) -> None:
    """Not those of splits whose names begin alike. A copy of a Hub dataset has them in `data`, beside README.md."""
    (tmp_path / "README.md").write_text("A data set.")
    others = ("test_hard.parquet", "test2.parquet", "testing/b.parquet", "train-0.parquet", "test/.hidden.parquet")
    for file in (name, *others):
        (tmp_path / folder / file).parent.mkdir(parents=True, exist_ok=True)
        picture_dataset.select(range(3 if file == name else 5)).to_parquet(tmp_path / folder / file)
    for streaming in (False, True):
        assert len(list(open_dataset(str(tmp_path), "test", "picture", streaming))) == 3
    assert len(load_rows(str(tmp_path), "test_hard", "picture")) == 5
    with pytest.raises(ValueError, match=r"split must name parquet files in .*'train-0\.parquet'\], got 'tes'"):
        load_rows(str(tmp_path), "tes", "picture")


def test_parquet_files_above_data_come_first(tmp_path: Path, picture_dataset: datasets.Dataset) -> None:
    (tmp_path / "data").mkdir()
    picture_dataset.to_parquet(tmp_path / "data" / "test.parquet")
    picture_dataset.select([0]).to_parquet(tmp_path / "test[1].parquet")  # no pattern
    with pytest.raises(ValueError, match="split must name parquet files"):
        load_rows(str(tmp_path), "test", "picture")
    assert len(load_rows(str(tmp_path / "test[1].parquet"), "any", "picture")) == 1


def test_metadata_is_no_data(tmp_path: Path) -> None:
    source = write_images(tmp_path, "a.png", "b.png")
    columns = datasets.Dataset.from_dict({"file_name": ["a.png", "b.png"], "age": [3, 5]})
    columns.to_parquet(tmp_path / "metadata.parquet")
    assert [Path(path).name for path in load_rows(source, "train").paths] == ["a.png", "b.png"]
    write_images(tmp_path, "c.png")  # it has no age
    for streaming in (False, True):
        opened = open_dataset(source, "train", "image", streaming)
        assert sorted(Path(row["image"]["path"]).name for row in opened) == ["a.png", "b.png", "c.png"]
    opened = open_dataset(source, "train", "image", False, ["age"])
    assert {Path(row["image"]["path"]).name: row["age"] for row in opened} == {"a.png": 3, "b.png": 5}


def test_a_file_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(ValueError, match=r"dataset must hold files that can be read, got .*: \w+") as caught:
        load_rows(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_damaged_rows_are_named(tmp_path: Path, picture_dataset: datasets.Dataset) -> None:
    features = datasets.Features({"image": datasets.Image()})
    images = [encoded(0), {"bytes": b"damaged", "path": "inner/name.png"}, {"bytes": b"", "path": None}]
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(tmp_path / "a.parquet")
    dataset = ImageTensorDataset(load_rows(str(tmp_path / "a.parquet")), ImageTransform(8, 1), skip_bad_images=True)
    assert "name.png" in dataset[1][1][0]
    assert "row 2" in dataset[1][1][1]


@pytest.mark.parametrize("name", ["photo.png", "photos.tar"])
def test_a_file_of_another_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    for open_it in (load_rows, lambda source: open_dataset(source, "train", "image", streaming=True)):
        with pytest.raises(ValueError, match=rf"dataset must be a folder .* a \.parquet file.* got the file .*{name}"):
            open_it(str(tmp_path / name))


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture_dataset: datasets.Dataset) -> None:
    write_images(tmp_path / "photos", "a.png")
    picture_dataset.to_parquet(tmp_path / "a.PARQUET")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names_of("~/photos", "train") == ["a.png"]
    assert len(load_rows("~/a.PARQUET", "train", "picture")) == 10


def test_missing_source() -> None:
    with pytest.raises(ValueError, match="File name too long"):
        load_rows("a" * 5000)
    with pytest.raises(ValueError, match="nowhere/at/all"):
        open_dataset("nowhere/at/all", "train", "image", streaming=False)


UNREACHABLE = """
import sys
from diffae_hub.data.loading import open_dataset
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
