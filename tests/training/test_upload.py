"""An upload that fails at the end of a run is one line with the command that repeats it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..hub_server import _Handler, running_hub
from .runner import SCRIPT, arguments


class RefusingHandler(_Handler):
    """Creates repositories, but takes no commits."""

    def do_POST(self) -> None:
        if "/commit/" not in self.path:
            return super().do_POST()
        self._body()
        return self._refuse(403, "Forbidden")


class DroppingHandler(_Handler):
    """Drops the connection in the midst of a large file."""

    def do_PUT(self) -> None:
        self.rfile.read(100)
        self.close_connection = True
        self.connection.close()


@pytest.mark.parametrize("handler", [RefusingHandler, DroppingHandler])
def test_failed_upload(image_folder: Path, tmp_path: Path, handler: type) -> None:
    argv = arguments(image_folder, tmp_path / "run", "--push-to-hub", "--hub-model-id=tiny", training_examples=16)
    with running_hub() as hub:
        hub.RequestHandlerClass = handler
        environment = {**hub.environment(str(tmp_path / "home")), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        result = subprocess.run(
            [sys.executable, str(SCRIPT), *argv], env={**os.environ, **environment}, capture_output=True, text=True
        )
        assert result.returncode == 1, result.stderr
        assert len(hub.repositories["tester/tiny"].commits) == 1, "nothing was published"
    assert "Traceback" not in result.stderr
    pipeline = tmp_path / "run" / "pipeline"
    assert f"diffae-hub push {pipeline} tester/tiny" in result.stderr
    assert (pipeline / "model_index.json").exists()
