"""Codes of whole data sets in shards, and neighbours against distances written out."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

from diffae_hub import load_codes
from diffae_hub.cli.main import main
from diffae_hub.codes import codes_summary, encode_dataset, encoder_fingerprint, nearest_codes
from diffae_hub.data.open_dataset import load_rows

from .training import runner


def encode(dataset: str, model: str, output: Path, *more: str) -> list[str]:
    arguments = ["encode", dataset, "--split", "test", "--model", model, f"--output={output}", "--device", "cpu"]
    return [*arguments, "--columns", "label", "--shard-size", "4", "--batch-size", "3", *more]


@pytest.fixture
def expected(tiny_pipeline, test_images: str) -> np.ndarray:
    images = [Image.open(io.BytesIO(row["bytes"])) for row in load_rows(test_images, "test")]
    return torch.cat([tiny_pipeline.encode(image) for image in images]).numpy()


@pytest.mark.parametrize(("file_format", "streaming"), [("parquet", True), ("safetensors", False)])
def test_codes_are_the_encoders(
    file_format: str, streaming: bool, model: str, test_images: str, expected: np.ndarray, tmp_path: Path, capsys
) -> None:
    more = ["--format", file_format, *["--streaming"] * streaming]
    assert main(encode(test_images, model, tmp_path / "codes", *more)) == 0
    assert "11 codes" in capsys.readouterr().out
    assert len(list((tmp_path / "codes").glob(f"codes-*.{file_format}"))) == 3
    codes = load_codes(str(tmp_path / "codes"), ["label", "source"])
    assert codes["index"].tolist() == list(range(11))
    assert codes["source"].tolist() == [f"row {index}" for index in range(11)]
    assert codes["label"].tolist() == [index % 2 for index in range(11)]
    np.testing.assert_allclose(codes["latent_code"], expected, atol=1e-5)
    assert not list((tmp_path / "codes").glob(".*"))


def test_codes_of_another_encoder_are_told_apart(tiny_pipeline, test_images: str, tmp_path: Path) -> None:
    encode_dataset(tiny_pipeline, test_images, tmp_path / "codes")
    before = encoder_fingerprint(tiny_pipeline)
    with torch.no_grad():
        tiny_pipeline.decoder.conv_out.bias.add_(1)
    assert encode_dataset(tiny_pipeline, test_images, tmp_path / "codes") == 11  # codes do not depend on the decoder
    with torch.no_grad():
        tiny_pipeline.encoder.head.bias.add_(1)
    assert encoder_fingerprint(tiny_pipeline) != before
    with pytest.raises(ValueError, match="encoder"):
        encode_dataset(tiny_pipeline, test_images, tmp_path / "codes")
    with torch.no_grad():
        tiny_pipeline.encoder.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        encode_dataset(tiny_pipeline, test_images, tmp_path / "broken")
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["settings.json"]


def test_bad_input(model: str, test_images: str, tmp_path: Path, refusal) -> None:
    folder = tmp_path / "codes"
    assert main(encode(test_images, model, folder)) == 0
    for more in (["--shard-size", "5"], ["--format", "safetensors"]):
        assert more[0][2:].replace("-", "_") in refusal(*encode(test_images, model, folder, *more))
    with pytest.raises(ValueError, match="codes"):
        load_codes(tmp_path)
    for columns in (["other"], ["label", "label"]):
        with pytest.raises(ValueError, match="columns"):
            load_codes(folder, columns)
    (folder / "codes-0000001.parquet").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match="codes"):
        load_codes(folder)
    (tmp_path / "kept").rename(folder / "codes-0000001.parquet")
    summary = json.loads((folder / "codes.json").read_text())
    for count in (2_000_000_000, -1, 1.5):
        (folder / "codes.json").write_text(json.dumps({**summary, "count": count}))
        with pytest.raises(ValueError, match="codes"):
            load_codes(folder)
    (folder / "codes.json").write_text("{}")
    with pytest.raises(ValueError, match="codes.json"):
        load_codes(folder)


def test_what_is_refused_leaves_the_folder_free(model: str, test_images: str, tmp_path: Path, refusal) -> None:
    for more, argument in (
        (["--columns", "nonsense"], "columns"),
        (["--columns", "image"], "columns"),
        (["--num-images", "0"], "num_images"),
        (["--crop", "d2c"], "178x218"),
    ):
        assert argument in refusal(*encode(test_images, model, tmp_path / "codes"), *more)
        assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize("file_format", ["parquet", "safetensors"])
def test_number_of_images_may_change_and_shards_be_missing(file_format, model, test_images, expected, tmp_path) -> None:
    folder = tmp_path / "codes"
    first, second = (folder / f"codes-000000{number}.{file_format}" for number in (0, 1))
    for count in (6, 11, 3, 11):
        assert main(encode(test_images, model, folder, "--format", file_format, "--num-images", str(count))) == 0
        codes = load_codes(folder, ["label"])
        assert codes["index"].tolist() == list(range(count))
        assert codes["label"].tolist() == [index % 2 for index in range(count)]
        np.testing.assert_allclose(codes["latent_code"], expected[:count], atol=1e-5)
        assert codes_summary(folder)["count"] == count
    before = first.stat().st_mtime_ns
    second.unlink()
    assert main(encode(test_images, model, folder, "--format", file_format)) == 0
    assert first.stat().st_mtime_ns == before
    np.testing.assert_allclose(load_codes(folder)["latent_code"], expected, atol=1e-5)


def test_two_processes_share_the_shards(model: str, test_images: str, expected: np.ndarray, tmp_path: Path) -> None:
    runner.run(encode(test_images, model, tmp_path / "codes"), processes=2)
    np.testing.assert_allclose(load_codes(tmp_path / "codes")["latent_code"], expected, atol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_those_of_brute_force(metric: str) -> None:
    rng = np.random.default_rng(0)
    codes, queries = (rng.normal(size=(count, 6)) * np.arange(1, 7) + 3 for count in (50, 4))
    distances = cdist(*((points - codes.mean(axis=0)) / codes.std(axis=0) for points in (queries, codes)), metric)
    found, rows = nearest_codes(codes, queries, 5, metric)
    np.testing.assert_array_equal(rows, np.argsort(distances, axis=1)[:, :5])
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :5], atol=1e-5)
    for number in (0, 51):
        with pytest.raises(ValueError, match="num_neighbours"):
            nearest_codes(codes, queries, number)
