"""The fingerprint changes with the data, and with nothing else."""

import os
import shutil
from pathlib import Path

import pytest
from datasets import DatasetDict

from diffae_hub.data.fingerprint import data_fingerprint, warn_if_same_data
from diffae_hub.data.open_dataset import load_rows, open_dataset

from .pictures import encoded, table, write_images


def fingerprint(source: Path, streaming: bool = False, name: str | None = None) -> str:
    rows = open_dataset(str(source), "train", "image", True) if streaming else load_rows(str(source))
    return data_fingerprint(name or str(source), "train", rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_folder(tmp_path: Path, streaming: bool) -> None:
    source = tmp_path / "images"
    write_images(source, "train/a.png", "train/sub/b.png", "test/c.png")
    (source / "train" / "gone.png").symlink_to("nowhere.png")
    before = fingerprint(source, streaming)
    moved = Path(shutil.copytree(source, source.with_name("moved"), symlinks=True))  # with the times
    assert fingerprint(moved, streaming) == before
    write_images(source, "test/d.png")  # of another split
    assert fingerprint(source, streaming) == before
    image = source / "train" / "a.png"
    time, content, seen = {"ns": (0, 10**18)}, image.read_bytes(), {before}
    for change in (
        lambda: os.utime(image, **time),
        lambda: (image.write_bytes(content + b" "), os.utime(image, **time)),  # the size alone
        lambda: image.rename(image.with_name("e.png")),
        (source / "train" / "sub" / "b.png").unlink,
    ):
        change()
        seen.add(fingerprint(source, streaming))
    assert len(seen) == 5


@pytest.mark.parametrize("kind", ["parquet", "saved", "not on this disk", "stream not on this disk"])
def test_tables(tmp_path: Path, kind: str) -> None:
    """If data are not on this disk, the opened data set is used. Local data sets stand for those of the Hub."""
    rows, found = table([encoded()] * 4), []
    for name, dataset in (("a", rows), ("b", rows.select([0, 2]))):
        source = tmp_path / name / "data"
        source.mkdir(parents=True)
        if kind == "saved":
            dataset.save_to_disk(source)
        else:
            dataset.to_parquet(source / f"train-{name}.parquet")
        options = {"streaming": "stream" in kind, "name": "somebody/pictures" if "disk" in kind else None}
        found += [fingerprint(source, **options) for _ in range(2)]
        if "disk" not in kind:
            assert fingerprint(Path(shutil.copytree(source, source.with_name("moved")))) == found[-1]
    assert found[0] == found[1] != found[2] == found[3]


def test_the_same_images_are_warned_of(tmp_path: Path, capsys) -> None:
    rows, folder, saved = table([encoded()] * 4), tmp_path / "images", tmp_path / "saved"
    write_images(folder, "a.png", "b.png")
    DatasetDict(train=rows, test=rows.select([1])).save_to_disk(saved)
    pairs = {
        "same": ((str(folder), "test"), (str(folder), "train")),  # a folder without splits
        "slices": ((str(folder), "train[:50%]"), (str(folder), "train[50%:]")),
        "splits": ((str(saved), "test"), (str(saved), "train")),
        "hub": (("somebody/pictures", "test"), ("somebody/pictures", "test")),
    }
    for name, (held_out, training) in pairs.items():
        warn_if_same_data("dataset", held_out, training)
        assert ("WARNING" in capsys.readouterr().err) == (name == "same")
