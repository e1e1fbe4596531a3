"""What is published works where no checkout is: wheel and source distribution, each in an empty environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One built from the source distribution, which must therefore be complete, and so is the other."""
    folder = tmp_path_factory.mktemp("release")
    build = "from setuptools import build_meta; print(build_meta.build_sdist({!r}))"
    checkout = folder / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "runs", "site"))
    sdist = folder / run(sys.executable, "-c", build.format(str(folder)), cwd=checkout).split()[-1]
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir")
    wheels = {}
    for name, source in (("wheel", checkout), ("sdist", sdist)):
        run(*pip, folder / name, source, cwd=folder)
        (wheels[name],) = (folder / name).glob("*.whl")
    return wheels


def required(name: str, extras: Iterable[str], found: dict[str, Distribution]) -> dict[str, Distribution]:
    """What pip would install beside a distribution: all that it and its extras require, by name."""
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        marker, is_new = requirement.marker, requirement.name not in found or requirement.extras
        if is_new and (marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))):
            found[requirement.name] = distribution(requirement.name)
            required(requirement.name, requirement.extras, found)
    return found


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """With links to what the package and its extra `train` require, and without the package."""
    path, installed = tmp_path / "environment", Path(sysconfig.get_path("purelib"))
    venv.create(path, symlinks=True)
    (site_packages,) = path.glob("lib/python*/site-packages")
    for dependency in required("diffae_hub", ["train"], {}).values():
        for name in {file.parts[0] for file in dependency.files} - {"..", "__pycache__"}:
            if not (site_packages / name).exists():
                (site_packages / name).symlink_to(installed / name)
    return path


def test_the_source_distribution_gives_the_same_wheel(wheels: dict[str, Path]) -> None:
    names = [set(zipfile.ZipFile(wheel).namelist()) for wheel in wheels.values()]
    assert names[0] == names[1]
    sources = [path for path in (ROOT / "src" / "diffae_hub").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.relative_to(ROOT / "src").as_posix() for path in sources} <= names[0]


def test_the_wheel_reconstructs_and_trains(wheels: dict[str, Path], environment: Path, tmp_path: Path) -> None:
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, wheels["wheel"], cwd=tmp_path)
    where = run(python, "-c", "import diffae_hub; print(diffae_hub.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)

    command = environment / "bin" / "diffae-hub"
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for shade in (40, 200):
        Image.new("RGB", (40, 32), (shade, 90, 10)).save(photographs / f"{shade}.png")
    assert "cifar10-32-small" in run(command, "models", cwd=tmp_path)
    run(command, "reconstruct", photographs / "40.png", "--steps=2", "--output=out", cwd=tmp_path)
    assert list((tmp_path / "out").glob("*.png"))
    sizes = "--preset=cifar10-32-small --training-examples=4 --warmup-examples=2 --batch-size=2 --num-workers=0"
    validation = "--validation-dataset=photographs --validation-every=4 --validation-images=2 --validation-steps=2"
    run(command, "train", *sizes.split(), *validation.split(), "--dataset=photographs", "--output=run", cwd=tmp_path)
    assert (tmp_path / "run" / "training.png").is_file()
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()
