"""What an evaluation is asked for: the flags of `diffae-hub evaluate`, and options.json in the evaluation's folder."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from ..files import read_json, write_text

PATH_LENGTH = "perceptual_path_length"
_FILE = "options.json"
_MODES = {"stochastic": ("stochastic",), "inversion": ("inversion",), "both": ("stochastic", "inversion")}

_ImageMetric = Literal["lpips_alex", "lpips_vgg"]
_FolderMetric = Literal["fid_torch_fidelity", "fid_clean_fid", "fd_vgg16", "fd_dinov2"]
IMAGE_METRICS, FOLDER_METRICS = typing.get_args(_ImageMetric), typing.get_args(_FolderMetric)
Metric = Literal[_ImageMetric, _FolderMetric]


def _option(default: Any, help: str, group: str | None = None, positional: bool = False) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "group": group, "positional": positional})


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate and how; each field's help is in its metadata."""

    model: str = _option(MISSING, "bundled model, pipeline folder or Hub id", positional=True)
    dataset: str = _option(MISSING, "folder of images, parquet, `datasets` folder or Hub data set")
    output: Path = _option(MISSING, "folder of the evaluation, new or to be continued")
    mode: Literal["stochastic", "inversion", "both"] = _option("both", "which reconstructions")
    solver: Literal["ddim", "dpm"] = _option("ddim", "of decoding; the paper's is ddim. Inversion is plain DDIM's")
    steps: int = _option(50, "of decoding, and of inversion")
    num_images: int | None = _option(None, "the first so many, not all; the paper uses 50,000")
    seed: int = _option(0, "of the noise, the pairs and the bootstrap")
    batch_size: int = _option(50, "images at a time")
    device: str | None = _option(None, "cpu, cuda ... (default: the accelerator if there is one)")
    dtype: Literal["float32", "bfloat16", "float16"] = _option("float32", "of the networks")

    split: str = _option("test", "split of the data set", "data")
    image_column: str = _option("image", "its column of images", "data")
    crop: Literal["center", "d2c"] = _option("center", "d2c is the usual crop of CelebA", "data")
    train_dataset: str | None = _option(None, "training data, for baselines and probes", "data")
    train_split: str = _option("train", "split of the training data", "data")

    metrics: tuple[Metric, ...] = _option(
        ("lpips_alex", "fid_torch_fidelity", "fid_clean_fid"),
        "beyond PSNR, SSIM and sharpness; n/a where a metric's weights cannot be had",
        "measures",
    )
    require: tuple[Literal[Metric, "perceptual_path_length"], ...] = _option(
        (), "fail if the weights of these cannot be had", "measures"
    )
    baselines: tuple[Literal["mean_image", "pca", "jpeg"], ...] = _option(
        (), "reconstructions without a network; mean_image and pca are fitted on the training data", "measures"
    )
    baseline_images: int = _option(50_000, "training images of the baselines, at most", "measures")
    compare: str | None = _option(None, "another model, measured beside", "measures")
    path_length_pairs: int = _option(
        0, "pairs of images for the perceptual path length; the paper uses 200", "measures"
    )
    path_length_intervals: int = _option(100, "sub-intervals of a path", "measures")
    probe: Literal["multiclass", "multilabel", "regression"] | None = _option(
        None, "linear probe of the latent codes", "measures"
    )
    label_columns: tuple[str, ...] = _option((), "labels of the probe", "measures")
    dinov2_model: str = _option("facebook/dinov2-large", "Hub id or folder of the network of fd_dinov2", "measures")

    paper_dataset: Literal["CIFAR-10 32", "CelebA 64", "Bedroom 128", "ImageNet 32"] | None = _option(
        None, "the paper's data set to print beside (default: by image size)", "report"
    )
    budget: str | None = _option(None, "how the model was trained, in words", "report")
    data_note: str | None = _option(None, "what is to be known about the data, in words", "report")

    def __post_init__(self) -> None:
        measured = self.metrics + (PATH_LENGTH,) * bool(self.path_length_pairs)
        for metric in set(self.require) - set(measured):
            option = "path_length_pairs" if metric == PATH_LENGTH else "metrics"
            raise ValueError(f"require must be among what is measured; {metric} is not: add it by {option}")
        lowest = {
            "num_images": 2,
            "batch_size": 1,
            "baseline_images": 1,
            "path_length_pairs": 0,
            "path_length_intervals": 1,
        }
        for name, least in lowest.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and {2**32 - 1}, got {self.seed}")
        fitted = [name for name in self.baselines if name != "jpeg"] + ([self.probe] if self.probe else [])
        if fitted and self.train_dataset is None:
            raise ValueError(f"train_dataset must be given for {', '.join(fitted)}, got none")
        if self.probe and not self.label_columns:
            raise ValueError("label_columns must be given for a probe, got none")
        if self.probe == "multiclass" and len(self.label_columns) > 1:
            raise ValueError(f"label_columns must be one column for multiclass, got {', '.join(self.label_columns)}")

    @property
    def modes(self) -> tuple[str, ...]:
        """The kinds of reconstruction that `mode` stands for."""
        return _MODES[self.mode]

    @property
    def methods(self) -> tuple[str, ...]:
        """All that is measured: a folder of reconstructions each."""
        compared = tuple(f"compare_{mode}" for mode in self.modes if self.compare)
        return (*self.modes, *compared, *self.baselines)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    def save(self, folder: Path) -> None:
        """Writes options.json."""
        write_text(folder / _FILE, json.dumps(self.as_json(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> EvaluationOptions:
        """Reads options.json."""
        names = [field.name for field in dataclasses.fields(cls)]
        found = read_json(folder / _FILE, names)
        values = {name: tuple(found[name]) if isinstance(found[name], list) else found[name] for name in names}
        return cls(**{**values, "output": folder})
