"""Find attributes in latent codes, for `diffae-hub edit`.

diffae-hub fit-attributes codes --labels label --output mine              from labels
diffae-hub fit-attributes smiling --without serious --name smile --method means --output mine
diffae-hub fit-attributes codes --principal 10 --output mine              from nothing
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from .flags import option
from .shared import silence_libraries


@dataclass
class Options:
    """What the attributes are found in."""

    codes: Path = option(MISSING, "folder of `diffae-hub encode`", positional=True)
    output: Path = option(MISSING, "pipeline folder to write: the model with its attributes")
    model: str = option("cifar10-32-small", "the model that made the codes")
    labels: tuple[str, ...] = option((), "columns of the codes: one of classes, or several of 0 and 1, or of numbers")
    without: Path | None = option(None, "codes without an attribute that those of CODES have: no labels are needed")
    name: str = option("attribute", "what to call that attribute")
    principal: int | None = option(None, "so many directions in which the codes vary most: no labels are needed")
    groups: str | None = option(None, "column that says which images belong together, for the held-out figures")
    method: Literal["logistic", "svm", "means", "ridge"] = option("logistic", "ridge is for numbers such as an age")
    held_out: float = option(0.2, "share of the codes to measure on")
    regularization: float = option(1.0, "strength of the penalty on the weights")
    seed: int = option(0, "of the split")


def run(options: Options, arguments: Namespace) -> tuple[Any, str]:
    """Attaches a classifier to a pipeline; the figures of each attribute."""
    import torch

    from ..codes.fingerprints import check_encoder
    from ..codes.shards import codes_summary
    from ..devices import load_pipeline
    from ..files import new_folder

    silence_libraries()
    if sum((bool(options.labels), options.without is not None, options.principal is not None)) != 1:
        raise ValueError("--labels, --without or --principal must be given, one of them")
    pipeline = load_pipeline(options.model, torch.device("cpu"))
    for folder in filter(None, (options.codes, options.without)):
        check_encoder(pipeline, codes_summary(folder))
    pipeline.attribute_classifier = _fit(options)
    with new_folder(options.output) as folder:
        pipeline.save_pretrained(folder)
    config = pipeline.attribute_classifier.config
    figures = dict(zip(config.attribute_names, config.attribute_scores, strict=True))
    lines = []
    for name, scores in figures.items():
        text = ", ".join(f"{figure} {value:.3f}" for figure, value in scores.items())
        lines.append(f"{name}: {text or 'too rare to measure'}")
    return {"output": options.output, "attributes": figures}, "\n".join([*lines, str(options.output)])


def _fit(options: Options) -> Any:
    """The classifier."""
    import numpy as np

    from .. import AttributeClassifier
    from ..codes.shards import codes_summary, load_codes

    names, groups = list(options.labels), options.groups
    table = load_codes(options.codes, [*names, *([groups] if groups else [])])
    codes = table["latent_code"]
    if options.principal is not None:
        return AttributeClassifier.principal_directions(codes, options.principal)
    if options.without is not None:
        others = load_codes(options.without)["latent_code"]
        labels = np.arange(len(codes) + len(others))[:, None] < len(codes)
        codes, names = np.concatenate([codes, others]), [options.name]
    elif len(names) == 1 and options.method != "ridge":
        classes = codes_summary(options.codes)["class_names"].get(names[0])
        labels, names = np.array(classes)[table[names[0]]] if classes else table[names[0]], None
    else:
        labels = np.stack([table[name] for name in names], axis=1)
    fit = {name: getattr(options, name) for name in ("method", "held_out", "seed", "regularization")}
    return AttributeClassifier.fit(codes, labels, names, groups=table[groups] if groups else None, **fit)
