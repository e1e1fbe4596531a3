"""Model cards: Hub pages written from a JSON document of figures, so that no number is typed by hand.

The document (see [`render_model_card`]) is kept beside the model. Every number on the page is one of its values; the
page omits what it lacks. The header is huggingface_hub's, with the results as the Hub's `model-index`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import write_text

_PIPELINE = "DiffusionAutoencoderPipeline"
_MODES = {"one_step": "one step from t = 1", "stochastic": "stochastic", "inversion": "inverted"}
_SUMMARY = (
    "A diffusion autoencoder: an encoder that turns an image into a latent code, and a diffusion decoder that turns "
    "the code and noise back into the image."
)
_METHOD = "Method: *Revisiting Diffusion Autoencoder Training for Image Reconstruction Quality* (Khungurn et al.)."
_CODE = """\
from PIL import Image

pipe = {loading}
image = Image.open("picture.png")
latent_code = pipe.encode(image)
reconstruction = pipe(image, num_inference_steps={steps}).images[0]"""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def render_model_card(figures: Mapping[str, Any]) -> str:
    """Renders the README.md of a model repository: Markdown with a YAML header.

    Args:
        figures: JSON-like document with `model_name`, its Hub id or name, and optionally
            `class_name`: the class that loads it (default: the pipeline); `variant`: that of the weights, if there are
            no plain ones; `summary`: one paragraph;
            `dataset`: `{"name", "note"}`; only the last part of a local path is shown;
            `experiment`: a `TrainingPreset` as a dictionary, or `networks`: configurations by component;
            `parameters`: number of parameters by component;
            `training`: figures of the training by name, for example `{"examples": 200000, "hours": 0.7}`;
            `results`: list of `{"metric", "mode", "value"}`, optionally with `unit`, `note`, `dataset`, `split` and
            `baseline`, true if it is not the model's own;
            `evaluation`: how the results were measured; `limitations`: list of sentences;
            `license`: an SPDX id in lower case; `tags`, `datasets`, `base_model`: as in the Hub's header.
    """
    name, experiment = figures["model_name"], figures.get("experiment", {})
    class_name = figures.get("class_name", _PIPELINE)
    variant = f", variant={json.dumps(figures['variant'])}" if "variant" in figures else ""
    code = "\ncomponent = {loading}"
    summary = f"The {class_name} of a diffusion autoencoder."
    if class_name == _PIPELINE:
        code, summary = _CODE, _SUMMARY
    code = code.format(
        loading=f"{class_name}.from_pretrained({json.dumps(name)}{variant})",
        steps=1 if experiment.get("phase1_fraction") == 1 else 50,  # all of the training was phase 1
    )
    sections = [
        f"# {name}",
        figures.get("summary") or summary,
        "`pip install diffae_hub`, then:",
        f"```python\nfrom diffae_hub import {class_name}\n{code}\n```",
    ]
    if results := figures.get("results"):
        rows = [
            (r["metric"], r["mode"], f"{_number(r['value'])} {r.get('unit', '')}".strip(), r.get("note", ""))
            for r in results
        ]
        sections += ["## Results", markdown_table(["metric", "reconstruction", "value", "note"], rows)]
    if evaluation := figures.get("evaluation"):
        sections.append(evaluation)
    if rows := _training_rows(figures):
        sections += ["## Training", markdown_table(["", ""], rows)]
    if limitations := figures.get("limitations"):
        sections += ["## Limitations", "\n".join(f"- {line}" for line in limitations)]
    parts = ("encoder", "decoder", "scheduler")
    if networks := figures.get("networks") or {part: experiment[part] for part in parts if part in experiment}:
        sections += ["## Networks", f"```json\n{json.dumps(networks, indent=2)}\n```"]
    page = "\n\n".join([*sections, _METHOD])
    return f"---\n{card_data(figures).to_yaml()}\n---\n\n{page}\n"


def card_data(figures: Mapping[str, Any]) -> Any:
    """The header of [`render_model_card`], a `ModelCardData`."""
    from huggingface_hub import EvalResult, ModelCardData

    trained_on = figures.get("dataset", {}).get("name") or ""
    base_model = figures.get("base_model") or ""
    results = []
    for result in figures.get("results", ()):
        dataset, value = result.get("dataset") or trained_on, result["value"]
        if not result.get("baseline") and dataset and isinstance(value, (int, float)) and math.isfinite(value):
            entry = EvalResult(
                task_type="image-to-image",
                task_name="image reconstruction",
                dataset_type=dataset if _is_hub_id(dataset) else _slug(public_name(dataset)),
                dataset_name=public_name(dataset),
                dataset_split=result.get("split"),
                metric_type=_slug(result["metric"]),
                metric_name=f"{result['metric']}, {result['mode']}",
                metric_value=value,
            )
            results.append(entry)
    return ModelCardData(
        license=figures.get("license"),
        library_name="diffae_hub",
        pipeline_tag="image-to-image",
        tags=["diffusion-autoencoder", "image-reconstruction", *figures.get("tags", [])],
        datasets=figures.get("datasets") or ([trained_on] if _is_hub_id(trained_on) else None),
        base_model=base_model if _is_hub_id(base_model) else None,
        **({"eval_results": results, "model_name": figures["model_name"].split("/")[-1]} if results else {}),
    )


def card_with_header(page: Path, figures: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Reads a Markdown page, and adds to its header what it lacks of ours.

    What is also in `given`, by the names of `figures`, replaces what the page has.
    """
    import yaml
    from huggingface_hub import CardData, ModelCard

    try:
        card = ModelCard(page.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"card {page} must be UTF-8 text with a YAML header, if any: {error}") from error
    own, names = card_data(figures).to_dict(), {"model-index": "results"}
    header = own | card.data.to_dict() | {name: own[name] for name in own if names.get(name, name) in given}
    return f"---\n{CardData(**header).to_yaml()}\n---\n{card.text}"


def figures_of_run(experiment: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collects a training run's length, speed and last validation, for [`render_model_card`].

    `experiment` is a `TrainingPreset` as a dictionary, `metrics` the records of metrics.jsonl.
    """
    last = next((record for record in reversed(metrics) if "validation" in record), None)
    results, evaluation = [], "Nothing was measured on held-out images."
    if last is not None:
        how = last["validation"]
        steps = _MODES["one_step"] if "psnr_one_step" in last else f"{how['steps']} DDIM steps"
        evaluation = f"Means over {how['images']:,} held-out images, {steps}, averaged (EMA) weights, images in [0, 1]."
        where = {"dataset": how["dataset"], "split": how["split"]}
        results = [
            {"metric": metric.upper(), "mode": shown, "value": last[f"{metric}_{mode}"], **unit, **where}
            for metric, unit in (("psnr", {"unit": "dB"}), ("ssim", {}))
            for mode, shown in _MODES.items()
            if f"{metric}_{mode}" in last
        ]
    training = {"examples": max((record["examples"] for record in metrics), default=0)}
    for record in metrics:
        training |= {key: record[key] for key in ("examples_per_second",) if key in record}
    return {
        "experiment": dict(experiment),
        "training": training,
        "results": results,
        "evaluation": evaluation,
    }


def results_of_evaluation(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Collects the results of an evaluation's report.json, for [`render_model_card`]."""
    where = {"dataset": report["dataset"], "split": report.get("split")}
    solver = {"ddim": "DDIM", "dpm": "DPM-Solver++"}[report.get("solver", "ddim")]
    where["note"] = f"{report['num_images']:,} images, {report['steps']} {solver} steps"
    results = []
    for mode in report["modes"]:
        for metric, figure in report["results"][mode].items():
            value = figure.get("mean", figure.get("value")) if isinstance(figure, Mapping) else figure
            if isinstance(value, (int, float)):
                name = metric.removesuffix("_db").upper().replace("_", "-")
                unit = {"unit": "dB"} if metric.endswith("_db") else {}
                results.append({"metric": name, "mode": mode, "value": value, **unit, **where})
    return results


def write_model_card(folder: Path, figures: Mapping[str, Any]) -> None:
    """Writes README.md and the `figures.json` it was rendered from into a pipeline folder."""
    write_text(folder / "README.md", render_model_card(figures))
    write_text(folder / "figures.json", json.dumps(figures, indent=2))


def public_name(name: str) -> str:
    """A dataset's name for publication: of a local path, only the last part."""
    is_path = re.match(r"[~./\\]|[A-Za-z]:[/\\]", name) or re.fullmatch(r"\S*[/\\]\S*", name)
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path and not _is_hub_id(name) else name


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)) and not Path(name).exists()


def _number(value: Any) -> str:
    """Formats a number for readers: integers with separators, floats with four significant digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def _training_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if dataset := figures.get("dataset"):
        rows.append(("data", ": ".join(filter(None, (public_name(dataset["name"]), dataset.get("note"))))))
    if base_model := figures.get("base_model"):
        rows.append(("fine-tuned from", public_name(base_model)))
    if experiment := figures.get("experiment"):
        percent = _number(100 * experiment["phase1_fraction"])
        phases = {"0": "one", "100": "one; all examples with t = 1"}
        rows += [
            ("phases", phases.get(percent, f"two; the first {percent} % of the examples with t = 1")),
            ("batch size", _number(experiment["batch_size"])),
            ("optimizer", experiment.get("optimizer", "adam")),
            ("learning rate", f"{experiment['learning_rate']}, {experiment.get('lr_scheduler', 'constant')}"),
            ("EMA decay", str(experiment["ema_decay"])),
            ("loss weighting", experiment.get("loss_weighting", "none")),
        ]
    rows += [(f"parameters, {part}", _number(count)) for part, count in figures.get("parameters", {}).items()]
    return rows + [(key.replace("_", " "), _number(value)) for key, value in figures.get("training", {}).items()]
