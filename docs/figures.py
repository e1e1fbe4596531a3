"""Draws the pictures of the documentation into docs/images.

    python docs/figures.py                                    the noise schedules, and measured figures if there are any
    python docs/figures.py --model cifar10-32-small           also what that model's codes hold, and its images by steps

Three of them are the paper's figures 1, 9 and 10, computed by `diffae_hub.schedulers.noise_schedules`. Needs the extra
`eval`.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from diffae_hub import DiffusionAutoencoderPipeline, VPDDIMScheduler, VPDPMSolverMultistepScheduler
from diffae_hub.schedulers.noise_schedules import alpha_sigma

matplotlib.use("Agg")
matplotlib.rcParams |= {"svg.hashsalt": "diffae_hub", "svg.fonttype": "none", "font.size": 9, "axes.grid": True}
import matplotlib.pyplot as plt  # noqa: E402 - after the backend is chosen

IMAGES = Path(__file__).parent / "images"
STEPS = Path(__file__).parents[1] / "benchmarks" / "steps.json"

# The colours are the paper's.
LINEAR_BETA = ("linear-β", "linear_beta", 1.0, "black")
SHIFTED_COSINE = {
    scaling_factor: (f"SC-{scaling_factor}", "shifted_cosine", float(scaling_factor), colour)
    for scaling_factor, colour in ((1, "red"), (2, "green"), (4, "blue"), (8, "purple"), (16, "orange"))
}
INVERTED = ("inverted", "inverted", 1.0, "brown")
Schedule = tuple[str, str, float, str]


def draw_schedules(schedules: list[Schedule], file: Path, quantity: str = "alpha") -> None:
    """Draws curves of the schedules over t.

    Args:
        schedules: (title, name, S, colour) of each.
        file: SVG to write.
        quantity: "alpha", "alpha_bar" (alpha^2) or "log_snr" (ln of alpha^2 / sigma^2).
    """
    titles = {"alpha": "$\\alpha_t$", "alpha_bar": "$\\alpha_t^2$", "log_snr": "log-SNR"}
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    if quantity == "log_snr":
        t = t[2:-2]  # the log-SNR is infinite at the ends
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for title, name, scaling_factor, colour in schedules:
        alpha, sigma = alpha_sigma(name, t, scaling_factor)
        values = {"alpha": alpha, "alpha_bar": alpha**2, "log_snr": 2 * (alpha.log() - sigma.log())}[quantity]
        axes.plot(t, values, color=colour, label=title)
    axes.set(xlabel="t, from the image (0) to pure noise (1)", ylabel=titles[quantity], xlim=(0, 1))
    axes.legend()
    save(figure, file)


def draw_steps(measured: Path, file: Path) -> None:
    """Draws figures against the number of evaluations, a panel per metric and a curve per solver and reconstruction."""
    rows = json.loads(measured.read_text())["rows"]
    metrics = [name for name in ("psnr_db", "lpips", "fd_vgg16", "distance_db") if any(name in row for row in rows)]
    figure, panels = plt.subplots(1, len(metrics), figsize=(3.5 * len(metrics), 3), layout="constrained", squeeze=False)
    for metric, axes in zip(metrics, panels[0], strict=True):
        for mode, solver in sorted({(row["mode"], row["solver"]) for row in rows}):
            points = sorted(
                (row["evaluations"], row[metric])
                for row in rows
                if (row["mode"], row["solver"]) == (mode, solver) and metric in row
            )
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=f"{mode}, {solver}")
        axes.set(xlabel="network evaluations", ylabel=metric, xscale="log")
    panels[0][0].legend()
    save(figure, file)


def load_pieces(pipe: DiffusionAutoencoderPipeline) -> tuple[list[Image.Image], torch.Tensor]:
    """Cuts pieces of two photographs at the model's size. Returns them also as (B, H, W, C) in [0, 1]."""
    size, pieces = pipe.decoder.config.sample_size, []
    for name, places in (("flower.jpg", ((230, 90), (150, 160), (40, 0))), ("china.jpg", ((260, 150), (0, 180)))):
        photograph = Image.fromarray(load_sample_image(name))
        pieces += [photograph.crop((x, y, x + 240, y + 240)).resize((size, size), Image.BOX) for x, y in places]
    original = torch.stack([torch.frombuffer(bytearray(piece.tobytes()), dtype=torch.uint8) for piece in pieces])
    return pieces, original.reshape(-1, size, size, 3) / 255


def draw_codes(pipe: DiffusionAutoencoderPipeline, file: Path, num_draws: int = 8) -> None:
    """Draws what z and x_T of a model hold: images from z alone, from both, and the spread over noises."""
    pieces, original = load_pieces(pipe)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([torch.from_numpy(pipe(pieces, generator=generator, output_type="np").images)
                         for _ in range(num_draws)])  # fmt: skip
    round_trip = torch.from_numpy(pipe(pieces, mode="inversion", output_type="np").images)
    rows = {
        "original": original,
        "z and one noise": draws[0],
        "z and another noise": draws[1],
        "spread over noises, x 5": 5 * draws.std(dim=0),
        "z and its own x_T": round_trip,
    }
    draw_rows(rows, file)


def draw_steps_pictures(pipe: DiffusionAutoencoderPipeline, file: Path) -> None:
    """Draws a row per number of steps, with both solvers side by side, from one noise."""
    pieces, original = load_pieces(pipe)
    code = pipe.encode(pieces)
    noise = torch.randn(len(pieces), *original.shape[:0:-1], generator=torch.Generator().manual_seed(0))
    rows = {"original": torch.cat([original, original])}
    for steps in (5, 8, 10, 15, 20, 50):
        images = []
        for scheduler_class in (VPDDIMScheduler, VPDPMSolverMultistepScheduler):
            pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
            output = pipe.decode(code, noise, num_inference_steps=steps, output_type="np")
            images.append(torch.from_numpy(output.images))
        rows[f"{steps} steps"] = torch.cat(images)
    draw_rows(rows, file)


def draw_rows(rows: dict[str, torch.Tensor], file: Path) -> None:
    """Draws images (B, H, W, C) in [0, 1], a row for each title."""
    count = len(next(iter(rows.values())))
    figure, panels = plt.subplots(len(rows), count, figsize=(1 + count, 0.94 * len(rows)), layout="constrained")
    for (title, images), line in zip(rows.items(), panels, strict=True):
        for image, axes in zip(images, line, strict=True):
            axes.imshow(image.clamp(0, 1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, rotation=0, ha="right", va="center")
    save(figure, file)


def save(figure: plt.Figure, file: Path) -> None:
    """Writes a figure; the same figure gives the same file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=120)
    plt.close(figure)


def main() -> None:
    """Draws everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="also draw this model's images")
    parser.add_argument("--output", type=Path, default=IMAGES, metavar="DIR", help="(default: %(default)s)")
    arguments = parser.parse_args()
    output, shifted = arguments.output, SHIFTED_COSINE
    draw_schedules([LINEAR_BETA, *shifted.values()], output / "schedules.svg")
    draw_schedules([INVERTED, shifted[1]], output / "inverted.svg", "alpha_bar")
    draw_schedules([LINEAR_BETA, shifted[1], shifted[4], INVERTED], output / "inverted_among_others.svg")
    quarter = ("SC-1/4", "shifted_cosine", 0.25, "grey")
    draw_schedules([quarter, shifted[1], shifted[4]], output / "direction_of_s.svg", "log_snr")
    if STEPS.is_file():
        draw_steps(STEPS, output / "steps.svg")
    if arguments.model:
        pipe = DiffusionAutoencoderPipeline.from_pretrained(arguments.model)
        pipe.set_progress_bar_config(disable=True)
        draw_codes(pipe, output / "codes.png")
        draw_steps_pictures(pipe, output / "steps.png")


if __name__ == "__main__":
    main()
