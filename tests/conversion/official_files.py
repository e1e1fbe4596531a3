"""Official checkpoints with random tensors, as Lightning lays them out."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .reference_network import Architecture, Tensors, autoencoder_shapes, latent_net_shapes, random_tensors


class ModelCheckpoint:
    """Stands for the objects of other libraries that Lightning pickles."""

    def __getstate__(self) -> dict[str, Any]:
        return {"best": torch.tensor(1.0)}

    def __setstate__(self, state: object) -> None:
        raise AssertionError("a class of the checkpoint has run")


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def autoencoder_state(a: Architecture, seed: int = 0) -> Tensors:
    """model.* and ema_model.* that differ, and x_T."""
    shapes = autoencoder_shapes(a)
    return {
        "x_T": torch.zeros(4, 3, a.image_size, a.image_size),
        **prefixed("model", random_tensors(shapes, seed)),
        **prefixed("ema_model", random_tensors(shapes, seed + 1)),
    }


def statistics(a: Architecture, seed: int = 7) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    mean, std = torch.randn(a.latent, generator=generator), torch.rand(a.latent, generator=generator) + 0.5
    return {"conds_mean": mean, "conds_std": std}


def latent_state(a: Architecture, seed: int = 0) -> Tensors:
    """What `autoencoder_state` gives, and the latent code model."""
    shapes = latent_net_shapes(a)
    return {
        **autoencoder_state(a, seed),
        **{name: tensor[None] for name, tensor in statistics(a).items()},
        **prefixed("model", random_tensors(shapes, seed + 2)),
        **prefixed("ema_model", random_tensors(shapes, seed + 3)),
    }


def classifier_state(a: Architecture, attributes: int = 40, seed: int = 0) -> Tensors:
    shapes = {"weight": (attributes, a.latent), "bias": (attributes,)}
    return {
        **{name: tensor[None] for name, tensor in statistics(a).items()},
        **prefixed("classifier", random_tensors(shapes, seed + 4)),
        **prefixed("ema_classifier", random_tensors(shapes, seed + 5)),
    }


def save_lightning(path: Path, state: dict[str, Any], **options: Any) -> Path:
    """Writes the state dict among the things that Lightning 1.4 saves beside it."""
    checkpoint = {"epoch": 3, "global_step": np.int64(1234), "pytorch-lightning_version": "1.4.5"}
    checkpoint |= {
        "state_dict": OrderedDict(state),
        "callbacks": {ModelCheckpoint: {"best": torch.tensor(1.0), "object": ModelCheckpoint()}},
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
        "hyper_parameters": {"data_path": Path("datasets"), "net_attn": (16,)},
    }
    torch.save(checkpoint, path, **options)
    return path


def of_group(state: Tensors, group: str, dtype: torch.dtype = torch.float64) -> Tensors:
    """The tensors of "model" or "ema_model", without the prefix."""
    names = [name for name in state if name.startswith(f"{group}.")]
    return {name.removeprefix(f"{group}."): state[name].to(dtype) for name in names}
