"""Where an evaluation runs: the processes that share it, the device, the model on it."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from .pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline


def join_processes(device: str | None) -> PartialState:
    """The processes of `accelerate launch` or torchrun, or the only one.

    Without an accelerator they share the work on the CPU, which accelerate must be told.
    """
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not accelerated
    return PartialState(cpu=on_cpu if device is None else torch_device(device).type == "cpu")


def find_device(name: str | None, state: PartialState) -> torch.device:
    """The device of this name, or the process's own.

    Raises:
        ValueError: If this machine has no such device.
    """
    device = state.device if name is None else torch_device(name)
    if device.type == "cpu":
        return torch.device("cpu")
    # "cuda" with several processes is each one's own
    return state.device if device.index is None and device.type == state.device.type else device


def torch_device(name: str) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: If this machine has no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be a device of this machine, got {name!r}") from error
    return device


def load_for_evaluation(model: str, device: torch.device, dtype: str) -> DiffusionAutoencoderPipeline:
    """The pipeline on its device, in channels_last, quiet.

    Raises:
        ValueError: If it cannot be loaded.
    """
    try:
        pipeline = DiffusionAutoencoderPipeline.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(f"model {model!r} cannot be loaded: {error}") from error
    pipeline.to(device, getattr(torch, dtype))
    for network in (pipeline.encoder, pipeline.decoder):
        network.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weights_fingerprint(pipeline: DiffusionAutoencoderPipeline) -> str:
    """A short hash of networks and scheduler: a folder must not mix reconstructions of two states of one model."""
    saved = json.loads(pipeline.scheduler.to_json_string())
    scheduler = {name: value for name, value in saved.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(scheduler, sort_keys=True).encode())
    for network in (pipeline.encoder, pipeline.decoder):
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def processor_name() -> str:
    """The CPU's name, as far as the system tells."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
