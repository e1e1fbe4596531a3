"""Puts a trained pipeline into the package as a bundled model, in float16 safetensors.

python model_cards/bundle_model.py runs/small/pipeline cifar10-32-small
"""

import argparse
import json
from pathlib import Path

import torch

from diffae_hub import DiffusionAutoencoderPipeline, pretrained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("name")
    arguments = parser.parse_args()
    folder = Path(pretrained.__file__).parent / arguments.name
    DiffusionAutoencoderPipeline.from_pretrained(arguments.pipeline).to(torch.float16).save_pretrained(folder)
    for path in folder.rglob("*.json"):  # the folder of the training is not published
        configuration = json.loads(path.read_text())
        configuration.pop("_name_or_path", None)
        if isinstance(configuration.get("_class_name"), list):  # with the loader file, which only the Hub needs
            configuration["_class_name"] = configuration["_class_name"][-1]
        path.write_text(json.dumps(configuration, indent=2) + "\n")
    (folder / "pipeline.py").unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    print(f"{folder}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
