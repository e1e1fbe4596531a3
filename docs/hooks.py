"""Generated parts of the site: tables of measured figures, the list of public names, the models' pages.

MkDocs calls `on_files` and `on_page_markdown`. In a page, `{{ model_zoo }}`, `{{ steps }}` or `{{ api }}` marks the
place of a part. No figure in a table is typed by hand: all come from the JSON files that evaluations and benchmarks
write.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import diffae_hub

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
STEPS = ROOT / "benchmarks" / "steps.json"

# Column of the zoo -> (metric, how the image was reconstructed) in a card's results.
ZOO_COLUMNS = {
    "from the code alone: PSNR ↑": ("PSNR ↑", "stochastic"),
    "LPIPS ↓": ("LPIPS ↓", "stochastic"),
    "round trip: PSNR ↑": ("PSNR ↑", "inversion"),
    "probe accuracy ↑": ("accuracy ↑", "latent code"),
}
STEPS_COLUMNS = {
    "mode": "reconstruction",
    "solver": "solver",
    "evaluations": "evaluations",
    "num_images": "images",
    "psnr_db": "PSNR (dB) ↑",
    "lpips": "LPIPS ↓",
    "fd_vgg16": "FD-VGG16 ↓",
    "high_pass_energy": "high-pass energy, share of the original's",
    "distance_db": "PSNR to the converged image (dB) ↑",
}
API_GROUPS = {"pipelines": "Pipeline", "models": "Networks", "schedulers": "Schedulers", "": "Functions"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the models' pages and pictures to the site, below `model_cards/`."""
    for path in sorted([*CARDS.rglob("*.md"), *CARDS.rglob("*.png")]):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the generated parts into a page."""
    parts = {"model_zoo": model_zoo, "steps": steps, "api": api}
    for name, part in parts.items():
        if f"{{{{ {name} }}}}" in markdown:
            markdown = markdown.replace(f"{{{{ {name} }}}}", part())
    return markdown


def model_zoo(cards: Path = CARDS) -> str:
    """Table with a row per model, from the JSON documents beside the models' pages."""
    rows = []
    for path in sorted(cards.glob("*.json")):
        card = json.loads(path.read_text())
        results = {(result["metric"], result["mode"]): result for result in card["results"]}
        rows.append(
            [
                f"[`{path.stem}`](model_cards/{path.stem}.md)",
                f"{card['experiment']['decoder']['sample_size']} px",
                f"{sum(card['parameters'].values()) / 1e6:.1f}M",
                card["dataset"]["name"],
                card.get("license") or "not stated",
                f"{card['training']['examples']:,}",
                *(_figure(results.get(key)) for key in ZOO_COLUMNS.values()),
            ]
        )
    return _table(["model", "image", "parameters", "trained on", "licence", "examples", *ZOO_COLUMNS], rows)


def steps(measured: Path = STEPS) -> str:
    """Table of figures by number of steps, or a note that nothing was measured."""
    if not measured.is_file():
        return f"*Not measured yet: `{measured.relative_to(ROOT)}` is not there.*"
    document = json.loads(measured.read_text())
    columns = [name for name in STEPS_COLUMNS if any(name in row for row in document["rows"])]
    rows = [[_number(row.get(name)) for name in columns] for row in document["rows"]]
    heading = f"Model `{document['model']}`, {document['dataset']}, on {document['hardware']}:"
    command = f"```sh\n{document['command']}\n```"
    picture = "![Figures against evaluations](../images/steps.svg)"
    return "\n\n".join([heading, _table([STEPS_COLUMNS[name] for name in columns], rows), picture, command])


def api() -> str:
    """Lists every public name of this package, by the folder that it is defined in."""
    groups: dict[str, list[str]] = {folder: [] for folder in API_GROUPS}
    for name in sorted(diffae_hub.__all__):
        package, _, defined_in = diffae_hub._LAZY.get(name, "").partition(".")
        if package == "diffae_hub":  # two names are diffusers' own
            folder = defined_in.split(".")[0]
            groups[folder if folder in API_GROUPS else ""].append(name)
    sections = []
    for folder, names in groups.items():
        if names:
            sections += [f"## {API_GROUPS[folder]}", *(f"::: diffae_hub.{name}" for name in names)]
    return "\n\n".join(sections)


def _figure(result: Mapping[str, Any] | None) -> str:
    return "" if result is None else f"{_number(result['value'])} {result.get('unit', '')}".strip()


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
