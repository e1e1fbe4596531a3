"""The site: it builds strictly, its tables hold the figures of the JSON files, its curves are those of the formulas."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import diffae_hub

from .blocks import PAGES, ROOT

pytest.importorskip("mkdocs", reason="needs the extra docs")


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, PAGES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


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


def test_the_changelog_is_the_repositorys(site: Path) -> None:
    assert "Keep a Changelog" in (site / "changelog" / "index.html").read_text()
    assert "## " not in (PAGES / "changelog.md").read_text()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list]]:
    """The folder of the pictures, and the lines of each."""
    folder, figures, lines = tmp_path_factory.mktemp("figures"), load("figures"), {}
    save = figures.save

    def keep(figure, file: Path) -> None:
        lines[file.stem] = list(figure.axes[0].lines)
        save(figure, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", keep)
        patch.setattr(sys, "argv", ["figures.py", "--output", str(folder)])
        figures.main()
    return folder, lines


def test_curves_are_the_papers_formulas(drawn: tuple[Path, dict[str, list]]) -> None:
    _, lines = drawn
    curves = {line.get_label(): line.get_xydata() for line in lines["schedules"]}
    t, alpha = curves["SC-4"][1:-1].T
    np.testing.assert_allclose(alpha, np.sqrt(1 / (1 + np.tan(np.pi * t / 2) ** 2 / 16)), rtol=1e-9)
    t, alpha = curves["linear-β"].T
    betas = np.linspace(1e-4, 0.02, 1000)
    table = np.concatenate([[1], np.cumprod(1 - betas)])
    np.testing.assert_allclose(alpha, np.sqrt(table[np.round(1000 * t).astype(int)]), rtol=1e-9)
    inverted = next(line.get_xydata() for line in lines["inverted"] if line.get_label() == "inverted")
    np.testing.assert_allclose(inverted[:, 1], 2 / np.pi * np.arccos(np.sqrt(inverted[:, 0])), atol=1e-9)
    shift = {line.get_label(): line.get_ydata() for line in lines["direction_of_s"]}
    np.testing.assert_allclose(shift["SC-4"] - shift["SC-1"], 2 * np.log(4), rtol=1e-9)


def test_pictures_that_pages_show_are_drawn(drawn: tuple[Path, dict[str, list]]) -> None:
    shown = set(re.findall(r"images/(\w+\.svg)", "".join(path.read_text() for path in PAGES.rglob("*.md"))))
    assert shown
    for folder in (drawn[0], PAGES / "images"):
        assert shown <= {path.name for path in folder.iterdir()}
