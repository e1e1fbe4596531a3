"""Commands for latent codes."""

from argparse import Namespace
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from ..files import check_not_replaced, check_pipeline_output, new_folder, write_png
from ..flags import option


@dataclass
class EncodeOptions:
    dataset: str = option(MISSING, "folder of images, parquet, `datasets` folder or Hub data set", positional=True)
    output: Path = option(MISSING, "folder for the codes, new or to be continued")
    model: str = option("cifar10-32-small", "bundled model, pipeline folder or Hub id")
    columns: tuple[str, ...] = option((), 'to store with the codes; "label" for folders whose subfolders are classes')
    format: Literal["parquet", "safetensors"] = option("parquet", "format of the shards")
    shard_size: int = option(10_000, "images per shard")
    batch_size: int = option(100, "images at a time")
    num_images: int | None = option(
        None, "only this many, the first ones; with a folder per class, those of the first classes"
    )
    streaming: bool = option(False, "read the data set while encoding, never all at once")
    split: str = option("test", "split of the data set")
    image_column: str = option("image", "column that holds the images")
    crop: Literal["center", "d2c"] = option("center", "d2c is the usual crop of CelebA")
    device: str | None = option(None, "cpu, cuda ... (default: the accelerator if there is one)")


def encode(options: EncodeOptions, arguments: Namespace) -> tuple[Any, str] | None:
    """Write the latent codes of a data set, in shards.

      diffae-hub encode train.parquet --split train --model cifar10-32-small --columns label --output codes

    Run it again to continue where it stopped. `accelerate launch -m diffae_hub.cli encode ...` shares the work between
    processes. `diffae_hub.load_codes` reads the codes.
    """
    from ..codes import SUMMARY, encode_dataset
    from ..devices import join_processes, load_pipeline

    given = vars(options).copy()
    state, device = join_processes(given.pop("device"))
    pipeline = load_pipeline(given.pop("model"), device)
    count = encode_dataset(pipeline, **given, show_progress=state.is_main_process and arguments.show_progress)
    record = {"output": options.output, "count": count}
    return (record, f"{count:,} codes, {options.output / SUMMARY}") if state.is_main_process else None


def load_for_codes(model: str, *folders: Path):  # noqa: ANN201 - the class is imported only here
    """Loads the pipeline that made the codes in these folders, on the CPU. Raises ValueError if another made them."""
    import torch

    from ..codes import check_encoder, codes_summary
    from ..devices import load_pipeline

    pipeline = load_pipeline(model, torch.device("cpu"))
    for folder in folders:
        check_encoder(pipeline, codes_summary(folder))
    return pipeline


@dataclass
class NeighboursOptions:
    image: Path = option(MISSING, "image file", positional=True)
    codes: Path = option(MISSING, "folder written by `diffae-hub encode`")
    model: str = option("cifar10-32-small", "the model that made the codes")
    num_neighbours: int = option(8, "number of images to find")
    metric: Literal["cosine", "euclidean"] = option("cosine", "distance between normalised codes")
    sheet: Path | None = option(None, "PNG file for a contact sheet that begins with the image")


def neighbours(options: NeighboursOptions, arguments: Namespace) -> tuple[Any, str]:
    """Find the images of an encoded data set that are nearest to an image."""
    from ..codes import codes_summary, encode_images, encoded_rows, load_codes, nearest_codes, transform_of_codes
    from ..images import film_strip, read_image

    read_image(options.image)  # or fails before any work
    summary, codes = codes_summary(options.codes), load_codes(options.codes, ["source"])
    if options.sheet is not None:
        of_its_name = [Path(source) for source in codes["source"] if source.endswith(options.sheet.name)]
        check_not_replaced([options.image, *of_its_name], [options.sheet])
        data = encoded_rows(summary)
    pipeline = load_for_codes(options.model, options.codes)
    transform = transform_of_codes(pipeline, summary)
    first = transform({"path": options.image, "bytes": None})
    query = encode_images(pipeline, first[None]).numpy()
    distances, rows = nearest_codes(codes["latent_code"], query, options.num_neighbours, options.metric)
    found = [
        {"index": int(codes["index"][row]), "source": str(codes["source"][row]), "distance": float(distance)}
        for row, distance in zip(rows[0], distances[0], strict=True)
    ]
    if options.sheet is not None:
        pictures = [first, *(transform(data[neighbour["index"]]) for neighbour in found)]
        write_png(options.sheet, film_strip([picture / 2 + 0.5 for picture in pictures]))
    lines = [f"{neighbour['distance']:.4f}  {neighbour['source']}" for neighbour in found]
    return {"image": options.image, "neighbours": found}, "\n".join(lines)


@dataclass
class FitAttributesOptions:
    codes: Path = option(MISSING, "folder written by `diffae-hub encode`", positional=True)
    output: Path = option(MISSING, "pipeline folder to write: the model with its attributes")
    model: str = option("cifar10-32-small", "the model that made the codes")
    labels: tuple[str, ...] = option(
        (), "columns of the codes: one with classes, or several with 0 and 1 or with numbers"
    )
    without: Path | None = option(
        None, "codes of images without an attribute that those of CODES have; needs no labels"
    )
    name: str = option("attribute", "name of the attribute for --without")
    principal: int | None = option(None, "number of directions to find in which the codes vary most; needs no labels")
    groups: str | None = option(None, "column of groups, which are not split between fitting and measuring")
    matched_by: str | None = option(
        None,
        "column that says what an image shows apart from its attributes: edits follow the difference between images "
        "that agree in it and in all other labels",
    )
    alternatives: tuple[str, ...] = option(
        (), "labels that exclude each other: images compared for one may differ in the others"
    )
    method: Literal["logistic", "svm", "means", "ridge"] = option("logistic", "ridge is for numbers such as an age")
    held_out: float = option(0.2, "share of the codes to measure on")
    regularization: float = option(1.0, "strength of the penalty on the weights")
    seed: int = option(0, "seed of the split")


def fit_attributes(options: FitAttributesOptions, arguments: Namespace) -> tuple[Any, str]:
    """Find attributes in latent codes, for `diffae-hub edit`.

      diffae-hub fit-attributes codes --labels label --output mine              from labels
      diffae-hub fit-attributes smiling --without serious --name smile --method means --output mine
      diffae-hub fit-attributes codes --principal 10 --output mine              from nothing

    Each attribute is a direction in the space of the codes.
    """
    if sum((bool(options.labels), options.without is not None, options.principal is not None)) != 1:
        raise ValueError("exactly one of --labels, --without and --principal must be given")
    for name in ("groups", "matched_by", "alternatives"):
        if getattr(options, name) and not options.labels:
            raise ValueError(f"--{name.replace('_', '-')} needs --labels")
    codes = [folder for folder in (options.codes, options.without) if folder]
    check_pipeline_output(options.output, *codes)
    pipeline = load_for_codes(options.model, *codes)
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


def _fit(options: FitAttributesOptions) -> Any:
    """Fits the classifier."""
    import numpy as np

    from .. import AttributeClassifier
    from ..codes import load_codes, named_classes

    names = list(options.labels)
    about = {name: getattr(options, name) for name in ("groups", "matched_by")}
    table = load_codes(options.codes, [*names, *sorted({*about.values()} - {None})])
    codes = table["latent_code"]
    if options.principal is not None:
        return AttributeClassifier.principal_directions(codes, options.principal)
    if options.without is not None:
        others = load_codes(options.without)["latent_code"]
        labels = np.arange(len(codes) + len(others))[:, None] < len(codes)
        codes, names = np.concatenate([codes, others]), [options.name]
    elif len(names) == 1 and options.method != "ridge":
        labels = named_classes(table[names[0]], options.codes, names[0])
        if tuple(np.unique(labels)) not in ((0, 1), (-1, 1)):
            names = None  # those of the classes
    else:
        labels = np.stack([table[name] for name in names], axis=1)
    fit = {name: getattr(options, name) for name in ("method", "held_out", "seed", "regularization", "alternatives")}
    fit |= {name: table[column] for name, column in about.items() if column is not None}
    return AttributeClassifier.fit(codes, labels, names, **fit)
