"""Which images and columns a source, a split and a slice select, and what is refused."""

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from diffae_hub.data.open_dataset import load_rows, open_dataset
from diffae_hub.data.transform import ImageTransform

from .pictures import GRADIENT, encoded, grayscale_values, table, write_images


@pytest.fixture
def picture_table() -> datasets.Dataset:
    """Ten pictures; the first pixel of picture i is i."""
    return table([encoded(GRADIENT // 2 + index) for index in range(10)], "picture")


def names_of(source: str, split: str = "train") -> list[str]:
    """Returns the images of a folder's split, which must be the same for every way to open it."""
    paths = [row["path"] for row in load_rows(source, split)]
    for streaming in (False, True):
        opened = open_dataset(source, split, "image", streaming)
        assert [row["image"] for row in opened] == [{"path": path, "bytes": None} for path in paths]
    return [str(Path(path).relative_to(Path(source).expanduser())) for path in paths]


def refused(
    argument: str, source: object, split: str = "train", column: str = "image", columns: tuple = (), only=(False, True)
) -> str:
    """Returns the error of every way to open a source: one line that names the argument."""
    for streaming in only:
        with pytest.raises(ValueError, match=argument) as caught:
            open_dataset(str(source), split, column, streaming, columns)
        assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders(tmp_path: Path) -> None:
    names = ("train/cat/b.png", "train/dog/a.JPG", "Val/d.png", "test/c.webp", "train/cat/.hidden.png", ".cache/e.png")
    source = write_images(tmp_path / "divided", *names, "beside.png")
    (tmp_path / "divided" / "annotations").mkdir()  # holds no images: still divided
    (tmp_path / "divided" / "annotations" / "boxes.json").write_text("{}")
    assert names_of(source, "train") == names_of(source, "training") == ["train/cat/b.png", "train/dog/a.JPG"]
    assert names_of(source, "validation") == names_of(source, "dev") == names_of(source, "Val") == ["Val/d.png"]
    assert names_of(source, "test") == ["test/c.webp"]
    for split in ("held_out", "cat", ""):
        refused("split", source, split)
    refused("split", source, "train[:1]+test")
    (tmp_path / "empty").mkdir()
    refused("dataset", tmp_path / "empty")


def test_folders_that_are_not_divided(tmp_path: Path) -> None:
    """The name of an image does not put it in a split, and a class may be named like a split."""
    source = write_images(tmp_path / "images", "a.png", "photo test 1.png", "sub/val-2.png")
    assert names_of(source, "train") == names_of(source, "test") == ["a.png", "photo test 1.png", "sub/val-2.png"]
    refused("split", source, "held_out")
    source = write_images(tmp_path / "classes", "train/a.png", "car/b.png", "bus/c.png")
    with pytest.warns(UserWarning, match="train.*bus"):
        assert names_of(source, "test") == ["bus/c.png", "car/b.png", "train/a.png"]
    refused("split", source, "car")


def test_links(tmp_path: Path) -> None:
    """Each real file is found once, by its own name if it has one here. Loops end, and hidden files are left out."""
    write_images(tmp_path, "elsewhere/dog/c.png", "elsewhere/one.png")
    source = write_images(tmp_path / "root", "a/1.png", "b/2.png", "cat/.hidden/4.png")
    links = {"dog": "../elsewhere/dog", "a/above": "../..", "a/other": "../b", "b/other": "../a", "again": "b"}
    links |= {"0.png": "a/1.png", "x.png": "../elsewhere/one.png", "y.png": "x.png", "z.png": "cat/.hidden/4.png"}
    links |= {"itself": "itself", "itself.png": "itself.png", "gone.png": "nowhere.png"}
    for name, target in links.items():
        (tmp_path / "root" / name).symlink_to(target)
    expected = ["a/1.png", "b/2.png", "dog/c.png", "gone.png", "itself.png", "x.png", "z.png"]
    assert names_of(source) == expected


@pytest.mark.parametrize("name", ["a.png", "train.parquet", "metadata.csv", "saved/data.arrow"])
def test_pipes_are_refused_by_name(tmp_path: Path, name: str) -> None:
    """They are not read, which would take for ever."""
    source = write_images(tmp_path / "data", "b.png")
    if "saved" in name:
        source = tmp_path / "data" / "saved"
        table([encoded()]).save_to_disk(source)
    os.mkfifo(tmp_path / "data" / name)
    assert name in refused("dataset", source, columns=("age",))
    if name == "train.parquet":
        assert name in refused("dataset", tmp_path / "data" / name)
        assert "/dev/zero" in refused("dataset", "/dev/zero")


def test_images_of_other_types_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.jfif", "c.HEIC", "d.txt"):
        Image.fromarray(GRADIENT).save(tmp_path / name, "PNG")
    with pytest.warns(UserWarning, match="2 files"):
        assert len(load_rows(str(tmp_path))) == 1


@pytest.mark.parametrize("kind", ["folder", "parquet", "saved with splits"])
def test_slices(tmp_path: Path, picture_table: datasets.Dataset, kind: str) -> None:
    rows = picture_table.rename_column("picture", "image")
    if kind == "folder":
        (tmp_path / "test").mkdir()
        for index in range(10):
            Image.fromarray((GRADIENT // 2 + index).astype(np.uint8)).save(tmp_path / "test" / f"{index}.png")
    elif kind == "parquet":
        rows.to_parquet(tmp_path / "test.parquet")
    else:
        datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path)
    for split, expected in (("test[-1:]", [9]), ("test[:30%]", [0, 1, 2])):
        rows = load_rows(str(tmp_path), split)
        assert [round(float(grayscale_values(ImageTransform(8, 1)(row))[0, 0])) for row in rows] == expected
        refused("split", tmp_path, split, only=(True,))
    for split in ("test[a:b]", "test["):
        refused("split", tmp_path, split)
    with pytest.raises(ValueError, match="dataset"):
        load_rows(str(tmp_path), "test[:0]")


@pytest.mark.parametrize("kind", ["parquet file", "parquet folder", "saved", "saved with splits"])
def test_tables(tmp_path: Path, picture_table: datasets.Dataset, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "parquet file":
        source = source.with_suffix(".PARQUET")
        picture_table.to_parquet(source)
    elif kind == "parquet folder":
        source.mkdir()
        for part in range(2):
            picture_table.shard(2, part, contiguous=True).to_parquet(source / f"held_out-{part}-of-2.parquet")
        picture_table.select([0]).to_parquet(source / "train.parquet")
    elif kind == "saved":
        picture_table.save_to_disk(source)
    else:
        datasets.DatasetDict({"held_out": picture_table}).save_to_disk(source)
    rows = load_rows(str(source), "held_out", "picture")
    images = [grayscale_values(ImageTransform(8, 1)(row)) for row in rows]
    np.testing.assert_allclose(images, [GRADIENT // 2 + index for index in range(10)], atol=1e-4)
    for streaming in (False, True):  # not decoded by `datasets`
        row = next(iter(open_dataset(str(source), "held_out", "picture", streaming, ["label"])))
        assert row == {"picture": {**encoded(GRADIENT // 2), "path": row["picture"]["path"]}, "label": 0}
    refused("image_column", source, "held_out", "image")
    refused("image_column", source, "held_out", "label")
    refused("columns", source, "held_out", "picture", ("age",))
    refused("columns", source, "held_out", "picture", ("picture",))  # a second column of images would be decoded
    if kind in ("parquet folder", "saved with splits"):
        refused("split", source, "validation", "picture")


@pytest.mark.parametrize(
    "name", ["test.parquet", "test-00000-of-00001.parquet", "test_0.parquet", "test.part.parquet", "test/any.parquet"]
)
def test_parquet_files_of_a_split(tmp_path: Path, picture_table: datasets.Dataset, name: str) -> None:
    """Other splits may begin with the same name. A copy of a Hub dataset has the files in `data`, beside README.md."""
    (tmp_path / "README.md").write_text("A data set.")
    folder = "data" if "-" in name else "."
    others = ("test_hard.parquet", "test2.parquet", "testing/b.parquet", "train-0.parquet", "test/.hidden.parquet")
    for file in (name, *others):
        (tmp_path / folder / file).parent.mkdir(parents=True, exist_ok=True)
        picture_table.select(range(3 if file == name else 5)).to_parquet(tmp_path / folder / file)
    for streaming in (False, True):
        assert len(list(open_dataset(str(tmp_path), "test", "picture", streaming))) == 3
    assert len(load_rows(str(tmp_path), "test_hard", "picture")) == 5
    refused("split", tmp_path, "tes", "picture")


def test_columns_of_a_folder_of_images(tmp_path: Path) -> None:
    """They come from a metadata file beside the images, which is not a data set itself."""
    folder, ages = tmp_path / "[a]", {"file_name": ["*a?.png", "b.png"], "age": [3, 5]}  # no patterns, but names
    source = write_images(folder, *ages["file_name"], "c.png")  # it has no age
    datasets.Dataset.from_dict(ages).to_parquet(folder / "metadata.parquet")
    assert names_of(source) == ["*a?.png", "b.png", "c.png"]
    for streaming in (False, True):
        opened = open_dataset(source, "train", "image", streaming, ["age"])
        assert {Path(row["image"]["path"]).name: row["age"] for row in opened} == {"*a?.png": 3, "b.png": 5}
    refused("columns", source, columns=("height",))


def test_subfolders_are_classes(tmp_path: Path) -> None:
    source = write_images(tmp_path, "test/cat/a.png", "test/cat/young/b.png", "test/dog/c.png")
    for streaming in (False, True):
        opened = open_dataset(source, "test", "image", streaming, ["label"])
        assert opened.features["label"].names == ["cat", "dog"]
        assert [row["label"] for row in opened] == [0, 0, 1]
    write_images(tmp_path, "test/bare.png")
    assert "bare.png" in refused("columns", source, "test", columns=("label",))


@pytest.mark.parametrize("kind", ["parquet", "saved", "broken state"])
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    else:
        table([encoded()]).save_to_disk(tmp_path)
        (tmp_path / ("state.json" if kind == "broken state" else "data-00000-of-00001.arrow")).write_bytes(b"{damaged")
    assert str(tmp_path) in refused("dataset", tmp_path)


def test_sources_that_are_none(tmp_path: Path) -> None:
    for name in ("photo.png", "photos.tar"):
        (tmp_path / name).write_bytes(b"content")
        assert name in refused("dataset", tmp_path / name)
    folder = tmp_path / "latin"
    folder.mkdir()
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.png")).write_bytes(b"content")
    assert "caf" in refused("dataset", folder)
    (tmp_path / "train.parquet").symlink_to(tmp_path / "gone.parquet")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for source in (tmp_path, tmp_path / "loop", "nowhere/at/all"):
        refused("dataset", source)
    with pytest.raises(ConnectionError, match="nope"):  # the suite is offline
        open_dataset("nope", "train", "image", streaming=False)
    table([]).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="dataset"):
        load_rows(str(tmp_path / "empty.parquet"))


def test_mistyped_path_where_there_is_no_hub(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """The Hub is asked only once, because its client would print every attempt."""
    for owner in (constants, datasets.config):
        monkeypatch.setattr(owner, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for streaming in (False, True):
        with pytest.raises(ConnectionError, match="dataset.*nope"):
            open_dataset("nope", "train", "image", streaming)
    assert capfd.readouterr().err == ""
