"""The public names: they don't change, they load lazily, and diffusers finds classes by them."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import diffae_hub

OURS = ("Attribute", "Conditioned", "Diffusion", "Latent", "Semantic", "VP")
FROZEN = {"DiffusionAutoencoderPipeline", "DiffusionAutoencoderPipelineOutput", "ModelMixin", "SchedulerMixin"}
FROZEN |= {"AttributeClassifier", "ConditionedUNet2DModel", "LatentCodeModel", "SemanticEncoderModel"}
FROZEN |= {"VPDDIMInverseScheduler", "VPDDIMScheduler", "VPDPMSolverMultistepScheduler"}
FROZEN |= {"__version__", "list_models", "load_codes", "nearest_codes"}


def test_names_are_frozen() -> None:
    assert set(diffae_hub.__all__) == FROZEN
    assert set(dir(diffae_hub)) >= FROZEN


def test_classes_say_that_they_live_in_the_flat_package() -> None:
    # model_index.json records __module__: published pipelines must not depend on where a file lies.
    for name in FROZEN:
        if name.startswith(OURS):
            assert getattr(diffae_hub, name).__module__ == "diffae_hub"
    with pytest.raises(AttributeError, match="Nonsense"):
        diffae_hub.Nonsense  # noqa: B018


def test_import_is_lazy_and_the_core_needs_no_extra() -> None:
    code = (
        "import sys, diffae_hub\n"
        "assert 'torch' not in sys.modules\n"
        "from diffae_hub import DiffusionAutoencoderPipeline\n"
        "import diffae_hub.cli.main\n"
        "extras = {'lpips', 'datasets', 'sklearn', 'torch_fidelity', 'cleanfid'} & set(sys.modules)\n"
        "assert not extras, extras\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version_is_the_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["version"] == diffae_hub.__version__
