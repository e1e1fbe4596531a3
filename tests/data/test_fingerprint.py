"""The fingerprint changes with the data, and with nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import datasets
import pytest

from diffae_hub.data.fingerprint import data_fingerprint
from diffae_hub.data.open_dataset import load_rows, open_dataset

from .pictures import encoded, table, write_images


def fingerprint(source: Path, streaming: bool = False) -> str:
    rows = open_dataset(str(source), "train", "image", True) if streaming else load_rows(str(source))
    return data_fingerprint(str(source), "train", rows)


def move_with_times(source: Path) -> Path:
    return Path(shutil.copytree(source, source.with_name("moved"), symlinks=True))


@pytest.mark.parametrize("streaming", [False, True])
def test_folder(tmp_path: Path, streaming: bool) -> None:
    source = tmp_path / "images"
    write_images(source, "train/a.png", "train/sub/b.png", "test/c.png")
    (source / "train" / "gone.png").symlink_to("nowhere.png")
    before = fingerprint(source, streaming)
    assert fingerprint(move_with_times(source), streaming) == before
    write_images(source, "test/d.png")  # of another split
    assert fingerprint(source, streaming) == before
    seen = {before}
    image = source / "train" / "a.png"
    os.utime(image, ns=(0, 10**18))
    seen.add(fingerprint(source, streaming))
    content = image.read_bytes()
    image.write_bytes(content + b" ")
    os.utime(image, ns=(0, 10**18))  # the size alone differs
    seen.add(fingerprint(source, streaming))
    image.rename(image.with_name("e.png"))
    seen.add(fingerprint(source, streaming))
    (source / "train" / "sub" / "b.png").unlink()
    seen.add(fingerprint(source, streaming))
    assert len(seen) == 5


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_tables(tmp_path: Path, kind: str) -> None:
    rows, source, seen = table([encoded()] * 4), tmp_path / "table", set()
    source.mkdir()
    for dataset in (rows, rows.select([0, 2])):
        if kind == "parquet":
            dataset.to_parquet(source / "train.parquet")
        else:
            dataset.save_to_disk(source)
        seen.add(fingerprint(source))
    assert len(seen) == 2
    assert fingerprint(move_with_times(source)) in seen


def test_what_is_not_on_this_disk(tmp_path: Path) -> None:
    """The opened data set is asked: here local ones stand for those of the Hub."""
    for name in ("a", "b"):
        table([encoded()]).to_parquet(tmp_path / f"{name}.parquet")
    for streaming in (False, True):
        found = []
        for name in ("a", "b", "a"):
            opened = open_dataset(str(tmp_path / f"{name}.parquet"), "train", "image", streaming)
            rows = opened if streaming else load_rows(str(tmp_path / f"{name}.parquet"))
            found.append(data_fingerprint("somebody/pictures", "train", rows))
        assert found[0] == found[2] != found[1]
    assert isinstance(opened, datasets.IterableDataset)
