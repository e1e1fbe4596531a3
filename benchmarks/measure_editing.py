"""Measures edits: how far the attribute moves, how little the others move, and how much the image changes.

    python benchmarks/measure_editing.py runs/mine emoji/test.parquet --strengths 0.1 0.2 0.3 0.5 --output editing.json

The model needs an attribute classifier, the data a column of 0 and 1 per attribute. Images *without* an attribute are
edited towards it and encoded again; the pipeline's classifier reads the new codes. Per attribute and strength:

- `target`: mean change of the attribute's probability,
- `side effect`: the largest mean absolute change of another attribute; `on` names it,
- `lpips`: LPIPS-Alex of the edited image to the unedited reconstruction.

`auroc` is measured for the classifier on all images. Needs the extra `eval`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from diffae_hub import DiffusionAutoencoderPipeline, VPDPMSolverMultistepScheduler
from diffae_hub.metrics.lpips import PerceptualDistance


def main() -> None:
    """Measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="pipeline folder or name, with an attribute classifier")
    parser.add_argument("data", metavar="PARQUET")
    parser.add_argument("--attributes", nargs="+", default=[], help="default: those in the classifier and the data")
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--num-images", type=int, default=32, help="per attribute (default: %(default)s)")
    parser.add_argument("--mode", choices=("stochastic", "inversion"), default="stochastic")
    parser.add_argument("--steps", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--keep-others", action="store_true", help="edit orthogonally to all other attributes")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()

    pipe = DiffusionAutoencoderPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    if options.mode == "stochastic":
        pipe.scheduler = VPDPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    names = list(pipe.attribute_classifier.config.attribute_names)
    rows = load_dataset("parquet", data_files=options.data, split="train")
    attributes = options.attributes or [name for name in names if name in rows.column_names and sum(rows[name]) > 1]
    images = torch.cat([pipe.image_processor.preprocess(image) for image in rows["image"]]) / 2 + 0.5
    probabilities = torch.cat([read(pipe, batch) for batch in images.split(64)])
    lpips = PerceptualDistance()

    table = []
    for name in tqdm(attributes):
        labels, column = np.array(rows[name]), names.index(name)
        auroc = roc_auc_score(labels, probabilities[:, column])
        without = np.flatnonzero(labels == 0)
        chosen = np.random.default_rng(0).permutation(without)[: options.num_images]
        keep = [other for other in attributes if other != name] if options.keep_others else []
        generator = torch.Generator().manual_seed(0)
        edited = pipe.edit(images[chosen], {name: [0.0, *options.strengths]}, keep=keep, mode=options.mode,
                           num_inference_steps=options.steps, generator=generator, output_type="pt").images  # fmt: skip
        read_again = torch.cat([read(pipe, batch) for batch in edited.split(64)])
        read_again = read_again.unflatten(0, (len(chosen), -1))  # image, strength, attribute
        edited = edited.unflatten(0, (len(chosen), -1))
        others = [names.index(other) for other in attributes if other != name]
        for index, strength in enumerate(options.strengths, start=1):
            change = read_again[:, index] - read_again[:, 0]
            side = change.abs().mean(dim=0)[others]
            row = {
                "attribute": name,
                "auroc": float(auroc),
                "strength": strength,
                "target": float(change[:, column].mean()),
                "side effect": float(side.max()),
                "on": names[others[int(side.argmax())]],
                "lpips": float(lpips(edited[:, index], edited[:, 0]).mean()),
                "images": len(chosen),
            }
            table.append(row)
            print(" | ".join(f"{v:.3f}" if isinstance(v, float) else f"{v}" for v in row.values()), flush=True)
    facts = {name: value for name, value in vars(options).items() if name not in ("output", "data", "attributes")}
    options.output.write_text(json.dumps({**facts, "data": Path(options.data).name, "rows": table}, indent=2) + "\n")


def read(pipe: DiffusionAutoencoderPipeline, images: torch.Tensor) -> torch.Tensor:
    """Reads the probabilities (B, attributes) from images in [0, 1]."""
    with torch.no_grad():
        return pipe.attribute_classifier(pipe.encode(images)).logits.sigmoid()


if __name__ == "__main__":
    main()
