"""`diffae-hub evaluate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .shared import add_data_arguments, silence_libraries

_METRICS = ("lpips_alex", "lpips_vgg", "fid_torch_fidelity", "fid_clean_fid", "fd_vgg16", "fd_dinov2")


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diffae-hub evaluate`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """Reconstruct a data set and measure it by the paper's protocol.

  diffae-hub evaluate cifar10-32-small --dataset photos/ --num-images 100 --output evaluation
  diffae-hub evaluate MODEL --dataset test.parquet --train-dataset train.parquet --baselines mean_image pca jpeg \\
      --path-length-pairs 200 --probe multiclass --label-columns label --output evaluation
  accelerate launch -m diffae_hub.cli evaluate MODEL ...          shares the sampling between several devices

OUTPUT/report.md, report.json and pictures are written. Given again, the command continues where it stopped."""
    parser.add_argument("model", metavar="MODEL", help="bundled model, pipeline folder or Hub id")
    parser.add_argument("--dataset", required=True, help="folder of images, parquet, `datasets` folder or Hub data set")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--mode", choices=("stochastic", "inversion", "both"), default="both")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps, 1 to 1000 (default: %(default)s)")
    parser.add_argument("--num-images", type=int, help="the first so many (default: all; the paper uses 50,000)")
    parser.add_argument(
        "--metrics",
        nargs="*",
        choices=_METRICS,
        default=["lpips_alex", "fid_torch_fidelity", "fid_clean_fid"],
        metavar="METRIC",
        help=f"beyond PSNR and SSIM: {', '.join(_METRICS)} (default: %(default)s); where a metric's weights cannot be "
        "had, it is reported as n/a",
    )
    parser.add_argument("--require", nargs="*", default=[], metavar="METRIC", help="fail if one of these is n/a")
    parser.add_argument(
        "--baselines",
        nargs="*",
        choices=("mean_image", "pca", "jpeg"),
        default=[],
        metavar="BASELINE",
        help="mean_image, pca (both need --train-dataset), jpeg",
    )
    parser.add_argument("--train-dataset", help="training data, for baselines and probes")
    parser.add_argument("--train-split", default="train", help="(default: %(default)s)")
    parser.add_argument("--baseline-images", type=int, default=50_000, help="training images of the baselines, at most")
    parser.add_argument("--compare", metavar="MODEL", help="another model, measured beside")
    parser.add_argument("--path-length-pairs", type=int, default=0, help="pairs for the PPL; the paper uses 200")
    parser.add_argument("--path-length-intervals", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--probe", choices=("multiclass", "multilabel", "regression"), help="of the latent codes")
    parser.add_argument("--label-columns", nargs="*", default=[], metavar="COLUMN", help="labels of the probe")
    parser.add_argument("--dinov2-model", default="facebook/dinov2-large", help="(default: %(default)s)")
    parser.add_argument("--paper-dataset", help="the paper's data set to print beside (default: by image size)")
    parser.add_argument("--budget", help="how the model was trained, in words, for the report")
    parser.add_argument("--data-note", help="what is to be known about the data, in words, for the report")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add_data_arguments(parser)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Evaluates, prints and saves the report."""
    from ..devices import find_device, join_processes, load_for_evaluation
    from ..evaluation.evaluate import evaluate
    from ..evaluation.evaluation_folder import EvaluationFolder
    from ..evaluation.options import EvaluationOptions
    from ..evaluation.paper_tables import TABLE_4
    from ..evaluation.report import save_pictures, write_report
    from ..metrics.weights import WeightsUnavailable

    silence_libraries()
    if arguments.paper_dataset is not None and arguments.paper_dataset not in TABLE_4:
        raise ValueError(f"--paper-dataset must be one of {', '.join(TABLE_4)}, got {arguments.paper_dataset!r}")
    options = EvaluationOptions(
        model=arguments.model,
        dataset=arguments.dataset,
        output=arguments.output,
        split=arguments.split,
        image_column=arguments.image_column,
        crop=arguments.crop,
        modes=("stochastic", "inversion") if arguments.mode == "both" else (arguments.mode,),
        num_inference_steps=arguments.steps,
        num_images=arguments.num_images,
        metrics=tuple(arguments.metrics),
        require=tuple(arguments.require),
        baselines=tuple(arguments.baselines),
        train_dataset=arguments.train_dataset,
        train_split=arguments.train_split,
        baseline_images=arguments.baseline_images,
        compare=arguments.compare,
        path_length_pairs=arguments.path_length_pairs,
        path_length_intervals=arguments.path_length_intervals,
        probe=arguments.probe,
        label_columns=tuple(arguments.label_columns),
        dinov2_model=arguments.dinov2_model,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    quiet = arguments.json or not sys.stderr.isatty()
    try:
        figures = evaluate(options, show_progress=not quiet)
    except WeightsUnavailable as error:
        raise ValueError(str(error)) from error
    if not figures:  # another process reports
        return 0
    device = find_device(arguments.device, join_processes(arguments.device))
    figures["pictures"] = save_pictures(
        EvaluationFolder(arguments.output, json.loads((arguments.output / "settings.json").read_text())),
        load_for_evaluation(arguments.model, device, arguments.dtype),
        figures,
    )
    figures |= {"command": arguments.command_line, "budget": arguments.budget, "data_note": arguments.data_note}
    page = write_report(arguments.output, figures, arguments.paper_dataset)
    print(json.dumps(figures, indent=2) if arguments.json else page)
    return 0
