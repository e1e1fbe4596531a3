"""Where pipelines come from: names and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffae_hub import DiffusionAutoencoderPipeline


def test_unknown_names_list_the_bundled_models(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("no-such-model", "./no/such/folder", "/no/such/folder", "a/b/c", "", "empty"):
        with pytest.raises(ValueError, match="cifar10-32-small"):
            DiffusionAutoencoderPipeline.from_pretrained(name)


def test_a_folder_of_results_does_not_hide_the_bundled_model(tiny_pipeline, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cifar10-32-small").mkdir()
    assert DiffusionAutoencoderPipeline.from_pretrained("cifar10-32-small").encoder.config.sample_size == 32
    tiny_pipeline.save_pretrained("cifar10-32-small")  # a pipeline's folder comes first
    assert DiffusionAutoencoderPipeline.from_pretrained("cifar10-32-small").encoder.config.sample_size == 16
