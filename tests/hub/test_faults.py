"""Loading and pushing through a Hub that misbehaves: one line, within seconds and bytes, nothing half-written."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ..hub_server import Client, HubServer

NAME = "tester/tiny"


@pytest.fixture(scope="module")
def client(session_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One whose patience is one second."""
    home = tmp_path_factory.mktemp("impatient")
    client = Client(session_hub, home, HF_HUB_DOWNLOAD_TIMEOUT="1", HF_HUB_ETAG_TIMEOUT="1")
    yield client
    client.close()


@pytest.fixture
def stored(hub: HubServer, model: str) -> Iterator[str]:
    hub.store(NAME, Path(model))
    yield NAME
    assert hub.sent_bytes < 200 * 2**20


def assert_one_line(result: tuple[int, str, str]) -> None:
    code, errors, _ = result
    assert code == 2
    assert errors.count("\n") == 1, errors
    assert errors[:-1].isprintable()
    assert "Traceback" not in errors


ENCODER = "^GET .*/encoder/.*safetensors"


@pytest.mark.parametrize(
    ("mode", "where"),
    [
        *((mode, "") for mode in ("silent", "closed", "endless", "slow", "nonsense", "redirected")),
        *((mode, "") for mode in ("401", "404", "429", "500")),
        *((mode, "/resolve/") for mode in ("hostile etag", "hostile commit")),
    ],
)
def test_loading_from_a_hub_that_never_behaves(
    mode: str, where: str, hub, client: Client, stored: str, tmp_path: Path
) -> None:
    hub.fault = (mode, where)
    assert_one_line(client.run("download", stored, tmp_path / "cache"))
    files = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".safetensors", ".incomplete")]
    assert files == []
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "model"}, "a hostile name leads out of the cache"


@pytest.mark.parametrize("mode", ["silent", "slow", "endless", "dropped", "truncated", "wrong content", "403", "500"])
def test_loading_whose_weights_do_not_come(mode: str, hub, client: Client, stored: str, tmp_path: Path) -> None:
    hub.fault = (mode, ENCODER)
    assert_one_line(client.run("download", stored, tmp_path / "cache"))
    assert all("encoder" not in str(path) for path in (tmp_path / "cache").rglob("*.safetensors") if path.exists())
    hub.fault = None
    folder = Path(client.output("download", stored, tmp_path / "cache").strip())
    assert (folder / "encoder" / "diffusion_pytorch_model.safetensors").is_file()


VARIANT = """
import sys
from diffae_hub import DiffusionAutoencoderPipeline, SemanticEncoderModel

def load(name, **options):
    DiffusionAutoencoderPipeline.from_pretrained(name, cache_dir=sys.argv[1], **options)

load("tester/tiny@main", variant="fp16")
load("tester/tiny", variant="fp16", revision="main", token="secret")
SemanticEncoderModel.from_pretrained("tester/tiny", subfolder="encoder", variant="fp16", cache_dir=sys.argv[1])
load("tester/tiny", variant="fp16", local_files_only=True)
for name, options in (("tester/tiny@nowhere", {}), ("tester/none", {}), ("tester/tiny", {"variant": "bf8"})):
    try:
        load(name, **options)
    except OSError:
        print(name)
"""


def test_only_what_loading_reads_is_downloaded(
    hub, client: Client, stored: str, tiny_pipeline, model: str, tmp_path: Path
) -> None:
    for name in ("stray.safetensors", "pytorch_model.bin", "other/config.json", "encoder/diffusion_pytorch_model.bin"):
        path = Path(model) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    tiny_pipeline.to(torch.float16).save_pretrained(model, variant="fp16")
    hub.store(NAME, Path(model))
    folder = Path(client.output("download", stored, tmp_path / "cache").strip())
    names = ("config.json", "diffusion_pytorch_model.safetensors")
    expected = {f"{component}/{name}" for component in ("encoder", "decoder") for name in names}
    expected |= {"model_index.json", "scheduler/scheduler_config.json"}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == expected
    refused = client.output("python", VARIANT, tmp_path / "fp16").split()
    assert refused == ["tester/tiny@nowhere", "tester/none", "tester/tiny"]
    weights = {path.name for path in (tmp_path / "fp16").rglob("*.safetensors")}
    assert weights == {"diffusion_pytorch_model.fp16.safetensors"}


THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from huggingface_hub import constants
from diffae_hub.network import download
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda number: download("tester/tiny", cache_dir=f"{sys.argv[1]}/{number}"), range(8)))
print(constants.HF_HUB_DISABLE_XET)
"""


def test_threads_download_at_once_and_leave_the_settings(client: Client, stored: str, tmp_path: Path) -> None:
    assert client.output("python", THREADS, tmp_path / "caches") == "False\n"
    assert len(list(tmp_path.glob("caches/**/model_index.json"))) == 8


def test_a_damaged_cached_file_is_fetched_anew(hub, client: Client, stored: str, tmp_path: Path) -> None:
    folder = Path(client.output("download", stored, tmp_path / "cache").strip())
    for name in ("encoder/diffusion_pytorch_model.safetensors", "decoder/config.json", "model_index.json"):
        path = folder / name
        sound = path.read_bytes()
        path.resolve().write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        client.output("download", stored, tmp_path / "cache")
        assert path.read_bytes() == sound


@pytest.mark.parametrize("mode", ["silent", "closed", "500"])
def test_a_cached_pipeline_needs_no_hub(mode: str, hub, client: Client, stored: str, tmp_path: Path) -> None:
    first = client.output("download", stored, tmp_path / "cache")
    hub.fault = (mode, "")
    assert client.output("download", stored, tmp_path / "cache") == first


DINOV2 = """
from diffae_hub.metrics.frechet import dinov2_features
try:
    dinov2_features()
except OSError as error:
    print(error)
"""


def test_weights_of_a_metric_are_given_up_at_once(hub, client: Client) -> None:
    hub.fault = ("silent", "")
    code, errors, output = client.run("python", DINOV2)
    assert (code, errors) == (0, "")  # the Hub's client reports each of its attempts here
    assert "facebook/dinov2-large" in output and hub.url in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("where", "mode"),
    [
        *(("/api/repos/create", mode) for mode in ("silent", "nonsense", "401", "500")),
        *(("/large/|info/lfs", mode) for mode in ("silent", "dropped", "403")),
        ("PUT /large/", "endless"),
        *(("/commit/", mode) for mode in ("silent", "redirected", "429")),
    ],
)
def test_pushing_to_a_hub_that_misbehaves(mode: str, where: str, hub, client: Client, stored: str, model: str) -> None:
    before = [identity for identity, _, _ in hub.repositories[NAME].commits]
    hub.fault = (mode, where)
    result = client.run("push", model, NAME)
    if mode == "401":  # that it exists is asked next
        assert result[0] == 0
    else:
        assert_one_line(result)
        assert [identity for identity, _, _ in hub.repositories[NAME].commits] == before
