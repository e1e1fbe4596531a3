"""Loading and pushing through a Hub that misbehaves: one line, within seconds and bytes, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..hub_server import HubServer, running_hub

NAME = "tester/tiny"

# One process of the real client for all cases; it reads its environment when it is imported. Each line of input is a
# command line, or `load` with a cache; each line of output is [exit code, stderr].
DRIVER = """
import contextlib, io, json, sys
from pathlib import Path
from diffae_hub.cli import main as command_line
from diffae_hub.network import download

def load(arguments):
    print(download(arguments.words[0], cache_dir=arguments.words[1]))
    return 0

def load_arguments(parser):
    parser.add_argument("words", nargs="+")

module = type(sys)("diffae_hub.cli.load")
module.load_arguments, module.run_load = load_arguments, load
sys.modules["diffae_hub.cli.load"] = module
command_line._COMMANDS["load"] = "download a pipeline"
answers = sys.stdout
for line in sys.stdin:
    errors, output = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
        code = command_line.main(json.loads(line))
    print(json.dumps([code, errors.getvalue(), output.getvalue()]), file=answers, flush=True)
"""


class Client:
    """A process with the real huggingface_hub, whose patience is one second."""

    def __init__(self, hub: HubServer, home: Path) -> None:
        patience = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env={**os.environ, **hub.environment(str(home)), **patience},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv: object) -> tuple[int, str, str]:
        self.process.stdin.write(json.dumps([str(word) for word in argv]) + "\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub, tmp_path_factory.mktemp("home"))
    yield client
    client.process.stdin.close()
    client.process.wait(timeout=60)


@pytest.fixture
def stored(hub: HubServer, model: str) -> Iterator[str]:
    hub.repositories.clear()
    hub.large_files.clear()
    hub.store(NAME, Path(model))
    hub.sent_bytes = 0
    yield NAME
    hub.fault = None


def assert_one_line(result: tuple[int, str, str]) -> None:
    code, errors, _ = result
    assert code == 2
    assert errors.count("\n") == 1, errors
    assert errors[:-1].isprintable()
    assert "Traceback" not in errors


def whole_files(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.is_file() and path.suffix in (".safetensors", ".incomplete")]


KINDS = ("silent", "closed", "endless", "slow", "dropped", "truncated", "nonsense", "redirected")
MODES = (*KINDS, "401", "403", "404", "429", "500")
WEIGHTS = "^GET .*/encoder/.*safetensors"


@pytest.mark.parametrize("mode", [*MODES, "hostile etag", "hostile commit"])
def test_loading_from_a_hub_that_never_behaves(mode: str, hub, client: Client, stored: str, tmp_path: Path) -> None:
    hub.fault = (mode, "/resolve/" if mode in ("hostile etag", "hostile commit") else "")
    start = time.monotonic()
    assert_one_line(client.run("load", stored, tmp_path / "cache"))
    assert time.monotonic() - start < 120, "huggingface_hub alone tries for minutes"
    assert hub.sent_bytes < 200 * 2**20
    assert whole_files(tmp_path / "cache") == []
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "model"}, "a hostile name leads out of the cache"


@pytest.mark.parametrize("mode", [*MODES, "wrong content"])
def test_loading_whose_weights_do_not_come(mode: str, hub, client: Client, stored: str, tmp_path: Path) -> None:
    hub.fault = (mode, WEIGHTS)
    start = time.monotonic()
    assert_one_line(client.run("load", stored, tmp_path / "cache"))
    assert time.monotonic() - start < 120
    assert hub.sent_bytes < 200 * 2**20
    assert all("encoder" not in str(path) for path in (tmp_path / "cache").rglob("*.safetensors") if path.exists())
    hub.fault = None
    code, _, output = client.run("load", stored, tmp_path / "cache")
    assert code == 0
    assert (Path(output.strip()) / "encoder" / "diffusion_pytorch_model.safetensors").is_file()


def test_only_what_loading_reads_is_downloaded(hub, client: Client, stored: str, model: str, tmp_path: Path) -> None:
    for name in ("stray.safetensors", "pytorch_model.bin", "other/config.json", "encoder/diffusion_pytorch_model.bin"):
        path = Path(model) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    fp16 = Path(model) / "encoder" / "diffusion_pytorch_model.fp16.safetensors"
    fp16.write_bytes(fp16.with_name("diffusion_pytorch_model.safetensors").read_bytes())
    hub.store(NAME, Path(model))
    code, _, output = client.run("load", stored, tmp_path / "cache")
    assert code == 0
    folder = Path(output.strip())
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "decoder/config.json",
        "decoder/diffusion_pytorch_model.safetensors",
        "encoder/config.json",
        "encoder/diffusion_pytorch_model.safetensors",
        "model_index.json",
        "scheduler/scheduler_config.json",
    ]


def test_a_damaged_cached_file_is_fetched_anew(hub, client: Client, stored: str, tmp_path: Path) -> None:
    folder = Path(client.run("load", stored, tmp_path / "cache")[2].strip())
    for name in ("encoder/diffusion_pytorch_model.safetensors", "decoder/config.json", "model_index.json"):
        path = folder / name
        sound = path.read_bytes()
        path.resolve().write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        assert client.run("load", stored, tmp_path / "cache")[0] == 0
        assert path.read_bytes() == sound


@pytest.mark.parametrize("mode", ["silent", "closed", "500", "truncated"])
def test_a_cached_pipeline_needs_no_hub(mode: str, hub, client: Client, stored: str, tmp_path: Path) -> None:
    first = client.run("load", stored, tmp_path / "cache")
    assert first[0] == 0
    hub.fault = (mode, "")
    assert client.run("load", stored, tmp_path / "cache") == first


@pytest.mark.parametrize(
    ("where", "mode"),
    [
        *(("/api/repos/create", mode) for mode in ("silent", "endless", "nonsense", "401", "500")),
        *(("/large/|info/lfs", mode) for mode in ("silent", "closed", "dropped", "403")),
        ("PUT /large/", "endless"),
        *(("/commit/", mode) for mode in ("silent", "redirected", "404", "429")),
    ],
)
def test_pushing_to_a_hub_that_misbehaves(mode: str, where: str, hub, client: Client, stored: str, model: str) -> None:
    before = [identity for identity, _, _ in hub.repositories[NAME].commits]
    hub.fault = (mode, where)
    start = time.monotonic()
    result = client.run("push", model, NAME)
    assert time.monotonic() - start < 120
    assert hub.sent_bytes < 200 * 2**20
    if mode == "401":  # that it exists is asked next
        assert result[0] == 0
    else:
        assert_one_line(result)
        assert [identity for identity, _, _ in hub.repositories[NAME].commits] == before
