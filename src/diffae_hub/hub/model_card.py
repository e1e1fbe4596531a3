"""Model cards: a Hub page written from a JSON document of measured figures, so that no number is typed by hand.

The document (see [`render_model_card`]) is kept beside the model; every number on the page is one of its values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_text

_REQUIRED = ("model_name", "summary", "dataset", "experiment", "parameters", "training", "results")
_PAPER = "*Revisiting Diffusion Autoencoder Training for Image Reconstruction Quality* (Khungurn et al.)"


def render_model_card(figures: Mapping[str, Any]) -> str:
    """The README.md of a model repository.

    Args:
        figures: JSON-like document with
            `model_name`: its Hub id or name; `summary`: one paragraph;
            `dataset`: `{"name", "note"}`; `experiment`: a `TrainingPreset.to_dict()`;
            `parameters`: number of parameters by component; `training`: figures of the training by name, for example
            `{"examples": 200000, "hours": 0.7, "hardware": "1 CPU core"}`;
            `results`: list of `{"metric", "mode", "value", "unit", "note"}`, unit and note optional;
            and optionally `license`: an SPDX id in lower case, `evaluation`: how the results were measured,
            `limitations`: list of sentences, `tags`: further tags.

    Returns:
        Markdown with a YAML header.

    Raises:
        ValueError: If a required key is missing.
    """
    missing = [name for name in _REQUIRED if name not in figures]
    if missing:
        raise ValueError(f"figures must have the keys {list(_REQUIRED)}, missing {missing}")
    name, experiment, limitations = figures["model_name"], figures["experiment"], figures.get("limitations")
    sections = [
        _header(figures),
        f"# {name}",
        figures["summary"],
        _usage(name, 1 if _is_one_step(experiment) else 50),
        "## Results",
        _results_table(figures["results"]),
        *([figures["evaluation"]] if figures.get("evaluation") else []),
        "## Training",
        _training_table(figures),
        *(["## Limitations", "\n".join(f"- {line}" for line in limitations)] if limitations else []),
        "## Networks",
        "```json\n"
        + json.dumps({part: experiment[part] for part in ("encoder", "decoder", "scheduler")}, indent=2)
        + "\n```",
        f"Method: {_PAPER}.",
    ]
    return "\n\n".join(sections) + "\n"


def _header(figures: Mapping[str, Any]) -> str:
    tags = ["diffusion-autoencoder", "image-reconstruction", *figures.get("tags", [])]
    license_lines = [f"license: {figures['license']}"] if figures.get("license") else []
    lines = ["---", *license_lines, "library_name: diffae_hub", "tags:"]
    # JSON strings are YAML strings: nothing in a name can break the header.
    return "\n".join([*lines, *(f"- {json.dumps(tag)}" for tag in tags), "---"])


def _is_one_step(experiment: Mapping[str, Any]) -> bool:
    """Whether the whole training was phase 1: the model knows t = 1 only."""
    return experiment["phase1_fraction"] == 1


def _usage(name: str, num_inference_steps: int) -> str:
    return (
        "```python\n"
        "from diffae_hub import DiffusionAutoencoderPipeline\n"
        "from PIL import Image\n\n"
        f"pipe = DiffusionAutoencoderPipeline.from_pretrained({json.dumps(name)})\n"
        'image = Image.open("picture.png")\n'
        "latent_code = pipe.encode(image)\n"
        f"reconstruction = pipe(image, num_inference_steps={num_inference_steps}).images[0]\n"
        "```"
    )


def _number(value: Any) -> str:
    """As a person writes it: integers with separators, floats with four significant digits and no exponent."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _results_table(results: list[Mapping[str, Any]]) -> str:
    rows = [
        [
            result["metric"],
            result["mode"],
            f"{_number(result['value'])} {result.get('unit', '')}".strip(),
            result.get("note", ""),
        ]
        for result in results
    ]
    return _table(["metric", "reconstruction", "value", "note"], rows)


def _training_table(figures: Mapping[str, Any]) -> str:
    experiment, dataset = figures["experiment"], figures["dataset"]
    fraction = experiment["phase1_fraction"]
    phases = f"two; the first {_number(100 * fraction)} % of the examples with t = 1" if fraction else "one"
    phases = "one; all examples with t = 1" if _is_one_step(experiment) else phases
    rows = [
        ["data", dataset["name"] + (f": {dataset['note']}" if dataset.get("note") else "")],
        ["phases", phases],
        ["batch size", _number(experiment["batch_size"])],
        ["learning rate", str(experiment["learning_rate"])],
        ["EMA decay", str(experiment["ema_decay"])],
        *([f"parameters, {part}", _number(count)] for part, count in figures["parameters"].items()),
        *([key.replace("_", " "), _number(value)] for key, value in figures["training"].items()),
    ]
    return _table(["", ""], rows)


_MODE_NAMES = {"one_step": "one step from t = 1", "stochastic": "stochastic", "inversion": "inverted"}


def figures_of_run(
    model_name: str,
    dataset: str,
    experiment: Mapping[str, Any],
    parameters: Mapping[str, int],
    metrics: list[Mapping[str, Any]],
    validation_images: int = 0,
    num_inference_steps: int = 50,
    license_id: str | None = None,
) -> dict[str, Any]:
    """The figures of a training run, for [`render_model_card`]: its length, its speed and its last validation.

    Args:
        model_name: Hub id or name.
        dataset: Name of the training data.
        experiment: `TrainingPreset.to_dict()`.
        parameters: Number of parameters by component.
        metrics: The records of the run's `metrics.jsonl`.
        validation_images: Held-out images of the validation.
        num_inference_steps: Steps of the validation of a model that knows all t.
        license_id: SPDX id in lower case; None claims none.
    """
    steps = "one step from t = 1" if _is_one_step(experiment) else f"{num_inference_steps} DDIM steps"
    validations = [record for record in metrics if any(key.startswith("psnr_") for key in record)]
    results = []
    for key, value in (validations[-1] if validations else {}).items():
        metric, _, mode = key.partition("_")
        if metric in ("psnr", "ssim") and mode in _MODE_NAMES:
            unit = {"unit": "dB"} if metric == "psnr" else {}
            results.append({"metric": metric.upper(), "mode": _MODE_NAMES[mode], "value": value, **unit})
    rates = [record["examples_per_second"] for record in metrics if "examples_per_second" in record]
    training: dict[str, Any] = {"examples": max((record["examples"] for record in metrics), default=0)}
    if rates:
        training["examples_per_second"] = rates[-1]
    return {
        "model_name": model_name,
        "summary": "A diffusion autoencoder: an encoder that turns an image into a latent code, and a diffusion "
        "decoder that turns the code and noise back into the image.",
        **({"license": license_id} if license_id else {}),
        "dataset": {"name": dataset},
        "experiment": dict(experiment),
        "parameters": dict(parameters),
        "training": training,
        "results": results,
        "evaluation": f"Means over {validation_images:,} held-out images, {steps}, averaged (EMA) weights, "
        "images in [0, 1]."
        if results
        else "This run had no held-out images: nothing was measured.",
    }


def write_model_card(folder: str | Path, figures: Mapping[str, Any]) -> None:
    """Writes README.md and the `figures.json` it was rendered from into a pipeline folder."""
    folder = Path(folder)
    for name, text in (("README.md", render_model_card(figures)), ("figures.json", json.dumps(figures, indent=2))):
        write_text(folder / name, text)
