"""A run's folder belongs to one run at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from diffae_hub.cli.main import main
from diffae_hub.data.errors import TrainingError
from diffae_hub.training import loop, run_folder
from diffae_hub.training.checkpoints import checkpoint_files
from diffae_hub.training.run_folder import METRICS, append_metrics, own_run_folder, read_metrics, rewind_metrics

from .runner import SECONDS, arguments, parsed, run


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision of another test in this process


def test_a_folder_in_use(image_folder: Path, tmp_path: Path, capsys, monkeypatch, on_cpu: None) -> None:
    """The second run waits, then refuses, and leaves the folder to the first."""
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.1)
    folder = tmp_path / "run"
    with own_run_folder(folder):
        assert main(["train", *arguments(image_folder, folder, training_examples=16)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "output" in line
        assert str(folder) in line
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert not folder.exists()


def test_a_lock_that_is_deleted_is_noticed(tmp_path: Path) -> None:
    """A second run gets in; the first learns of it before it writes a checkpoint."""
    with own_run_folder(tmp_path) as check_lock:
        check_lock()
        (tmp_path / ".lock").unlink()
        with pytest.raises(TrainingError, match="lock"):
            check_lock()
        with own_run_folder(tmp_path) as check_second, pytest.raises(TrainingError, match="lock"):
            check_second()
            check_lock()


def test_a_folder_below_the_home_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for flag in ("--output", "--output-dir", "--output_dir"):
        options, _ = parsed(["--preset=cifar10-32", "--dataset=x", f"{flag}=~/run"])
        assert options.output == tmp_path / "run"


OWNER = """
import sys
from pathlib import Path
from diffae_hub.training.run_folder import own_run_folder
with own_run_folder(Path(sys.argv[1])):
    print("owned", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_that_was_waited_for(tmp_path: Path, monkeypatch) -> None:
    """Its first owner removes it; the second makes it again, and owns it."""
    folder = tmp_path / "run"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], **pipes)
    assert first.stdout.readline() == "owned\n"

    class Waiting(run_folder.FileLock):
        """The first ends when the second has begun to wait."""

        def acquire(self, *arguments: object, **options: object) -> object:
            if not first.stdin.closed:
                first.stdin.close()
            return super().acquire(*arguments, **options)

    monkeypatch.setattr(run_folder, "FileLock", Waiting)
    with own_run_folder(folder) as check_lock:
        assert first.wait(SECONDS) == 0
        check_lock()


@pytest.mark.parametrize("kind", ["the current folder", "a link"])
def test_the_error_that_matters_is_shown(
    tmp_path: Path, kind: str, capsys, monkeypatch: pytest.MonkeyPatch, on_cpu: None
) -> None:
    """Where the folder of a run that is refused cannot be removed."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "inner")
    monkeypatch.chdir(tmp_path / "inner")
    argv = arguments(tmp_path / "missing", tmp_path / "run")
    argv += [f"--output={'.' if kind == 'the current folder' else tmp_path / 'link'}"]
    assert main(["train", *argv]) == 2
    assert "dataset" in capsys.readouterr().err.splitlines()[-1]


def test_checkpoints_that_appear_while_a_run_waits(
    image_folder: Path, tmp_path: Path, monkeypatch, on_cpu: None
) -> None:
    """A run that is to start anew waits for another in its folder, and does not mix its checkpoints with that one's."""
    folder = tmp_path / "run"
    argv = arguments(image_folder, folder, training_examples=16)

    @contextmanager
    def after_another(path: Path) -> Iterator[object]:
        code, text = run(argv)
        assert code == 0, text
        with own_run_folder(path) as check_lock:
            yield check_lock

    monkeypatch.setattr(loop, "own_run_folder", after_another)
    assert main(["train", *argv, "--seed=1"]) == 2
    assert len(checkpoint_files(folder)) == 1
    assert json.loads((folder / "configuration.json").read_text())["run"]["seed"] == 0


def test_lines_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    for examples in (16, 32, 48):
        append_metrics(tmp_path, {"examples": examples})
    with (tmp_path / METRICS).open("ab") as file:
        file.write(
            b'[1]\nnull\n{"loss": 1}\n{"examples": "many"}\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"examples": 64, "lo'
        )
    assert [record["examples"] for record in read_metrics(tmp_path)] == [16, 32, 48]
    rewind_metrics(tmp_path, 32)
    assert (tmp_path / METRICS).read_text() == '{"examples": 16}\n{"examples": 32}\n'
