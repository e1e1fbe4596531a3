"""Where codes and evaluations are made: the processes that share them, the device, the model on it."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from .pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline


def torch_device(name: str) -> torch.device:
    """A device by its name; a ValueError, if this machine has none that holds values."""
    try:
        torch.zeros(1, device=name).item()  # "meta" holds none
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"device must be a device of this machine, got {name!r}") from error
    return torch.device(name)


def join_processes(device: str | None) -> PartialState:
    """The processes of `accelerate launch` or torchrun, or the only one.

    Without an accelerator they share the work on the CPU, which accelerate must be told.
    """
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not accelerated
    return PartialState(cpu=on_cpu if device is None else torch_device(device).type == "cpu")


def find_device(name: str | None, state: PartialState) -> torch.device:
    """The device of this name, or the process's own: so is "cuda" with several processes."""
    device = state.device if name is None else torch_device(name)
    return state.device if device.index is None and device.type == state.device.type else device


def load_pipeline(model: str, device: torch.device, dtype: str = "float32") -> DiffusionAutoencoderPipeline:
    """The pipeline on its device, in channels_last (faster; it changes rounding only), without progress bars."""
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(model).to(device, getattr(torch, dtype))
    for network in (pipeline.encoder, pipeline.decoder):
        network.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def processor_name() -> str:
    """The CPU's name, as far as the system tells."""
    information = Path("/proc/cpuinfo")  # of Linux
    lines = information.read_text().splitlines() if information.is_file() else ()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
