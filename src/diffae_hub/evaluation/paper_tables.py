"""The paper's figures for reconstruction, path lengths and probes, to print beside our own.

The rows of paper_tables.json are named after its "methods", which say how a model was trained. Lists of five figures
are in the order of `METRICS`, lists of three figures of a probe in the order of its averages.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

METRICS = ("psnr_db", "ssim", "lpips_alex", "fid_torch_fidelity", "fid_clean_fid")


def format_papers(metric: str, value: float) -> str:
    """Formats a figure as the paper prints it: PSNR with three decimals, the others with four, LPIPS with up to six."""
    return np.format_float_positional(value, min_digits=3 if metric == "psnr_db" else 4)


class TrainingMethod(NamedTuple):
    """How a model was trained: a row of the paper's tables."""

    title: str  # in the paper's notation, such as `v, SC-4, 2-phase`
    prediction_type: str  # "epsilon", "sample" or "v_prediction"
    noise_schedule: str  # "linear_beta", "inverted" or "shifted_cosine"
    scaling_factor: int | None = None  # S of the shifted cosine schedule
    two_phase: bool = False  # whether the first quarter of the examples had t = 1


_PAPER = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_METHODS = {title: TrainingMethod(title, **fields) for title, fields in _PAPER["methods"].items()}


def _by_method(rows: dict[str, Any]) -> dict[TrainingMethod, Any]:
    return {_METHODS[title]: figures for title, figures in rows.items()}


PREECHAKUL = _METHODS["ε, linear-β, 1-phase"]
HUDSON = _METHODS["ε, inverted, 1-phase"]
ONE_PHASE = _METHODS["v, SC-4, 1-phase"]
TWO_PHASE = _METHODS["v, SC-4, 2-phase"]

# Stochastic autoencoding of CIFAR-10; 32M examples.
TABLE_1, TABLE_2 = _by_method(_PAPER["table_1"]), _by_method(_PAPER["table_2"])
# 64M examples. The paper's second row, phase 1 alone, is not a diffusion autoencoder yet and is left out.
TABLE_3 = _by_method(_PAPER["table_3"])
# Data set -> method -> (stochastic autoencoding, inversion); 50 steps each way.
TABLE_4 = {dataset: _by_method(rows) for dataset, rows in _PAPER["table_4"].items()}
# Perceptual path length, 200 pairs: data set -> method -> figure.
TABLE_5 = {dataset: _by_method(rows) for dataset, rows in _PAPER["table_5"].items()}
# Stochastic autoencoding after Hudson et al., by data set.
TABLE_9 = _PAPER["table_9"]
# AUROC of linear probes by label, and macro averages by method: 40 attributes of CelebA, 10 classes of CIFAR-10.
TABLE_10, TABLE_10_AVERAGE = _PAPER["table_10"], _by_method(_PAPER["table_10_average"])
TABLE_11, TABLE_11_AVERAGE = _PAPER["table_11"], _by_method(_PAPER["table_11_average"])
# Accuracy on CIFAR-10's test images (section 5.2).
PROBE_ACCURACY = _by_method(_PAPER["probe_accuracy"])
