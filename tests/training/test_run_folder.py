"""A run's folder belongs to one run at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffae_hub.cli.main import main
from diffae_hub.files import append_json_lines, read_json_lines
from diffae_hub.training import loop, run_folder
from diffae_hub.training.checkpoints import checkpoint_files
from diffae_hub.training.run_folder import METRICS, own_run_folder, rewind_metrics

from .runner import arguments, run


def test_a_folder_in_use(image_folder: Path, tmp_path: Path, refusal, monkeypatch, on_cpu: None) -> None:
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.1)
    folder = tmp_path / "run"
    with own_run_folder(folder):
        line = refusal("train", *arguments(image_folder, folder, training_examples=16))
        assert "output" in line and str(folder) in line
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert not folder.exists()


def test_checkpoints_that_appear_while_a_run_waits(
    image_folder: Path, tmp_path: Path, monkeypatch, on_cpu: None
) -> None:
    """A new run that waits for another one in its folder does not mix checkpoints with it."""
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, training_examples=16)

    @contextmanager
    def after_another(path: Path) -> Iterator[None]:
        run(argv)
        with own_run_folder(path):
            yield

    monkeypatch.setattr(loop, "own_run_folder", after_another)
    assert main(["train", *argv, "--seed=1"]) == 2
    assert len(checkpoint_files(folder)) == 1
    assert json.loads((folder / "configuration.json").read_text())["run"]["seed"] == 0


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    for examples in (16, 32, 48):
        append_json_lines(tmp_path / METRICS, [{"examples": examples}])
    with (tmp_path / METRICS).open("ab") as file:
        file.write(b'\xff\xfe\n{"examples": 64, "lo')
    assert [record["examples"] for record in read_json_lines(tmp_path / METRICS)] == [16, 32, 48]
    rewind_metrics(tmp_path, 32)
    assert (tmp_path / METRICS).read_text() == '{"examples": 16}\n{"examples": 32}\n'
