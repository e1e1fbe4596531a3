"""Commands that convert, export, publish and list models."""

import sys
from argparse import Namespace
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from ..flags import option


@dataclass
class ConvertOptions:
    checkpoint: Path = option(MISSING, "official autoencoder checkpoint (last.ckpt)", positional=True)
    output: Path = option(MISSING, "pipeline folder to write", positional=True)
    latent_checkpoint: Path | None = option(None, "checkpoint of the latent code model")
    latent_stats: Path | None = option(
        None, "latent.pkl, for mean and standard deviation of codes if the checkpoints lack them"
    )
    classifier_checkpoint: Path | None = option(None, "checkpoint of the classifier")
    ema: bool = option(True, "use the averaged weights, not the last ones")
    ema_classifier: bool = option(False, "use the averaged classifier; official editing uses the last one")
    image_size: int | None = option(
        None, "pixels of the training images (default: from x_T in the checkpoint, or with attention at 16 pixels)"
    )
    num_attention_heads: int = option(1, "number of attention heads")
    encoder_layers_per_block: int | None = option(None, "residual blocks per encoder level (default: the decoder's)")
    overwrite: bool = option(False, "replace an existing pipeline folder")


def convert(options: ConvertOptions, arguments: Namespace) -> tuple[Any, str]:
    """Turn official checkpoints into a pipeline folder."""
    from ..conversion.convert import convert_official_checkpoint

    report = convert_official_checkpoint(**vars(options))
    for warning in report["warnings"]:
        print(f"diffae-hub: warning: {warning}", file=sys.stderr)
    decoder = report["configurations"]["decoder"]
    lines = [f"{decoder['sample_size']} pixels, codes of {decoder['latent_dim']}"]
    lines += [f"  {name}: {parameters:,} parameters" for name, parameters in report["parameters"].items()]
    return report, "\n".join([*lines, str(report["folder"])])


@dataclass
class ExportOfficialOptions:
    model: str = option(MISSING, "pipeline folder, Hub id or bundled model", positional=True)
    output: Path = option(MISSING, "folder for the checkpoints", positional=True)
    overwrite: bool = option(False, "replace an existing folder of checkpoints")


def export_official(options: ExportOfficialOptions, arguments: Namespace) -> tuple[Any, str]:
    """Write checkpoints that the official code loads."""
    from ..conversion.export_official import export_official_checkpoints

    paths = export_official_checkpoints(**vars(options))
    return paths, "\n".join(f"{name}: {path}" for name, path in paths.items())


@dataclass
class PushOptions:
    model: str = option(MISSING, "pipeline folder or bundled model", positional=True)
    repo_id: str = option(MISSING, "name or owner/name; created if it does not exist", positional=True)
    card: Path | None = option(None, "Markdown file to upload as README.md, with its pictures")
    evaluation: Path | None = option(None, "report.json of an evaluation, for the card")
    license: str | None = option(None, "licence in the card, e.g. cc-by-4.0 (default: none)")
    private: bool = option(False, "make a new repository private")
    message: str = option("Upload diffusion autoencoder", "commit title")


def push(options: PushOptions, arguments: Namespace) -> tuple[Any, str]:
    """Upload a pipeline to the Hugging Face Hub, with its model card.

      diffae-hub push runs/mine/pipeline me/my-autoencoder
      diffae-hub push cifar10-32-small me/cifar10-32-small --card model_cards/cifar10-32-small.md

    The token comes from `hf auth login` or the environment variable HF_TOKEN.
    """
    from ..hub import push_pipeline

    full_id = push_pipeline(**vars(options))
    return {"repo_id": full_id}, full_id


@dataclass
class ModelsOptions:
    """None."""


def models(options: ModelsOptions, arguments: Namespace) -> tuple[Any, str]:
    """List the bundled models."""
    from ..pretrained import bundled_model_path, list_models

    folders = {name: bundled_model_path(name) for name in list_models()}
    return folders, "\n".join(folders)
