"""Tables 1 to 4 of the paper at a budget of your choice: the same small network and seed, trained by each method.

    python examples/replicate_tables.py --train-dataset train.parquet --test-dataset test.parquet --output runs/tables

Each row is one run of `diffae-hub train` in its own folder and one evaluation of its model. Finished rows are kept and
interrupted ones continue, so you can repeat the command until the tables are complete. `--rows` selects some rows;
`--stages report` only writes OUTPUT/tables.md from what there is. The paper's figures stand beside ours, with
Spearman's rank correlation of the two for each metric.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from scipy.stats import spearmanr

from diffae_hub.evaluation.evaluate import evaluate
from diffae_hub.evaluation.options import FOLDER_METRICS, IMAGE_METRICS, EvaluationOptions
from diffae_hub.evaluation.paper_tables import (
    HUDSON,
    METRICS,
    ONE_PHASE,
    PREECHAKUL,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_9,
    TWO_PHASE,
    TrainingMethod,
    format_papers,
)
from diffae_hub.evaluation.report import METRIC_NAMES, format_figure, markdown_table
from diffae_hub.files import write_text
from diffae_hub.flags import with_hyphens
from diffae_hub.training.run_folder import CONFIGURATION

# The network is the paper's kind, at the size of the bundled model; the last row adds the two options beyond the paper.
PAPER_NETWORK = ["--set", "encoder.latent_head=pool", "--set", "decoder.latent_spatial_size=null"]
METHODS: tuple[TrainingMethod, ...] = tuple(dict.fromkeys([PREECHAKUL, *TABLE_1, *TABLE_2, *TABLE_3, HUDSON]))
BEYOND = "v_prediction-SC4-2phase-flatten-spatial"


def row_name(method: TrainingMethod) -> str:
    """Name of a row and of its folder."""
    schedule = f"SC{method.scaling_factor}" if method.scaling_factor else method.noise_schedule
    return f"{method.prediction_type}-{schedule}-{'2' if method.two_phase else '1'}phase"


ROWS: dict[str, TrainingMethod] = {row_name(method): method for method in METHODS}
ROWS[BEYOND] = TWO_PHASE
INVERTED_ROWS = [row_name(method) for method in (PREECHAKUL, ONE_PHASE, TWO_PHASE)]  # table 4
STAGES = ("train", "evaluate", "report")
CIFAR = "CIFAR-10 32"


def training_command(name: str, options: argparse.Namespace) -> list[str]:
    """The `diffae-hub train` command of a row."""
    method = ROWS[name]
    command = [sys.executable, "-m", "diffae_hub.cli", "train"]
    command += ["--preset", options.preset, "--dataset", options.train_dataset, "--split", options.train_split]
    command += ["--output", str(options.output / name), "--resume-from-checkpoint", "latest"]
    command += ["--training-examples", str(options.training_examples), "--seed", str(options.seed)]
    command += ["--warmup-examples", str(options.training_examples // 20)]
    command += ["--prediction-type", method.prediction_type, "--noise-schedule", method.noise_schedule]
    command += ["--optimizer", "adam", "--lr-scheduler", "constant", "--loss-weighting", "none"]
    command += ["--phase1-fraction", "0.25" if method.two_phase else "0", "--keep-checkpoints", "1"]
    command += ["--mixed-precision", options.mixed_precision, "--num-workers", str(options.num_workers)]
    if method.scaling_factor:
        command += ["--scaling-factor", str(method.scaling_factor)]
    return command + ([] if name == BEYOND else PAPER_NETWORK)


def budget_of_run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Reads what a row was trained with from the configuration of its run."""
    configuration = json.loads((options.output / name / CONFIGURATION).read_text())
    run = configuration["run"]
    return {
        "preset": configuration["preset"],
        "training_examples": configuration["experiment"]["training_examples"],
        "train_dataset": run["dataset"],
        "train_split": run["split"],
        "seed": run["seed"],
        "mixed_precision": run["mixed_precision"],
    }


def is_trained(name: str, options: argparse.Namespace) -> bool:
    """Tells whether the row's pipeline is there.

    Raises:
        ValueError: If it was trained with another budget than the one asked for.
    """
    if not (options.output / name / "pipeline" / "model_index.json").is_file():
        return False
    for key, value in budget_of_run(name, options).items():
        if value != getattr(options, key):
            raise ValueError(
                f"output must be a new folder or hold rows of the same budget; {name} was trained with "
                f"{key}={value!r}, got {getattr(options, key)!r}"
            )
    return True


def evaluate_row(name: str, options: argparse.Namespace) -> None:
    """Measures a row and writes its results.json. Table 4's rows are also measured by inversion."""
    figures = evaluate(
        EvaluationOptions(
            model=str(options.output / name / "pipeline"),
            dataset=options.test_dataset,
            split=options.test_split,
            output=options.output / name / "evaluation",
            mode="both" if name in INVERTED_ROWS else "stochastic",
            steps=options.steps,
            num_images=options.num_images,
            metrics=tuple(options.metrics),
            seed=options.seed,
            device=options.device,
        )
    )
    if figures:
        figures["training"] = budget_of_run(name, options)
        write_text(options.output / name / "results.json", json.dumps(figures, indent=2) + "\n")


def read_results(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Reads the figures of the measured rows, by row."""
    return {
        name: json.loads(path.read_text())
        for name in ROWS
        if (path := options.output / name / "results.json").is_file()
    }


def render_tables(results: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> str:
    """Renders the page: tables 1 to 4 and 9, with each of our figures beside the paper's."""
    metrics = ["psnr_db", "ssim", *options.metrics]
    table_4 = TABLE_4[CIFAR]
    tables: list[tuple[str, dict[TrainingMethod, Sequence[float]], str]] = [
        ("Table 1: prediction types on SC-4", TABLE_1, "stochastic"),
        ("Table 2: prediction types and noise schedules", TABLE_2, "stochastic"),
        ("Table 3: one and two phases", TABLE_3, "stochastic"),
        ("Table 4: stochastic autoencoding", {method: modes[0] for method, modes in table_4.items()}, "stochastic"),
        ("Table 4: inversion", {method: modes[1] for method, modes in table_4.items()}, "inversion"),
        ("Table 9: Hudson et al.", {PREECHAKUL: table_4[PREECHAKUL][0], HUDSON: TABLE_9[CIFAR]}, "stochastic"),
    ]
    examples = common(results, lambda figures: figures["training"]["training_examples"], "number of examples")
    sections = [f"# Tables 1 to 4 at {examples:,} examples", introduction(results, options)]
    for title, table, mode in tables:
        measured = {method: results[row_name(method)] for method in table if row_name(method) in results}
        if len(measured) > 1:
            sections += [f"## {title}", render_table(table, measured, mode, metrics)]
    if BEYOND in results:
        beyond = {
            "paper's networks": results.get(row_name(TWO_PHASE)),
            "flatten head, spatial projection": results[BEYOND],
        }
        rows = [
            [title, *(format_figure(metric, figures["results"]["stochastic"].get(metric)) for metric in metrics)]
            for title, figures in beyond.items()
            if figures
        ]
        sections += [
            f"## Beyond the paper: {TWO_PHASE.title}",
            markdown_table(["", *(METRIC_NAMES[metric] for metric in metrics)], rows),
        ]
    return "\n\n".join(sections) + "\n"


def common(results: Mapping[str, Mapping[str, Any]], value: Callable[[Mapping[str, Any]], Any], what: str) -> Any:
    """Returns a value that all rows share; rows with different values must not stand in one table.

    Raises:
        ValueError: If they differ.
    """
    if not results:
        raise ValueError("output must hold at least one row that is measured, got none")
    values = {name: value(figures) for name, figures in results.items()}
    if len({json.dumps(entry) for entry in values.values()}) > 1:
        listed = ", ".join(f"{name} {entry!r}" for name, entry in values.items())
        raise ValueError(f"rows must have the same {what} to stand in one table, got {listed}")
    return next(iter(values.values()))


def introduction(results: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> str:
    """Describes what was done, and what the numbers can show."""
    training = common(results, lambda figures: figures["training"], "training")
    dataset = common(results, lambda figures: figures["dataset"], "test data")
    num_images = common(results, lambda figures: figures["num_images"], "number of test images")
    steps = common(results, lambda figures: figures["steps"], "number of steps")
    precision = "float32" if training["mixed_precision"] == "no" else training["mixed_precision"]
    return (
        f"Each row: preset `{training['preset']}` with the paper's kind of networks (pooled latent code, no spatial "
        f"projection), {training['training_examples']:,} examples of {Path(training['train_dataset']).name}, seed "
        f"{training['seed']}, {precision}; measured on the first {num_images:,} images of {Path(dataset).name}, "
        f"{steps} steps" + (f", on {options.hardware}" if options.hardware else "") + ". "
        "Cells: ours (the paper's). The paper trains networks of 125M parameters for 32M (tables 1, 2) or 64M examples "
        "(tables 3, 4, 9): the order of the rows can be compared, the figures cannot. FD-VGG16 is not FID; the paper's "
        "FID (tf) stands beside it for its order only, as its LPIPS does beside LPIPS-VGG. The last line is Spearman's "
        "rank correlation over the rows of the table."
    )


def render_table(
    table: Mapping[TrainingMethod, Sequence[float]],
    measured: Mapping[TrainingMethod, Mapping[str, Any]],
    mode: str,
    metrics: Sequence[str],
) -> str:
    """Renders the rows of a table: our figure and, in brackets, the paper's; then rank correlations."""

    def papers(method: TrainingMethod, metric: str) -> float:
        if metric not in METRICS:
            metric = "lpips_alex" if metric in IMAGE_METRICS else "fid_torch_fidelity"
        return table[method][METRICS.index(metric)]

    def cell(method: TrainingMethod, metric: str, figure: Mapping[str, Any] | None) -> str:
        return f"{format_figure(metric, figure, interval=False)} ({format_papers(metric, papers(method, metric))})"

    rows = []
    for method, figures in measured.items():
        ours = figures["results"][mode]
        rows.append([method.title, *(cell(method, metric, ours.get(metric)) for metric in metrics)])
    correlations = []
    for metric in metrics:
        pairs = []
        for method, figures in measured.items():
            figure = figures["results"][mode].get(metric, {})
            value = figure.get("mean", figure.get("value"))
            if value is not None:
                pairs.append((value, papers(method, metric)))
        correlation = spearmanr(*zip(*pairs, strict=True)).statistic if len(pairs) > 2 else math.nan
        correlations.append("" if math.isnan(correlation) else f"{correlation:+.2f}")
    rows.append(["*rank correlation*", *correlations])
    return markdown_table(["", *(METRIC_NAMES[metric] for metric in metrics)], rows)


def main() -> int:
    """Returns the exit code: 0, 2 for bad input, or that of a failed training."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-dataset", required=True)
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--test-dataset", required=True)
    parser.add_argument("--test-split", default="test")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--preset", default="cifar10-32-small")
    parser.add_argument("--training-examples", type=int, default=32_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--num-images", type=int, default=1_000, help="test images per row")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps")
    parser.add_argument(
        "--metrics",
        nargs="*",
        choices=IMAGE_METRICS + FOLDER_METRICS,
        default=["lpips_alex", "fid_torch_fidelity", "fid_clean_fid"],
        metavar="METRIC",
        help=f"beyond PSNR and SSIM: {', '.join(IMAGE_METRICS + FOLDER_METRICS)}",
    )
    parser.add_argument("--device", help="device of the evaluation (default: the accelerator if there is one)")
    parser.add_argument("--hardware", help="what it ran on, in words, for the report")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    options = parser.parse_args(with_hyphens(sys.argv[1:]))  # also accepts `--num_images`
    try:
        run(options)
    except subprocess.CalledProcessError as error:  # it has printed why
        return error.returncode
    except (ValueError, OSError) as error:
        print(f"replicate_tables.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Runs the stages."""
    for name in options.rows:
        if "train" in options.stages and not is_trained(name, options):
            print(f"training {name}", flush=True)
            subprocess.run(training_command(name, options), check=True)
        if "evaluate" in options.stages and is_trained(name, options):
            print(f"evaluating {name}", flush=True)
            evaluate_row(name, options)
    if "report" in options.stages:
        page = render_tables(read_results(options), options)
        write_text(options.output / "tables.md", page)
        print(page)


if __name__ == "__main__":
    sys.exit(main())
