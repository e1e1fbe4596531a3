"""The guide docs/official_checkpoints.md: its blocks run one after another, on miniature checkpoints with few steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffae_hub.cli.main import main

from .official_files import autoencoder_state, classifier_state, latent_state, save_lightning, statistics
from .reference_network import MINIATURE

GUIDE = Path(__file__).parents[2] / "docs" / "official_checkpoints.md"


def test_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name, state in (
        ("ffhq256_autoenc", autoencoder_state(MINIATURE)),
        ("ffhq256_autoenc_latent", latent_state(MINIATURE)),
        ("ffhq256_autoenc_cls", classifier_state(MINIATURE)),
    ):
        Path(name).mkdir()
        save_lightning(Path(name, "last.ckpt"), state)
    torch.save({"conds": torch.zeros(5, 12), **statistics(MINIATURE)}, "ffhq256_autoenc/latent.pkl")
    Image.effect_noise((16, 16), 50).save("face.png")

    blocks = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "sh", "python", "python", "python", "sh"]
    namespace: dict[str, Any] = {}
    for language, block in blocks:
        if language == "python":
            block = re.sub(r"(num_inference_steps)=\d+", r"\1=10", block.replace('"cuda"', '"cpu"'))
            exec(compile(block, GUIDE.name, "exec"), namespace)
            continue
        program, *words = shlex.split(block.replace("\\\n", " "))
        assert program == "diffae-hub"
        assert main(words) == 0
        assert "warning" not in capsys.readouterr().err
    assert namespace["same"].size == namespace["edited"].size == (16, 16)
    assert not torch.equal(namespace["smiling"], namespace["z"])
    assert len(namespace["new"].images) == 4
    assert {path.stem for path in Path("checkpoints").iterdir()} == {"autoencoder", "classifier", "latent"}
