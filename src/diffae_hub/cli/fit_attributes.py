"""`diffae-hub fit-attributes`."""

from __future__ import annotations

import argparse
import json
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from ..files import new_folder
from .flags import add_flags, from_arguments, option
from .shared import silence_libraries


@dataclass(frozen=True)
class FitOptions:
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


def fit_attributes_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub fit-attributes`."""
    parser.description = """Find attributes in latent codes, for `diffae-hub edit`.

  diffae-hub fit-attributes codes --labels label --output mine              from labels
  diffae-hub fit-attributes smiling --without serious --name smile --method means --output mine
  diffae-hub fit-attributes codes --principal 10 --output mine              from nothing"""
    add_flags(parser, FitOptions)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run_fit_attributes(arguments: argparse.Namespace) -> int:
    """Attaches a classifier to a pipeline; prints the figures of each attribute."""
    import numpy as np
    import torch

    from .. import AttributeClassifier
    from ..codes.fingerprints import check_encoder
    from ..codes.shards import codes_summary, load_codes
    from ..devices import load_pipeline

    silence_libraries()
    options = from_arguments(FitOptions, arguments)
    if sum((bool(options.labels), options.without is not None, options.principal is not None)) != 1:
        raise ValueError("--labels, --without or --principal must be given, one of them")
    pipeline = load_pipeline(options.model, torch.device("cpu"))
    summary = codes_summary(options.codes)
    check_encoder(pipeline, summary)
    columns = [*options.labels, *([options.groups] if options.groups else [])]
    table = load_codes(options.codes, columns)
    codes, names = table["latent_code"], list(options.labels)
    fit = {
        "method": options.method, "held_out": options.held_out, "seed": options.seed,
        "regularization": options.regularization, "groups": table[options.groups] if options.groups else None,
    }  # fmt: skip
    if options.principal is not None:
        classifier = AttributeClassifier.principal_directions(codes, options.principal)
    elif options.without is not None:
        check_encoder(pipeline, codes_summary(options.without))
        others = load_codes(options.without)["latent_code"]
        labels = np.arange(len(codes) + len(others)) < len(codes)
        classifier = AttributeClassifier.fit(np.concatenate([codes, others]), labels[:, None], [options.name], **fit)
    elif len(names) == 1 and options.method != "ridge":
        labels, classes = table[names[0]], summary["class_names"].get(names[0])
        labels = np.array(classes)[labels] if classes else labels
        classifier = AttributeClassifier.fit(codes, labels, **fit)
    else:
        classifier = AttributeClassifier.fit(codes, np.stack([table[name] for name in names], axis=1), names, **fit)
    pipeline.attribute_classifier = classifier
    with new_folder(options.output) as folder:
        pipeline.save_pretrained(folder)
    figures = dict(zip(classifier.config.attribute_names, classifier.config.attribute_scores, strict=True))
    if arguments.json:
        print(json.dumps({"output": str(options.output), "attributes": figures}, indent=2))
    else:
        for name, scores in figures.items():
            text = ", ".join(f"{figure} {value:.3f}" for figure, value in scores.items())
            print(f"{name}: {text or 'too rare to measure'}")
        print(options.output)
    return 0
