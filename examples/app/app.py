"""A web page to try a model: reconstruct, edit, interpolate, vary and sample pictures, and find similar ones.

    python examples/app/app.py                       # the bundled models, on http://127.0.0.1:7860
    python examples/app/app.py --model runs/mine/pipeline --codes codes_of_my_pictures

On a Hugging Face Space the variables MODEL and CODES replace the two options.
"""

import argparse
import functools
import os
import re
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from diffusers.utils import logging
from parts import PICTURES, Pipeline, animated, connect, picture_input, picture_output, read, with_pipeline
from PIL import Image

from diffae_hub import list_models, load_codes, nearest_codes
from diffae_hub.codes import check_encoder, codes_summary, encode_images, encoded_rows, transform_of_codes
from diffae_hub.devices import load_pipeline
from diffae_hub.images import film_strip, image_grid
from diffae_hub.metrics.psnr import peak_signal_to_noise_ratio
from diffae_hub.schedulers.compatibility import SOLVERS

INTRO = """# Diffusion autoencoder
A model turns a picture into a **code** and a **noise** image, and the two back into the picture.
Choose a model and a picture, then a tab."""
MAX_FILE_SIZE = "20mb"  # `read_image` limits the number of pixels
MAX_WAITING = 16  # the next one is told that the queue is full

load_once = functools.lru_cache(maxsize=2)(load_pipeline)
codes_once = functools.lru_cache(maxsize=1)(load_codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("MODEL"), help="pipeline folder or Hub id to begin with")
    parser.add_argument("--codes", default=os.environ.get("CODES"), help="folder of `diffae-hub encode` for neighbours")
    parser.add_argument("--port", type=int, help="(default: 7860, or the next one that is free)")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    try:
        app = build(arguments.model or "noto-emoji-64", arguments.codes)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no downloaded fonts
    css = ".result [data-testid=block-label] { position: static !important; }"  # a label above its picture, not on it
    theme.set(block_info_text_color="*neutral_600", block_label_text_color="*neutral_700")  # easier to read
    try:
        app.queue(max_size=MAX_WAITING).launch(
            server_port=arguments.port,
            max_file_size=MAX_FILE_SIZE,
            theme=theme,
            css=css,
            ssr_mode=False,
            footer_links=["gradio", "settings"],
        )
    except OSError as error:  # the port is taken
        parser.error(str(error))


def build(first_model: str, codes: str | None = None) -> gr.Blocks:
    """Builds the page: what all tabs share on the left (on a phone: above), the tabs on the right."""
    models = list(dict.fromkeys([first_model, *list_models()]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load_once(first_model, device)
    if codes:
        codes_summary(codes)  # fails now rather than in a visitor's page

    def choose(name: str | None) -> str:
        is_hub_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", name or "") and not Path(name).exists()
        if name not in models and not is_hub_id:
            raise ValueError(f"Model must be one of {', '.join(models)} or a Hub id, owner/name, got {name!r}")
        load_once(name, device)
        return name

    with gr.Blocks(title="Diffusion autoencoder", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        gr.Markdown(INTRO)
        loaded = gr.State(first_model)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                hint = "From the list, or a Hub id, owner/name"
                model = gr.Dropdown(models, value=first_model, allow_custom_value=True, label="Model", info=hint)
                picture = picture_input("Picture", PICTURES[0])
                with gr.Accordion("Settings", open=False):
                    steps = gr.Slider(
                        1, 100, 10, step=1, interactive=True, label="Steps", info="More are slower, and mostly better"
                    )
                    hint = "auto: ddim, which keeps a picture's details; dpm for random noise"
                    choices = ["auto", *SOLVERS]
                    solver = gr.Radio(choices, value="auto", label="Solver", info=hint, interactive=True)
                    seed = gr.Number(
                        0, precision=0, minimum=0, maximum=2**32, label="Seed of random noise", interactive=True
                    )
            with gr.Column(scale=2, min_width=300):

                @gr.render(inputs=loaded)
                def tabs(name: str) -> None:
                    pipeline, inputs = load_once(name, device), [steps, solver, seed, picture]
                    with gr.Tabs():
                        for tab in (reconstruct_tab, edit_tab, interpolate_tab, variations_tab, sample_tab):
                            tab(pipeline, inputs)
                        if codes:
                            neighbours_tab(pipeline, inputs, codes)

        connect(model.change, choose, [model], loaded)
    return app


# ---- one function per tab --------------------------------------------------------------------------------------------
# Each has a function of a pipeline, options of its methods, the path of the picture, and its own inputs.


def reconstruct_tab(pipeline: Pipeline, inputs: list[gr.Component]) -> None:
    with gr.Tab("Reconstruct"):
        gr.Markdown(
            "Decoded from the **code alone**, with random noise; and from the code and the picture's own noise."
        )
        button = gr.Button("Reconstruct", variant="primary")
        with gr.Row():
            outputs = [picture_output(name) for name in ("Original", "Code alone", "Round trip", "Difference × 5")]
        figures = gr.Markdown()

    def decoded(mode: str, pipe: Pipeline, options: dict[str, Any], path: str | None) -> torch.Tensor:
        return pipe(read(path), mode, **options).images.cpu()

    from_code = with_pipeline(functools.partial(decoded, "stochastic"), pipeline, random_noise=True)
    there_and_back = with_pipeline(functools.partial(decoded, "inversion"), pipeline)

    def reconstruct(*values: Any) -> list[Any]:
        original = pipeline.image_processor.preprocess(read(values[-1])) / 2 + 0.5
        alone, round_trip = from_code(*values), there_and_back(*values)
        difference = (5 * (round_trip - original).abs()).clamp(max=1)
        psnr = [float(peak_signal_to_noise_ratio(made, original)) for made in (alone, round_trip)]
        pictures = [image_grid(made, 1) for made in (original, alone, round_trip, difference)]
        return [*pictures, "PSNR: code alone {:.1f} dB, round trip {:.1f} dB".format(*psnr)]

    connect(button.click, reconstruct, inputs, [*outputs, figures])


def edit_tab(pipeline: Pipeline, inputs: list[gr.Component]) -> None:
    with gr.Tab("Edit"):
        if pipeline.attribute_classifier is None:
            gr.Markdown("This model has no attributes to edit. `diffae-hub fit-attributes` gives it some.")
            return
        config = pipeline.attribute_classifier.config
        names = list(config.attribute_names or range(config.num_attributes))
        gr.Markdown(
            "Move a slider: the strip leads from the picture to the edited one. Strengths around 0.3 are usual."
        )
        button = gr.Button("Edit", variant="primary")
        strip = picture_output("From the picture to the edited one")
        with gr.Row():
            sliders = [
                gr.Slider(-1, 1, 0, step=0.05, interactive=True, label=str(name), min_width=220) for name in names
            ]

    def edit(pipe: Pipeline, options: dict[str, Any], path: str | None, *strengths: float) -> Image.Image:
        edits = {name: [part / 4 * most for part in range(5)] for name, most in zip(names, strengths, strict=True)}
        return film_strip(pipe.edit(read(path), edits, **options).images.cpu())

    for trigger in (button.click, *(slider.change for slider in sliders)):
        connect(trigger, with_pipeline(edit, pipeline), [*inputs, *sliders], strip)


def interpolate_tab(pipeline: Pipeline, inputs: list[gr.Component]) -> None:
    with gr.Tab("Interpolate"):
        gr.Markdown("From the picture to a second one: codes and noises in between are decoded.")
        with gr.Row():
            with gr.Column(min_width=220):
                second = picture_input("Second picture", PICTURES[1])
            with gr.Column(min_width=220):
                number = gr.Slider(3, 24, 8, step=1, interactive=True, label="Frames")
                button = gr.Button("Interpolate", variant="primary")
                animation = gr.HTML(label="Animation", show_label=True, container=True)
        grid = picture_output("All frames")

    def interpolate(pipe: Pipeline, options: dict[str, Any], path: str | None, other: str | None, count: int) -> Any:
        frames = pipe.interpolate([read(path), read(other)], count, **options).images.cpu()
        return image_grid(frames, 4), animated(frames)

    connect(button.click, with_pipeline(interpolate, pipeline), [*inputs, second, number], [grid, animation])


def variations_tab(pipeline: Pipeline, inputs: list[gr.Component]) -> None:
    with gr.Tab("Variations"):
        gr.Markdown("One code, several random noises. Bright places of the **spread** are what the code leaves open.")
        number = gr.Slider(2, 32, 8, step=1, interactive=True, label="How many")
        button = gr.Button("Vary", variant="primary")
        with gr.Row():
            outputs = [picture_output("Variations", scale=2, min_width=300), picture_output("Spread × 5")]

    def vary(pipe: Pipeline, options: dict[str, Any], path: str | None, count: int) -> list[Image.Image]:
        made = pipe.variations(read(path), count, **options)
        return [image_grid(made.images.cpu(), 4), image_grid([(5 * made.spread.cpu()).clamp(max=1)], 1)]

    connect(button.click, with_pipeline(vary, pipeline, random_noise=True), [*inputs, number], outputs)


def sample_tab(pipeline: Pipeline, inputs: list[gr.Component]) -> None:
    with gr.Tab("Sample"):
        if pipeline.latent_code_model is None:
            gr.Markdown("This model has no latent code model to draw new codes. `diffae-hub train-latent` trains one.")
            return
        gr.Markdown("New pictures: the latent code model draws codes, which are decoded.")
        number = gr.Slider(1, 32, 8, step=1, interactive=True, label="How many")
        button = gr.Button("Sample", variant="primary")
        grid = picture_output("New pictures")

    def sample(pipe: Pipeline, options: dict[str, Any], path: str | None, count: int) -> Image.Image:
        return image_grid(pipe.sample(count, **options).images.cpu(), 4)

    connect(button.click, with_pipeline(sample, pipeline, random_noise=True), [*inputs, number], grid)


def neighbours_tab(pipeline: Pipeline, inputs: list[gr.Component], codes: str) -> None:
    with gr.Tab("Neighbours"):
        summary = codes_summary(codes)
        try:
            check_encoder(pipeline, summary)
        except ValueError:
            gr.Markdown("The stored codes are those of another model. Choose the one that made them.")
            return
        gr.Markdown(f"The pictures with the nearest codes, among {summary['count']:,}.")
        number = gr.Slider(
            1, min(24, summary["count"]), min(8, summary["count"]), step=1, interactive=True, label="How many"
        )
        button = gr.Button("Search", variant="primary")
        gallery = gr.Gallery(
            label="Nearest first, with distances",
            columns=3,
            height="auto",
            format="png",
            interactive=False,
            elem_classes="result",
        )

    def search(pipe: Pipeline, options: dict[str, Any], path: str | None, count: int) -> list[tuple[Image.Image, str]]:
        read(path)  # says so if there is none
        stored, transform = codes_once(codes), transform_of_codes(pipe, summary)
        query = encode_images(pipe, transform({"path": path, "bytes": None})[None]).cpu().numpy()
        distances, rows = nearest_codes(stored["latent_code"], query, count)
        data = encoded_rows(summary)
        pictures = [image_grid([transform(data[int(stored["index"][row])]) / 2 + 0.5], 1) for row in rows[0]]
        return [(image, f"{distance:.3f}") for image, distance in zip(pictures, distances[0], strict=True)]

    connect(button.click, with_pipeline(search, pipeline), [*inputs, number], gallery)


if __name__ == "__main__":
    main()
