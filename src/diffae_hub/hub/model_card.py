"""The figures of a model card: of a training run and of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_text
from ..model_card import render_model_card

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
    base_model: str | None = None,
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
        base_model: Hub id of the model that was fine-tuned.
    """
    steps = "one step from t = 1" if experiment["phase1_fraction"] == 1 else f"{num_inference_steps} DDIM steps"
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
        **({"license": license_id} if license_id else {}),
        **({"base_model": base_model} if base_model else {}),
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


def results_of_evaluation(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of an evaluation's report.json, for [`render_model_card`]."""
    results = []
    for mode in report["modes"]:
        for metric, figure in report["results"][mode].items():
            value = figure.get("mean", figure.get("value")) if isinstance(figure, Mapping) else figure
            if isinstance(value, (int, float)):
                unit = {"unit": "dB"} if metric.endswith("_db") else {}
                name = metric.removesuffix("_db").upper().replace("_", "-")
                where = {"dataset": report["dataset"], "split": report.get("split")}
                note = f"{report['num_images']:,} images, {report['num_inference_steps']} DDIM steps"
                results.append({"metric": name, "mode": mode, "value": value, **unit, "note": note, **where})
    return results


def write_model_card(folder: str | Path, figures: Mapping[str, Any]) -> None:
    """Writes README.md and the `figures.json` it was rendered from into a pipeline folder."""
    folder = Path(folder)
    for name, text in (("README.md", render_model_card(figures)), ("figures.json", json.dumps(figures, indent=2))):
        write_text(folder / name, text)
