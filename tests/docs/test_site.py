"""The site: it builds strictly, its tables hold the figures of the JSON files, its pictures are drawn."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import diffae_hub

from .blocks import PAGES, ROOT

pytest.importorskip("mkdocs", reason="needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it: a broken link, heading, picture or reference is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_api_page_has_every_public_name(site: Path) -> None:
    page = (site / "api" / "index.html").read_text()
    for name in set(diffae_hub.__all__) - {"ModelMixin", "SchedulerMixin", "__version__"}:
        assert f'id="diffae_hub.{name}"' in page, name
    assert 'id="diffae_hub.DiffusionAutoencoderPipeline.decode"' in page


def test_the_zoo_has_a_row_per_model_with_its_figures(site: Path) -> None:
    page = (site / "model_zoo" / "index.html").read_text()
    for path in (ROOT / "model_cards").glob("*.json"):
        card = json.loads(path.read_text())
        (row,) = [line for line in re.findall(r"<tr>.*?</tr>", page, flags=re.DOTALL) if path.stem in line]
        psnr = [result["value"] for result in card["results"] if result["metric"] == "PSNR ↑"]
        assert f"{psnr[0]:.4g} dB" in row
        assert (site / "model_cards" / path.stem / "index.html").is_file()


def test_pictures_that_pages_show_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["figures.py", "--output", str(tmp_path)])
    runpy.run_path(str(PAGES / "figures.py"), run_name="__main__")
    shown = set(re.findall(r"images/(\w+\.svg)", "".join(path.read_text() for path in PAGES.rglob("*.md"))))
    assert shown
    for folder in (tmp_path, PAGES / "images"):
        assert shown <= {path.name for path in folder.iterdir()}
