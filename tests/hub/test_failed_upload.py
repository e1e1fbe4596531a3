"""An upload that fails at the end of a run is one line with the command that repeats it."""

from __future__ import annotations

from pathlib import Path

from ..hub_server import Client, HubServer
from ..training.runner import arguments


def test_failed_upload(hub: HubServer, client: Client, image_folder: Path, tmp_path: Path) -> None:
    hub.fault = ("403", "^POST .*/commit/")  # repositories are created, but take no commits
    flags = ("--push-to-hub", "--hub-model-id=failed")
    code, errors, _ = client.run("train", *arguments(image_folder, tmp_path / "run", *flags, training_examples=16))
    assert code == 1, errors
    assert len(hub.repositories["tester/failed"].commits) == 1, "nothing was published"
    assert "Traceback" not in errors
    pipeline = tmp_path / "run" / "pipeline"
    assert f"diffae-hub push {pipeline} tester/failed" in errors
    assert (pipeline / "model_index.json").exists()
