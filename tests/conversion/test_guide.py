"""The guide docs/official_checkpoints.md: its blocks run one after another, on miniature checkpoints with few steps."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from ..docs.blocks import run_page
from .conftest import STATES
from .official_files import save_lightning, statistics
from .reference_network import MINIATURE


def test_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name, ending in (("autoencoder", ""), ("latent", "_latent"), ("classifier", "_cls")):
        folder = Path(f"ffhq256_autoenc{ending}")
        folder.mkdir()
        save_lightning(folder / "last.ckpt", STATES[name](MINIATURE))
    torch.save({"conds": torch.zeros(5, 12), **statistics(MINIATURE)}, "ffhq256_autoenc/latent.pkl")
    Image.effect_noise((16, 16), 50).save("face.png")
    variables = run_page("official_checkpoints.md")
    assert "warning" not in capsys.readouterr().err
    assert variables["same"].size == variables["edited"].size == (16, 16)
    assert not torch.equal(variables["smiling"], variables["z"])
    assert len(variables["new"].images) == 4
    assert {path.stem for path in Path("checkpoints").iterdir()} == set(STATES)
