"""Pipelines by id, in a variant of the weights and at a revision."""

from __future__ import annotations

from pathlib import Path

import torch

from ..hub_server import Client, HubServer

LOAD = """
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


def test_only_the_variant_is_downloaded(
    hub: HubServer, client: Client, tiny_pipeline, model: str, tmp_path: Path
) -> None:
    tiny_pipeline.to(torch.float16).save_pretrained(model, variant="fp16")
    hub.store("tester/tiny", Path(model))
    code, errors, output = client.run("python", LOAD, tmp_path / "cache")
    assert code == 0, errors
    assert output.split() == ["tester/tiny@nowhere", "tester/none", "tester/tiny"]
    weights = {path.name for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert weights == {"diffusion_pytorch_model.fp16.safetensors"}
