"""Where pipelines come from: names, folders, the Hub; and what is wrong with files that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffae_hub import DiffusionAutoencoderPipeline

from ..hub_server import running_hub


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


# Loads by id: a process of its own, which reads its environment at import.
DRIVER = """
import sys
from pathlib import Path
from diffae_hub import DiffusionAutoencoderPipeline
cache = sys.argv[1]
load = DiffusionAutoencoderPipeline.from_pretrained
load("tester/tiny@main", variant="fp16", cache_dir=cache)
print(sorted({path.name for path in Path(cache).rglob("*.safetensors")}))
load("tester/tiny", variant="fp16", cache_dir=cache, local_files_only=True)
for name, options in (("tester/tiny@nowhere", {}), ("tester/none", {}), ("tester/tiny", {"variant": "bf8"})):
    try:
        load(name, cache_dir=cache, **options)
    except (OSError, ValueError) as error:
        print(name, type(error).__name__)
"""


def test_variants_and_revisions_from_the_hub(tiny_pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    tiny_pipeline.save_pretrained(folder)
    tiny_pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    (folder / "stray").mkdir()
    save_file({"a": torch.zeros(1)}, folder / "stray" / "stray.fp16.safetensors")
    with running_hub() as hub:
        hub.store("tester/tiny", folder)
        result = subprocess.run(
            [sys.executable, "-c", DRIVER, str(tmp_path / "cache")],
            env={**os.environ, **hub.environment(str(tmp_path / "home")), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert result.returncode == 0, result.stderr
    first, *others = result.stdout.splitlines()
    assert first == "['diffusion_pytorch_model.fp16.safetensors']"
    assert [line.split()[0] for line in others] == ["tester/tiny@nowhere", "tester/none", "tester/tiny"]
