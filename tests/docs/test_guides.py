"""The pages of the documentation that tell how something is done: their blocks run, and leave what they promise."""

import re
import shlex
from pathlib import Path

import pytest

from diffae_hub import DiffusionAutoencoderPipeline

from ..hub_server import Client, HubServer
from ..training.runner import parsed
from .blocks import PAGES, prepare, run_page

# Page -> what must be there afterwards. docs/official_checkpoints.md has a test of its own, tests/conversion.
WRITTEN = {
    "index.md": ["out/photo_stochastic.png"],
    "from_diffusers.md": [],
    "model_zoo.md": [],
    "concepts/steps.md": [],
    "guides/train.md": ["runs/mine/pipeline/model_index.json", "from_the_code.png"],
    "guides/fine_tune.md": ["runs/tuned/pipeline/model_index.json", "evaluation/tuned/report.md"],
    "guides/edit.md": ["codes/codes.json", "with_attributes/attribute_classifier/config.json", "edited"],
    "guides/similar.md": ["nearest.png"],
    "guides/generate.md": ["with_samples/latent_code_model/config.json"],
    "guides/evaluate.md": ["evaluation/report.json", "evaluation/baselines/report.md"],
    "guides/replicate.md": ["runs/tables/tables.md"],
    "guides/publish.md": [],
    "guides/many_gpus.md": ["runs/mine/pipeline", "runs/two-processes/pipeline", "evaluation/report.md"],
    "guides/streaming.md": ["runs/streamed/pipeline/model_index.json", "codes/codes.json"],
}


def test_every_page_with_python_or_commands_is_run() -> None:
    pages = {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")}
    with_blocks = {page for page in pages if "```python" in (PAGES / page).read_text()}
    guides = {page for page in pages if page.startswith("guides/")}
    assert with_blocks | guides <= {*WRITTEN, "official_checkpoints.md"}


@pytest.mark.parametrize("page", [page for page in WRITTEN if page != "guides/publish.md"])
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_cpu: None) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_page(page)
    for name in WRITTEN[page]:
        assert Path(name).exists(), name


def test_publishing(hub: HubServer, client: Client, tmp_path: Path) -> None:
    prepare(tmp_path)
    code = "import os, sys; from tests.docs.blocks import run_page; os.chdir(sys.argv[1]); run_page(sys.argv[2])"
    client.output("python", code, tmp_path, "guides/publish.md")
    files = hub.repositories["tester/my-autoencoder"].commits[-1][2]
    assert {"model_index.json", "decoder/diffusion_pytorch_model.safetensors"} <= set(files)
    assert "license: mit" in files["README.md"].decode()


def test_the_loop_of_the_diffusers_page_is_the_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    block = (PAGES / "from_diffusers.md").read_text().split("```python\n")[1].split("```")[0]
    namespace: dict = {}
    torch.manual_seed(0)
    exec(compile(block, "from_diffusers.md", "exec"), namespace)
    torch.manual_seed(0)
    z, noise = torch.randn(1, 512), torch.randn(1, 3, 32, 32)
    pipe = DiffusionAutoencoderPipeline.from_pretrained("cifar10-32-small")
    decoded = pipe.decode(z, noise=noise, num_inference_steps=10, output_type="pt").images
    torch.testing.assert_close((namespace["sample"] / 2 + 0.5).clamp(0, 1), decoded, rtol=0, atol=1e-4)


def test_options_in_tables_are_valid_experiments() -> None:
    """Rows whose cell holds options of `diffae-hub train`: each makes an experiment, and the paper's the paper's."""
    rows = {}
    for page, preset in (("guides/replicate.md", "cifar10-32"), ("from_official.md", "official-ffhq256")):
        table = r"^\| ([^|]+) \| (?:`(--[^`]+)`[^|]*|none) \|$"
        for title, options in re.findall(table, (PAGES / page).read_text(), re.M):
            _, rows[title] = parsed(shlex.split(f"--preset {preset} --dataset photos --output run {options}"))
    assert len(rows) == 6
    two_phase = [preset for title, preset in rows.items() if "two" in title]
    assert len(two_phase) == 2
    for preset in two_phase:
        assert preset.phase1_fraction == 0.25
        chosen = {"prediction_type": "v_prediction", "noise_schedule": "shifted_cosine", "scaling_factor": 4.0}
        chosen |= {"timestep_spacing": "uniform", "clip_sample": False}
        assert chosen.items() <= preset.scheduler.items()
