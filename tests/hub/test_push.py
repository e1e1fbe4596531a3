"""Pushing a trained pipeline with the real Hub client, to a server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file

from ..hub_server import running_hub
from ..training.runner import arguments, write_images

# The client reads its environment when it is imported: it gets a process of its own. First without a token, where the
# script must refuse before it trains; then it trains, pushes, and loads back what it pushed, by its id alone.
DRIVER = """
import json, os, sys
import torch
from diffae_hub.cli.main import main
argv = ["train", *sys.argv[1:]]
token = os.environ.pop("HF_TOKEN")
assert main(argv) == 2
os.environ["HF_TOKEN"] = token
assert main(argv) == 0
from diffae_hub import DiffusionAutoencoderPipeline
pipeline = DiffusionAutoencoderPipeline.from_pretrained("tester/tiny-digits")
image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
print("CODE", json.dumps(pipeline.encode(image).tolist()))
"""


def test_train_push_and_load_by_id(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    run_folder = tmp_path / "run"
    flags = ("--push_to_hub", "--hub_model_id=tiny-digits", "--hub_private", f"--validation_dataset={images}")
    argv = arguments(images, run_folder, *flags, "--validation_steps=2", training_examples=64)
    with running_hub() as hub:
        result = subprocess.run(
            [sys.executable, "-c", DRIVER, *argv],
            env={**os.environ, **hub.environment(str(tmp_path / "home")), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert result.returncode == 0, result.stderr

        assert "diffae-hub: repo_id" in result.stderr
        assert "hf_test" not in result.stdout + result.stderr, "a token is never printed"
        (name,) = hub.repositories
        assert name == "tester/tiny-digits"
        repository = hub.repositories[name]
        assert repository.private
        assert [title for _, title, _ in repository.commits] == ["initial commit", "Upload diffusion autoencoder"]
        files = repository.commits[-1][2]

    # What was pushed is the pipeline folder, byte for byte.
    pipeline = run_folder / "pipeline"
    local = {str(path.relative_to(pipeline)): path.read_bytes() for path in pipeline.rglob("*") if path.is_file()}
    assert {path: files[path] for path in local} == local
    assert set(files) - set(local) == {".gitattributes"}
    for component in ("encoder", "decoder"):
        path = f"{component}/diffusion_pytorch_model.safetensors"
        assert load_safetensors(files[path]).keys() == load_file(pipeline / path).keys()

    # The card's figures are the run's last validation.
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    psnr = next(record["psnr_stochastic"] for record in reversed(records) if "psnr_stochastic" in record)
    assert f"{psnr:.4g} dB" in files["README.md"].decode()

    import torch

    from diffae_hub import DiffusionAutoencoderPipeline

    image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    expected = DiffusionAutoencoderPipeline.from_pretrained(pipeline).encode(image)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("CODE ")]
    torch.testing.assert_close(torch.tensor(json.loads(line.removeprefix("CODE "))), expected, rtol=1e-5, atol=1e-6)


# Pushes the folder given with the card given, by the command line, and loads it back by its id.
PUSH_DRIVER = """
import sys
from diffae_hub.cli.main import main
assert main(["push", sys.argv[1], "tiny", "--card", sys.argv[2], "--json"]) == 0
from diffae_hub import DiffusionAutoencoderPipeline
pipeline = DiffusionAutoencoderPipeline.from_pretrained("tester/tiny")
assert pipeline.encoder.config.latent_dim == 8
assert main(["push", sys.argv[1], "no/such/name"]) == 2
assert main(["push", sys.argv[1], "tiny", "--card", "missing.md"]) == 2
assert main(["push", "missing", "tiny"]) == 2
"""


def test_push_command_uploads_the_card_with_its_pictures(tiny_pipeline, tmp_path: Path) -> None:
    folder, cards = tmp_path / "pipeline", tmp_path / "cards"
    tiny_pipeline.save_pretrained(folder)
    (folder / ".README.md.partial").write_text("half")
    (cards / "images").mkdir(parents=True)
    (cards / "images" / "a.png").write_bytes(b"picture")
    (cards / "images" / "not_shown.png").write_bytes(b"another")
    (tmp_path / "secret.txt").write_text("outside")
    page = "# Card\n![a](images/a.png) [page](https://example.org) [up](../secret.txt) [gone](gone.md)\n"
    (cards / "card.md").write_text(page)
    with running_hub() as hub:
        result = subprocess.run(
            [sys.executable, "-c", PUSH_DRIVER, str(folder), str(cards / "card.md")],
            env={**os.environ, **hub.environment(str(tmp_path / "home")), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert result.returncode == 0, result.stderr
        assert '{"repo_id": "tester/tiny"}' in result.stdout
        assert "Traceback" not in result.stderr
        files = hub.repositories["tester/tiny"].commits[-1][2]
    pipeline = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {".README.md.partial"}
    assert set(files) == pipeline | {".gitattributes", "README.md", "images/a.png"}
    assert files["README.md"].decode() == page
    assert files["images/a.png"] == b"picture"
