"""The options of an evaluation: flags of `diffae-hub evaluate`, and options.json in the evaluation's folder."""

import dataclasses
import json
import typing
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from ..files import read_json, write_text
from ..flags import check_values, from_values, option

PATH_LENGTH = "perceptual_path_length"
_FILE = "options.json"

_ImageMetric = Literal["lpips_alex", "lpips_vgg"]
_FolderMetric = Literal["fid_torch_fidelity", "fid_clean_fid", "fd_vgg16", "fd_dinov2"]
IMAGE_METRICS, FOLDER_METRICS = typing.get_args(_ImageMetric), typing.get_args(_FolderMetric)
Metric = Literal[_ImageMetric, _FolderMetric]

_data, _measures, _report = (partial(option, group=group) for group in ("data", "measures", "report"))


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate and how; each field's help is in its metadata."""

    model: str = option(MISSING, "bundled model, pipeline folder or Hub id", positional=True)
    dataset: str = option(MISSING, "folder of images, parquet, `datasets` folder or Hub data set")
    output: Path = option(MISSING, "folder of the evaluation, new or to be continued")
    mode: Literal["stochastic", "inversion", "both"] = option("both", "which reconstructions")
    solver: Literal["ddim", "dpm"] = option("ddim", "solver for decoding; the paper uses ddim. Inversion is plain DDIM")
    steps: int = option(50, "steps of decoding, and of inversion")
    num_images: int | None = option(
        None,
        "only this many, the first ones (with a folder per class: of the first classes); the paper uses 50,000",
        minimum=2,
    )
    seed: int = option(0, "seed of the noise, the pairs and the bootstrap")
    batch_size: int = option(50, "images at a time", minimum=1)
    device: str | None = option(None, "cpu, cuda ... (default: the accelerator if there is one)")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "dtype of the networks")

    split: str = _data("test", "split of the data set")
    image_column: str = _data("image", "column of the images")
    crop: Literal["center", "d2c"] = _data("center", "d2c is the usual crop of CelebA")
    train_dataset: str | None = _data(None, "training data, for baselines and probes")
    train_split: str = _data("train", "split of the training data")

    metrics: tuple[Metric, ...] = _measures(
        ("lpips_alex", "fid_torch_fidelity", "fid_clean_fid"),
        "metrics besides PSNR, SSIM and sharpness; n/a if their weights are not available",
    )
    require: tuple[Literal[Metric, "perceptual_path_length"], ...] = _measures(
        (), "fail if the weights of these are not available"
    )
    baselines: tuple[Literal["mean_image", "pca", "jpeg"], ...] = _measures(
        (), "reconstructions without a network; mean_image and pca are fitted on the training data"
    )
    baseline_images: int = _measures(50_000, "training images for the baselines, at most", minimum=2)
    compare: str | None = _measures(None, "another model to measure, for comparison")
    path_length_pairs: int = _measures(0, "pairs for the perceptual path length; the paper uses 200", minimum=0)
    path_length_intervals: int = _measures(100, "sub-intervals of a path", minimum=1)
    probe: Literal["multiclass", "multilabel", "regression"] | None = _measures(None, "linear probe of the codes")
    label_columns: tuple[str, ...] = _measures((), "columns of the probe's labels")
    dinov2_model: str = _measures("facebook/dinov2-large", "Hub id or folder of the network of fd_dinov2")

    paper_dataset: Literal["CIFAR-10 32", "CelebA 64", "Bedroom 128", "ImageNet 32", "none"] | None = _report(
        None, "the paper's data set to compare with (default: by image size, 32, 64 or 128)"
    )
    budget: str | None = _report(None, "how the model was trained, in words")
    data_note: str | None = _report(None, "what readers should know about the data, in words")

    def __post_init__(self) -> None:
        check_values(self)
        measured = self.metrics + (PATH_LENGTH,) * bool(self.path_length_pairs)
        for metric in set(self.require) - set(measured):
            flag = "path_length_pairs" if metric == PATH_LENGTH else "metrics"
            raise ValueError(f"require must name metrics that are measured, got {metric}: add it to {flag}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and {2**32 - 1}, got {self.seed}")
        fitted = [name for name in self.baselines if name != "jpeg"] + ([self.probe] if self.probe else [])
        if fitted and self.train_dataset is None:
            raise ValueError(f"train_dataset must be given for {', '.join(fitted)}, got none")
        if bool(self.probe) != bool(self.label_columns):
            raise ValueError("label_columns and probe must be given together")
        for name in ("label_columns", "metrics", "baselines"):
            if len({*(values := getattr(self, name))}) < len(values):
                raise ValueError(f"{name} must differ from one another, got {', '.join(values)}")
        if self.probe == "multiclass" and len(self.label_columns) > 1:
            raise ValueError(f"label_columns must be one column for multiclass, got {', '.join(self.label_columns)}")

    @property
    def modes(self) -> tuple[str, ...]:
        """The kinds of reconstruction that `mode` stands for."""
        return ("stochastic", "inversion") if self.mode == "both" else (self.mode,)

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods that are measured; each has a folder of reconstructions."""
        compared = tuple(f"compare_{mode}" for mode in self.modes if self.compare)
        return (*self.modes, *compared, *self.baselines)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    def save(self, folder: Path) -> None:
        """Writes options.json."""
        write_text(folder / _FILE, json.dumps(self.as_json(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads options.json."""
        names = [field.name for field in dataclasses.fields(cls)]
        return from_values(cls, {**read_json(folder / _FILE, names), "output": folder})
