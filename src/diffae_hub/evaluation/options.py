"""What an evaluation is asked for, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..pipelines.pipeline_diffusion_autoencoder import MODES
from ..training.presets import CROPS

IMAGE_METRICS = ("lpips_alex", "lpips_vgg")
FOLDER_METRICS = ("fid_torch_fidelity", "fid_clean_fid", "fd_vgg16", "fd_dinov2")
DEFAULT_METRICS = ("lpips_alex", "fid_torch_fidelity", "fid_clean_fid")
PROBES = ("multiclass", "multilabel", "regression")
BASELINES = ("mean_image", "pca", "jpeg")
PATH_LENGTH = "perceptual_path_length"
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate and how.

    Args:
        model: Bundled name, pipeline folder or Hub id.
        dataset: Folder of images, parquet, `datasets` folder or Hub data set.
        output: The evaluation's folder.
        split: Split of the data set.
        image_column: Its column of images.
        crop: How an image becomes square; see [`ImageTransform`].
        modes: "stochastic", "inversion" or both.
        num_inference_steps: Updates of decoding, and of inversion; the paper uses 50.
        num_images: The first so many images; None for all.
        metrics: Beyond PSNR and SSIM: of `IMAGE_METRICS` and `FOLDER_METRICS`.
        require: Metrics without whose weights the evaluation fails.
        baselines: Of `BASELINES`; "mean_image" and "pca" are fitted on the training data.
        train_dataset: Training data, for baselines and probes.
        train_split: Its split.
        baseline_images: At most so many training images for the baselines.
        compare: Another model, reconstructed and measured beside.
        path_length_pairs: Pairs of images for the perceptual path length (LPIPS-VGG); 0 leaves it out.
        path_length_intervals: N, its number of sub-intervals; the paper uses 100.
        probe: "multiclass", "multilabel" or "regression"; None leaves it out.
        label_columns: Columns of the labels; several make up a multi-label or multi-target probe.
        dinov2_model: Hub id or folder of the network of "fd_dinov2".
        seed: Of the noise, the pairs and the bootstrap.
        batch_size: Images at a time.
        device: Torch device; None takes the accelerator if there is one.
        dtype: "float32", "bfloat16" or "float16", of the networks.

    Raises:
        ValueError: Names the option.
    """

    model: str
    dataset: str
    output: Path
    split: str = "test"
    image_column: str = "image"
    crop: str = "center"
    modes: tuple[str, ...] = MODES
    num_inference_steps: int = 50
    num_images: int | None = None
    metrics: tuple[str, ...] = DEFAULT_METRICS
    require: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    train_dataset: str | None = None
    train_split: str = "train"
    baseline_images: int = 50_000
    compare: str | None = None
    path_length_pairs: int = 0
    path_length_intervals: int = 100
    probe: str | None = None
    label_columns: tuple[str, ...] = ()
    dinov2_model: str = "facebook/dinov2-large"
    seed: int = 0
    batch_size: int = 50
    device: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, values, allowed in (
            ("modes", self.modes, MODES),
            ("metrics", self.metrics, IMAGE_METRICS + FOLDER_METRICS),
            ("require", self.require, (*IMAGE_METRICS, *FOLDER_METRICS, PATH_LENGTH)),
            ("baselines", self.baselines, BASELINES),
            ("probe", (self.probe,), (*PROBES, None)),
            ("crop", (self.crop,), CROPS),
            ("dtype", (self.dtype,), ("float32", "bfloat16", "float16")),
        ):
            for value in values:
                if value not in allowed:
                    raise ValueError(f"{name} must be among {', '.join(map(str, allowed))}, got {value!r}")
        measured = self.metrics + (PATH_LENGTH,) * bool(self.path_length_pairs)
        for metric in self.require:
            if metric not in measured:
                option = "path_length_pairs" if metric == PATH_LENGTH else "metrics"
                raise ValueError(f"require must be among what is measured; {metric} is not: add it by {option}")
        for name, minimum in (
            ("num_inference_steps", 1),
            ("path_length_pairs", 0),
            ("path_length_intervals", 1),
            ("baseline_images", 1),
            ("batch_size", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        if self.seed > _LARGEST_SEED:
            raise ValueError(f"seed must be at most {_LARGEST_SEED}, got {self.seed}")
        if self.num_images is not None and self.num_images < 2:
            raise ValueError(f"num_images must be at least 2, got {self.num_images}")
        if not self.modes:
            raise ValueError(f"modes must hold at least one of {', '.join(MODES)}, got none")
        fitted = [name for name in self.baselines if name != "jpeg"] + ([self.probe] if self.probe else [])
        if fitted and self.train_dataset is None:
            raise ValueError(f"train_dataset must be given for {', '.join(fitted)}, got none")
        if self.probe and not self.label_columns:
            raise ValueError("label_columns must be given for a probe, got none")
        if self.probe == "multiclass" and len(self.label_columns) > 1:
            raise ValueError(f"label_columns must be one column for multiclass, got {', '.join(self.label_columns)}")
