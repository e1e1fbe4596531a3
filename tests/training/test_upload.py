"""An upload that fails at the end of a run is one line with the command that repeats it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..hub_server import running_hub
from .runner import arguments


def test_failed_upload(image_folder: Path, tmp_path: Path) -> None:
    argv = arguments(image_folder, tmp_path / "run", "--push-to-hub", "--hub-model-id=tiny", training_examples=16)
    with running_hub() as hub:
        hub.fault = ("403", "^POST .*/commit/")  # repositories are created, but take no commits
        result = subprocess.run(
            [sys.executable, "-m", "diffae_hub.cli", "train", *argv],
            env={**os.environ, **hub.environment(str(tmp_path / "home")), "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 1, result.stderr
        assert len(hub.repositories["tester/tiny"].commits) == 1, "nothing was published"
    assert "Traceback" not in result.stderr
    pipeline = tmp_path / "run" / "pipeline"
    assert f"diffae-hub push {pipeline} tester/tiny" in result.stderr
    assert (pipeline / "model_index.json").exists()
