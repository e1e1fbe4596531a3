"""Model cards: a Hub page written from a JSON document of figures, so that no number is typed by hand.

The document (see [`render_model_card`]) is kept beside the model; every number on the page is one of its values, and
what it lacks the page leaves out. The header is huggingface_hub's, with the results as the Hub's `model-index`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PAPER = "*Revisiting Diffusion Autoencoder Training for Image Reconstruction Quality* (Khungurn et al.)"
_PARTS = ("encoder", "decoder", "scheduler")
# What `push_to_hub` may add.
CARD_FIGURES = (
    "summary",
    "license",
    "tags",
    "datasets",
    "base_model",
    "dataset",
    "results",
    "evaluation",
    "limitations",
)
_SUMMARIES = {
    "DiffusionAutoencoderPipeline": "A diffusion autoencoder: an encoder that turns an image into a latent code, and a "
    "diffusion decoder that turns the code and noise back into the image.",
    "SemanticEncoderModel": "The encoder of a diffusion autoencoder: it turns an image into a latent code.",
    "ConditionedUNet2DModel": "The decoder of a diffusion autoencoder: a denoiser conditioned on a latent code.",
    "LatentCodeModel": "A diffusion model of latent codes: it samples new codes for a diffusion autoencoder.",
    "AttributeClassifier": "A linear classifier of attributes on the latent codes of a diffusion autoencoder.",
}


def render_model_card(figures: Mapping[str, Any]) -> str:
    """The README.md of a model repository.

    Args:
        figures: JSON-like document with `model_name`, its Hub id or name, and optionally
            `class_name`: the class that loads it (default: the pipeline); `summary`: one paragraph;
            `dataset`: `{"name", "note"}`; `experiment`: a `TrainingPreset.to_dict()`, or
            `networks`: configurations by component; `parameters`: number of parameters by component;
            `training`: figures of the training by name, for example `{"examples": 200000, "hours": 0.7}`;
            `results`: list of `{"metric", "mode", "value", "unit", "note", "dataset", "split"}`, all but the first
            three optional; `evaluation`: how the results were measured; `limitations`: list of sentences;
            `license`: an SPDX id in lower case; `tags`, `datasets`, `base_model`: as in the Hub's header.

    Returns:
        Markdown with a YAML header. Of a dataset or model that is a local path the last part is shown.
    """
    name, experiment = figures["model_name"], figures.get("experiment", {})
    class_name = figures.get("class_name", "DiffusionAutoencoderPipeline")
    networks = figures.get("networks") or {part: experiment[part] for part in _PARTS if part in experiment}
    sections = [
        f"---\n{card_data(figures).to_yaml()}\n---",
        f"# {name}",
        figures.get("summary") or _SUMMARIES.get(class_name, f"A {class_name} of a diffusion autoencoder."),
        _usage(name, class_name, 1 if _is_one_step(experiment) else 50),
    ]
    if figures.get("results"):
        sections += ["## Results", _results_table(figures["results"])]
    if figures.get("evaluation"):
        sections.append(figures["evaluation"])
    if training := _training_rows(figures):
        sections += ["## Training", _table(["", ""], training)]
    if figures.get("limitations"):
        sections += ["## Limitations", "\n".join(f"- {line}" for line in figures["limitations"])]
    if networks:
        sections += ["## Networks", f"```json\n{json.dumps(networks, indent=2)}\n```"]
    return "\n\n".join([*sections, f"Method: {_PAPER}."]) + "\n"


def card_data(figures: Mapping[str, Any]) -> Any:
    """The header of [`render_model_card`], a `ModelCardData`."""
    from huggingface_hub import ModelCardData

    dataset = figures.get("dataset", {}).get("name", "")
    base_model = figures.get("base_model")
    data = ModelCardData(
        model_name=figures["model_name"].split("/")[-1],
        license=figures.get("license"),
        library_name="diffae_hub",
        pipeline_tag="image-to-image",
        tags=["diffusion-autoencoder", "image-reconstruction", *figures.get("tags", [])],
        datasets=figures.get("datasets") or ([dataset] if _is_hub_id(dataset) else None),
        base_model=base_model if base_model and _is_hub_id(base_model) else None,
        eval_results=_eval_results(figures) or None,
    )
    if data.eval_results is None:
        del data.model_name
    return data


def _eval_results(figures: Mapping[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    results = []
    for result in figures.get("results", ()):
        dataset = result.get("dataset") or figures.get("dataset", {}).get("name")
        if not dataset or not isinstance(result["value"], (int, float)) or not math.isfinite(result["value"]):
            continue
        shown = public_name(dataset)
        results.append(
            EvalResult(
                task_type="image-to-image",
                task_name="image reconstruction",
                dataset_type=dataset if _is_hub_id(dataset) else _slug(shown),
                dataset_name=shown,
                dataset_split=result.get("split"),
                metric_type=_slug(result["metric"]),
                metric_name=f"{result['metric']}, {result['mode']}",
                metric_value=result["value"],
            )
        )
    return results


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)) and not Path(name).exists()


def public_name(name: str) -> str:
    """A dataset's name as others may read it: the last part of a local path."""
    is_path = re.match(r"[~./\\]|[A-Za-z]:[/\\]", name) or re.fullmatch(r"\S*[/\\]\S*", name)
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path and not _is_hub_id(name) else name


def _is_one_step(experiment: Mapping[str, Any]) -> bool:
    """Whether the whole training was phase 1: the model knows t = 1 only."""
    return experiment.get("phase1_fraction") == 1


def _usage(name: str, class_name: str, num_inference_steps: int) -> str:
    lines = [f"from diffae_hub import {class_name}"]
    if class_name == "DiffusionAutoencoderPipeline":
        lines += [
            "from PIL import Image",
            "",
            f"pipe = {class_name}.from_pretrained({json.dumps(name)})",
            'image = Image.open("picture.png")',
            "latent_code = pipe.encode(image)",
            f"reconstruction = pipe(image, num_inference_steps={num_inference_steps}).images[0]",
        ]
    else:
        lines += ["", f"component = {class_name}.from_pretrained({json.dumps(name)})"]
    return "\n".join(["`pip install diffae_hub`, then:", "", "```python", *lines, "```"])


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


def _results_table(results: Sequence[Mapping[str, Any]]) -> str:
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


def _training_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    experiment, dataset, rows = figures.get("experiment", {}), figures.get("dataset"), []
    if dataset:
        note = f": {dataset['note']}" if dataset.get("note") else ""
        rows.append(["data", public_name(dataset["name"]) + note])
    if experiment:
        fraction = experiment["phase1_fraction"]
        phases = f"two; the first {_number(100 * fraction)} % of the examples with t = 1" if fraction else "one"
        phases = "one; all examples with t = 1" if _is_one_step(experiment) else phases
        rows += [
            ["phases", phases],
            ["batch size", _number(experiment["batch_size"])],
            ["learning rate", str(experiment["learning_rate"])],
            ["EMA decay", str(experiment["ema_decay"])],
        ]
    rows += [[f"parameters, {part}", _number(count)] for part, count in figures.get("parameters", {}).items()]
    return rows + [[key.replace("_", " "), _number(value)] for key, value in figures.get("training", {}).items()]
