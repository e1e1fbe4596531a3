"""`diffae-hub encode`: codes of whole data sets in shards."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from diffae_hub.cli.main import main
from diffae_hub.codes.shards import load_codes
from diffae_hub.data.open_dataset import load_rows


def encode(dataset: str, model: str, output: Path, *more: str) -> list[str]:
    arguments = ["encode", dataset, "--split", "test", "--model", model, "--output", str(output), "--device", "cpu"]
    return [*arguments, "--columns", "label", "--shard_size", "4", "--batch_size", "3", *more]


@pytest.fixture
def expected(tiny_pipeline, test_images: str) -> np.ndarray:
    images = [Image.open(io.BytesIO(row["bytes"])) for row in load_rows(test_images, "test")]
    return torch.cat([tiny_pipeline.encode(image) for image in images]).numpy()


@pytest.mark.parametrize("file_format", ["parquet", "safetensors"])
@pytest.mark.parametrize("streaming", [False, True])
def test_codes_are_the_encoders(
    file_format: str, streaming: bool, model: str, test_images: str, expected: np.ndarray, tmp_path: Path, capsys
) -> None:
    more = ["--format", file_format, *["--streaming"] * streaming]
    assert main(encode(test_images, model, tmp_path / "codes", *more)) == 0
    assert "11 codes" in capsys.readouterr().out
    assert len(list((tmp_path / "codes").glob(f"codes-*.{file_format}"))) == 3
    codes = load_codes(tmp_path / "codes", ["label"])
    assert codes["index"].tolist() == list(range(11))
    assert codes["label"].tolist() == [index % 2 for index in range(11)]
    np.testing.assert_allclose(codes["latent_code"], expected, atol=1e-5)
    summary = json.loads((tmp_path / "codes" / "codes.json").read_text())
    np.testing.assert_allclose(summary["latent_mean"], expected.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(summary["latent_std"], expected.std(axis=0), atol=1e-5)
    assert not list((tmp_path / "codes").glob(".*"))


def test_continues_with_the_shards_that_are_missing(
    model: str, test_images: str, expected: np.ndarray, tmp_path: Path
) -> None:
    folder = tmp_path / "codes"
    arguments = encode(test_images, model, folder, "--format", "safetensors")
    assert main(arguments) == 0
    shards = sorted(folder.glob("*.safetensors"))
    before = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    assert main(arguments) == 0
    assert shards[0].stat().st_mtime_ns == before
    np.testing.assert_allclose(load_file(shards[1])["latent_code"], expected[4:8], atol=1e-5)


def test_two_processes_share_the_shards(model: str, test_images: str, expected: np.ndarray, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "diffae_hub.cli", *encode(test_images, model, tmp_path / "codes")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=900)
    np.testing.assert_allclose(load_codes(tmp_path / "codes")["latent_code"], expected, atol=1e-5)


def test_bad_input(model: str, test_images: str, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "codes"
    assert main(encode(test_images, model, folder)) == 0
    capsys.readouterr()
    assert main(encode(test_images, model, folder, "--shard_size", "5")) == 2
    assert "same settings" in capsys.readouterr().err
    assert main([*encode(test_images, model, tmp_path / "other"), "--columns", "nonsense"]) == 2
    assert "columns must be among" in capsys.readouterr().err
    assert main(encode(test_images, model, folder, "--format", "safetensors")) == 2
    assert "format must be that of the codes" in capsys.readouterr().err
    with pytest.raises(ValueError, match="codes must be a folder with a codes.json"):
        load_codes(tmp_path)
    with pytest.raises(ValueError, match=r"columns must be among \['label'\], got \['other'\]"):
        load_codes(folder, ["other"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--columns", "nonsense"], "columns must be among"),
        (["--columns", "label", "label"], "columns must differ from one another"),
        (["--columns", "image"], "columns must differ from one another and from index, latent_code, image"),
        (["--num_images", "0"], "num_images must be at least 1, got 0"),
        (["--crop", "d2c"], "178x218"),
        (["--device", "nonsense"], "device must be a device of this machine, got 'nonsense'"),
        (["--model", "nonsense"], "model 'nonsense' cannot be loaded"),
    ],
)
def test_what_is_refused_leaves_the_folder_free(
    more: list[str], message: str, model: str, test_images: str, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "codes"
    assert main([*encode(test_images, model, folder), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert main(encode(test_images, model, folder)) == 0


def test_output_that_is_a_file(model: str, test_images: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("precious")
    assert main(encode(test_images, model, tmp_path / "file")) == 2
    assert "output must be a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "precious"


def test_output_that_holds_something_else(model: str, test_images: str, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "precious.txt").write_text("x")
    assert main(encode(test_images, model, folder)) == 2
    assert "output must be a new or empty folder" in capsys.readouterr().err
    (folder / "settings.json").write_text("not JSON")
    assert main(encode(test_images, model, folder)) == 2
    assert "settings.json is of something else" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["precious.txt", "settings.json"]


@pytest.mark.parametrize("file_format", ["parquet", "safetensors"])
def test_number_of_images_may_change(
    file_format: str, model: str, test_images: str, expected: np.ndarray, tmp_path: Path
) -> None:
    folder = tmp_path / "codes"
    for count in (6, 11, 3, 11):
        arguments = encode(test_images, model, folder, "--format", file_format, "--num_images", str(count))
        assert main(arguments) == 0
        codes = load_codes(folder, ["label"])
        assert codes["index"].tolist() == list(range(count))
        assert codes["label"].tolist() == [index % 2 for index in range(count)]
        np.testing.assert_allclose(codes["latent_code"], expected[:count], atol=1e-5)
        summary = json.loads((folder / "codes.json").read_text())
        assert summary["count"] == count
        np.testing.assert_allclose(summary["latent_mean"], expected[:count].mean(axis=0), atol=1e-5)


def test_column_named_like_a_part_of_the_image(model: str, test_images: str, expected: np.ndarray, tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(test_images)
    names = [f"name {index}" for index in range(len(table))]
    table = table.append_column("path", pa.array(names)).append_column("bytes", pa.array(names))
    pq.write_table(table, tmp_path / "named.parquet")
    assert (
        main([*encode(str(tmp_path / "named.parquet"), model, tmp_path / "codes"), "--columns", "path", "bytes"]) == 0
    )
    codes = load_codes(tmp_path / "codes", ["path", "bytes"])
    assert codes["path"].tolist() == codes["bytes"].tolist() == names
    np.testing.assert_allclose(codes["latent_code"], expected, atol=1e-5)


def test_processes_on_the_cpu_know_of_one_another_without_a_device(model: str, test_images: str, tmp_path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = encode(test_images, model, tmp_path / "codes", "--json")
    del arguments[arguments.index("--device") : arguments.index("--device") + 2]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*command, "-m", "diffae_hub.cli", *arguments],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        timeout=900,
    )
    assert json.loads(process.stdout)["count"] == 11  # one report, by the first
