"""The notebooks run from top to bottom on the CPU, and stay small files."""

import json
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "notebooks"
# Text of a cell -> what is run: fewer steps.
SMALLER = {"num_inference_steps=20": "num_inference_steps=4", '"960"': '"32"', '"240"': '"32"'}


def run(name: str) -> dict[str, Any]:
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    namespace: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"])
            for text, smaller in SMALLER.items():
                code = code.replace(text, smaller)
            exec(compile(code, f"{name}.ipynb", "exec"), namespace)
    return namespace


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
    assert made["records"][-1]["examples"] == 32
    assert made["image"].size == (32, 32)
