"""What the tabs of the app share: pictures in and out, and functions that the page may call."""

import base64
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from diffae_hub import DiffusionAutoencoderPipeline as Pipeline
from diffae_hub.images import image_grid, read_image
from diffae_hub.schedulers.compatibility import fitting_solver, with_solver

PICTURES = [
    str(Path(__file__).parent / "pictures" / f"{name}.png")
    for name in ("woman", "judge", "princess", "heart_eyes", "panda", "vampire", "boat", "car")
]
PROGRESS = gr.Progress(track_tqdm=True)  # the pipeline's own progress bars, shown in the page

# Gradio must not open the files itself: `read_image` does, which refuses bad ones. This is set on Gradio's class,
# because Gradio makes components again, and not on a class of ours, beside whose file it would write another one.
gr.Image.preprocess = lambda self, file: file and file.path


def connect(trigger: Callable[..., Any], function: Callable[..., Any], inputs: list[Any], outputs: Any) -> None:
    """Runs the function with progress in the page, one at a time for all visitors, and shows errors as text."""

    def answer(progress: gr.Progress = PROGRESS, *values: Any) -> Any:
        try:
            return function(*values)
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    trigger(answer, inputs, outputs, concurrency_id="model", concurrency_limit=1, api_visibility="private")


def with_pipeline(function: Callable[..., Any], pipeline: Pipeline, random_noise: bool = False) -> Callable[..., Any]:
    """Returns a function of the settings that calls `function` with a pipeline of the shared networks and options.

    The solver "auto" is the one that fits what is decoded: random noise or the picture's own.
    """

    def call(steps: int, solver: str, seed: int | None, *values: Any) -> Any:
        generator = torch.Generator().manual_seed(seed or 0)
        options = {"num_inference_steps": steps, "generator": generator, "output_type": "pt"}
        return function(solved(pipeline, solver, random_noise), options, *values)

    return call


def solved(pipeline: Pipeline, solver: str, random_noise: bool) -> Pipeline:
    if solver == "auto":
        solver = fitting_solver(pipeline.scheduler, random_noise)
    return Pipeline(**{**pipeline.components, "scheduler": with_solver(pipeline.scheduler, solver)})


def read(path: str | None) -> Image.Image:
    if not path:
        raise ValueError("Choose a picture first.")
    try:
        return read_image(path)
    except ValueError as error:
        raise ValueError(str(error).replace(path, Path(path).name)) from error


def animated(frames: torch.Tensor) -> str:
    """HTML with a GIF that plays forwards and backwards."""
    first, *others = (image_grid([frame], 1) for frame in [*frames, *frames.flip(0)[1:-1]])
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=100, loop=0)
    source = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/gif;base64,{source}" alt="The frames as an animation" style="max-width: 100%">'


def picture_input(label: str, value: str) -> gr.Image:
    """An input for pictures, with examples."""
    image = gr.Image(value, sources=["upload", "clipboard"], label=label, height=260, interactive=True, buttons=[])

    def check(path: str | None) -> None:
        read(path)

    connect(image.upload, check, [image], None)
    gr.Examples(PICTURES, image, label=f"Examples: {label.lower()}")
    return image


def picture_output(label: str, scale: int | None = None, min_width: int = 140) -> gr.Image:
    more = {
        "scale": scale,
        "min_width": min_width,
        "buttons": ["download"],
        "interactive": False,
        "elem_classes": "result",
    }
    return gr.Image(label=label, alt_text=label, format="png", **more)
