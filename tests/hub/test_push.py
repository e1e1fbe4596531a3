"""Pushing a pipeline with the real Hub client, to a server on loopback: what is sent, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from ..hub_server import Client, HubServer
from ..training.runner import arguments, write_images

LOAD = """
import sys
import torch
from diffae_hub import DiffusionAutoencoderPipeline
image = torch.full((1, 1, 8, 8), 0.5)
codes = [DiffusionAutoencoderPipeline.from_pretrained(name).encode(image) for name in sys.argv[1:]]
assert torch.equal(*codes)
"""


def test_train_push_and_load_by_id(hub: HubServer, client: Client, tmp_path: Path) -> None:
    images, run_folder = write_images(tmp_path / "images"), tmp_path / "run"
    flags = ("--push_to_hub", "--hub_model_id=tiny-digits", "--hub_private", f"--validation_dataset={images}")
    argv = arguments(images, run_folder, *flags, "--validation_steps=2", training_examples=32)
    hub.fault = ("401", "^POST /api/repos/create")  # as without a token: the training must not start
    assert client.run("train", *argv)[0] == 2
    hub.fault = None
    assert not run_folder.exists() or not list(run_folder.rglob("*.safetensors"))
    client.output("train", *argv)
    client.output("python", LOAD, "tester/tiny-digits", run_folder / "pipeline")
    (name,) = hub.repositories
    assert name == "tester/tiny-digits"
    repository = hub.repositories[name]
    assert repository.private
    assert [title for _, title, _ in repository.commits] == ["initial commit", "Upload diffusion autoencoder"]
    files = repository.commits[-1][2]
    # The card's figures are the run's last validation.
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    psnr = next(record["psnr_stochastic"] for record in reversed(records) if "psnr_stochastic" in record)
    page = files["README.md"].decode()
    assert f"{psnr:.4g} dB" in page
    assert str(tmp_path) not in page
    assert 'from_pretrained("tester/tiny-digits")' in page
    results = ModelCard(page).data.eval_results
    assert psnr in [result.metric_value for result in results if result.metric_type == "psnr"]
    assert files["validation.png"] == max((run_folder / "validation").iterdir()).read_bytes()
    assert files["training.png"][:4] == b"\x89PNG"


WHOLE, FP16 = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def component_files(*components: str) -> set[str]:
    names = {"config.json", WHOLE, "diffae_hub.py"}
    return {f"{component}/{name}" for component in components for name in names}


EXPECTED = component_files("encoder", "decoder") | {".gitattributes", "README.md", "model_index.json", "pipeline.py"}
EXPECTED |= {"scheduler/scheduler_config.json", "scheduler/diffae_hub.py"}
REPORT = {"modes": ["stochastic"], "dataset": "uoft-cs/cifar10", "split": "test", "num_images": 1000, "steps": 50}
REPORT["results"] = {"stochastic": {"psnr_db": {"mean": 23.25, "interval": [23, 24]}, "fid": {"value": None}}}


def test_push_sends_fixed_kinds_of_files_and_the_card(
    hub: HubServer, client: Client, model: str, tmp_path: Path
) -> None:
    folder, cards = Path(model), tmp_path / "cards"
    (cards / "images").mkdir(parents=True)
    (tmp_path / "secret.png").write_text("outside")
    for name in (".README.md.partial", "pytorch_model.bin", "encoder/diffusion_pytorch_model.bin", "notes.txt"):
        (folder / name).write_text("stray")
    (folder / "secrets").symlink_to(tmp_path)
    for name in ("images/a.png", "images/not_shown.png", "images/b.md", "model_index.json", "encoder/config.json"):
        (cards / name).parent.mkdir(exist_ok=True)
        (cards / name).write_text(name)
    (cards / "leak.png").symlink_to(tmp_path / "secret.png")
    (cards / "images" / "b.md").write_text('[beside](c.png "C") [back](../card.md#top) [out](../../secret.png)')
    (cards / "images" / "c.png").write_text("of the linked page")
    links = "images/a.png images/b.md model_index.json encoder/config.json leak.png ../secret.png gone.md pipeline.py"
    (cards / "a b.png").write_text("of an HTML tag")
    links = " ".join(f"[x]({link})" for link in links.split())
    body = f'# Card\n{links} [y](https://example.org) <img width="9" src="a%20b.png">\n'
    (cards / "card.md").write_text(f"---\nlicense: mit\ntags: [mine]\n---\n{body}")
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    flags = ("--card", cards / "card.md", "--evaluation", tmp_path / "report.json", "--license", "cc0-1.0", "--private")
    output = client.output("push", folder, "tiny", *flags, "--json")
    assert json.loads(output) == {"repo_id": "tester/tiny"}
    assert hub.repositories["tester/tiny"].private
    files = hub.repositories["tester/tiny"].commits[-1][2]
    assert set(files) == EXPECTED | {"card.md", "a b.png", "images/a.png", "images/b.md", "images/c.png"}
    for name in ("encoder/config.json", "decoder/diffusion_pytorch_model.safetensors"):
        assert files[name] == (folder / name).read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.text.strip() == body.strip()
    assert (card.data.license, card.data.library_name, card.data.tags) == ("cc0-1.0", "diffae_hub", ["mine"])
    assert [result.metric_value for result in card.data.eval_results] == [23.25]


def spoil(encoder: Path, weights: Path) -> None:
    save_file({name: tensor * torch.nan for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})


def link(encoder: Path, weights: Path) -> None:
    weights.rename(encoder.parent.parent / "elsewhere.safetensors")
    weights.symlink_to(encoder.parent.parent / "elsewhere.safetensors")


def without_encoder(encoder: Path, weights: Path) -> None:
    shutil.rmtree(encoder)


@pytest.mark.parametrize("damage", [spoil, link, without_encoder])
def test_what_does_not_work_is_not_sent(damage, hub: HubServer, client: Client, model: str) -> None:
    damage(Path(model) / "encoder", Path(model) / "decoder" / "diffusion_pytorch_model.safetensors")
    code, errors, _ = client.run("push", model, "tiny")
    assert (code, errors.count("\n")) == (2, 1)
    assert all(len(repository.commits) == 1 for repository in hub.repositories.values())
    assert not hub.large_files


# Everything that publishes, and everything that loads it again, in one process.
EVERY_WAY = """
import json, sys
from diffae_hub import DiffusionAutoencoderPipeline, SemanticEncoderModel, VPDDIMScheduler
from diffusers import DiffusionPipeline
pipeline = DiffusionAutoencoderPipeline.from_pretrained(sys.argv[1])
pipeline.push_to_hub("pushed", license="mit", datasets=["uoft-cs/cifar10"], base_model="tester/other")
pipeline.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="saved", private=True)
pipeline.push_to_hub("pushed", variant="fp16")  # the card stays
try:
    pipeline.push_to_hub("never", licence="mit")
except TypeError as error:
    assert "licence" in str(error)
pipeline.push_to_hub("half", variant="fp16", evaluation=sys.argv[3])
pipeline.encoder.push_to_hub("encoder", license="mit")
pipeline.encoder.push_to_hub("encoder", commit_message="Mine")  # here, too
pipeline.scheduler.push_to_hub("scheduler")
# What is sent is what was saved, but not by other processes than the first.
pipeline.encoder.save_pretrained(sys.argv[2] + "-fp16", variant="fp16", push_to_hub=True, repo_id="variant")
pipeline.encoder.save_pretrained(sys.argv[2] + "-none", is_main_process=False, push_to_hub=True, repo_id="never")
pipeline.save_pretrained(sys.argv[2] + "-shards", max_shard_size="50KB", push_to_hub=True, repo_id="shards")
pipeline.decoder.conv_in.weight.data += 1
pipeline.push_to_hub("shards", card=sys.argv[4], tags=["wanted"], base_model="tester/base")
loaded = DiffusionAutoencoderPipeline.from_pretrained("tester/shards")
assert (loaded.decoder.conv_in.weight == pipeline.decoder.conv_in.weight).all()
folder = DiffusionPipeline.download("tester/pushed", trust_remote_code=True)
names = ["tester/pushed", "tester/saved", sys.argv[2], folder]
for name in names:
    for loaded in (
        DiffusionPipeline.from_pretrained(name, trust_remote_code=True),
        DiffusionAutoencoderPipeline.from_pretrained(name),
    ):
        assert type(loaded) is DiffusionAutoencoderPipeline, name
        assert type(loaded.encoder) is SemanticEncoderModel, name
try:
    DiffusionPipeline.from_pretrained(sys.argv[2])
except ValueError as error:
    assert "trust_remote_code" in str(error)
DiffusionAutoencoderPipeline.from_pretrained("tester/half", variant="fp16")
try:
    SemanticEncoderModel.from_pretrained("tester/pushed")
except OSError as error:
    assert "subfolder" in str(error)
else:
    raise AssertionError
SemanticEncoderModel.from_pretrained("tester/encoder")
assert SemanticEncoderModel.load_config("cifar10-32-small", subfolder="encoder")["latent_dim"] == 512
SemanticEncoderModel.from_pretrained("tester/pushed@main", subfolder="encoder")
VPDDIMScheduler.from_pretrained("tester/scheduler")
VPDDIMScheduler.from_pretrained("tester/pushed", subfolder="scheduler")
package = sys.modules.pop("diffae_hub")
sys.modules["diffae_hub"] = None  # as if it were not installed
try:
    for name in names:
        try:
            DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
        except ImportError as error:
            assert "pip install diffae_hub" in str(error)
        else:
            raise AssertionError(name)
finally:
    sys.modules["diffae_hub"] = package
"""


def test_every_way_of_publishing_gives_our_card_and_loads_in_plain_diffusers(
    hub: HubServer, client: Client, model: str, tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "card.md").write_text(
        "---\ntags: [mine]\nbase_model: other/base\n---\n" + 'from_pretrained("tester/shards")'
    )
    client.output("python", EVERY_WAY, model, tmp_path / "saved", tmp_path / "report.json", tmp_path / "card.md")
    names = ("pushed", "half", "saved", "encoder", "scheduler", "variant", "shards")
    assert set(hub.repositories) == {f"tester/{name}" for name in names}
    assert [f"decoder/{name}" in hub.repositories["tester/shards"].commits[1][2] for name in (INDEX, WHOLE)] == [
        True,
        False,
    ]
    assert {*hub.repositories["tester/variant"].commits[-1][2]} == {"config.json", FP16, "README.md", ".gitattributes"}
    half = ModelCard(hub.repositories["tester/half"].commits[-1][2]["README.md"].decode())
    assert 'from_pretrained("tester/half", variant="fp16")' in half.text
    assert "| PSNR | stochastic | 23.25 dB | 1,000 images, 50 DDIM steps |" in half.text
    (result,) = half.data.eval_results  # the Hub's model-index
    assert (result.metric_type, result.metric_value) == ("psnr", 23.25)
    assert (result.dataset_type, result.dataset_split) == ("uoft-cs/cifar10", "test")
    for name, repository in hub.repositories.items():
        files = repository.commits[-1][2]
        card = ModelCard(files["README.md"].decode())
        assert (card.data.library_name, card.data.pipeline_tag) == ("diffae_hub", "image-to-image")
        assert f'from_pretrained("{name}"' in card.text
        assert not any(str(tmp_path).encode() in content for content in files.values()), "no local path"
        if name in ("tester/pushed", "tester/saved", "tester/shards"):
            assert {path for path in files if ".fp16." not in path} == EXPECTED
    assert ModelCard(hub.repositories["tester/encoder"].commits[-1][2]["README.md"].decode()).data.license == "mit"
    data = ModelCard(hub.repositories["tester/shards"].commits[-1][2]["README.md"].decode()).data
    assert ("wanted" in data.tags, "mine" in data.tags, data.base_model) == (True, False, "tester/base")
    data = ModelCard(hub.repositories["tester/pushed"].commits[-1][2]["README.md"].decode()).data
    assert (data.license, data.datasets, data.base_model) == ("mit", ["uoft-cs/cifar10"], "tester/other")
    assert hub.repositories["tester/saved"].private
    assert hub.repositories["tester/encoder"].commits[-1][1] == "Mine"


def test_failed_upload(hub: HubServer, client: Client, image_folder: Path, tmp_path: Path) -> None:
    hub.fault = ("403", "^POST .*/commit/")  # repositories are created, but take no commits
    flags = ("--push-to-hub", "--hub-model-id=failed")
    code, errors, _ = client.run("train", *arguments(image_folder, tmp_path / "run", *flags, training_examples=16))
    assert code == 1, errors
    assert len(hub.repositories["tester/failed"].commits) == 1, "nothing was published"
    assert "Traceback" not in errors
    pipeline = tmp_path / "run" / "pipeline"
    assert f"diffae-hub push {pipeline} tester/failed" in errors
    assert (pipeline / "model_index.json").exists()
