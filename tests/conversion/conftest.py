"""Fixtures of the conversion's tests."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from diffae_hub.conversion.convert import convert_official_checkpoint

from .official_files import autoencoder_state, classifier_state, latent_state, save_lightning
from .reference_network import MINIATURE

STATES = {"autoencoder": autoencoder_state, "latent": latent_state, "classifier": classifier_state}


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted pipeline of all networks."""
    folder = tmp_path_factory.mktemp("pipeline")
    paths = {name: save_lightning(folder / f"{name}.ckpt", state(MINIATURE)) for name, state in STATES.items()}
    others = {f"{name}_checkpoint": paths[name] for name in ("latent", "classifier")}
    report = convert_official_checkpoint(paths["autoencoder"], folder / "out", **others)
    assert not report["warnings"]
    return folder / "out"


@pytest.fixture
def memory_growth() -> Callable[[Callable[[], object]], int]:
    """By how many bytes the process grows, at its peak, while it calls a function."""

    def status(name: str) -> int:
        return 1024 * int(re.search(rf"{name}:\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1])

    def run(function: Callable[[], object]) -> int:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        except OSError:
            pytest.skip("memory is measured on Linux only")
        before = status("VmRSS")
        function()
        return status("VmHWM") - before

    return run
