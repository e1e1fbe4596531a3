"""The notebooks run from top to bottom on the CPU, and stay small files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "notebooks"


def run(name: str) -> dict[str, Any]:
    """Executes the code cells; what they defined."""
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    namespace: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}.ipynb", "exec"), namespace)
    return namespace


def test_every_notebook_is_small() -> None:
    assert all(path.stat().st_size < 300_000 for path in NOTEBOOKS.glob("*.ipynb"))


def test_reconstruct_and_edit() -> None:
    made = run("reconstruct_and_edit")
    assert made["z"].shape == (1, 512)
    assert (len(made["variations"]), len(made["frames"]), len(made["edited"])) == (4, 7, 5)
    pixels = [picture.resize((1, 1)).getpixel((0, 0)) for picture in made["edited"]]
    warmth = [red - blue for red, _, blue in pixels]
    assert warmth == sorted(warmth)
    assert warmth[-1] > warmth[0] + 20


def test_train_on_a_folder() -> None:
    made = run("train_on_a_folder")
    losses = [record["loss"] for record in made["records"] if "loss" in record]
    assert losses[-1] < losses[0]
    assert made["image"].size == (32, 32)
