"""The processes that share an encoding or an evaluation, their devices, and the model on a device."""

import platform
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from .pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline


def torch_device(name: str) -> torch.device:
    """Returns a device by its name. Raises ValueError if it does not exist or holds no values."""
    try:
        torch.zeros(1, device=name).item()  # "meta" holds none
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"device must be a device of this machine, got {name!r}") from error
    return torch.device(name)


def join_processes(device: str | None) -> tuple[PartialState, torch.device]:
    """Returns the processes of `accelerate launch` or torchrun, or the only process, and its device.

    None, or "cuda" with several processes, is each process's own device. Without an accelerator they share the work on
    the CPU; accelerate must be told so.
    """
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not accelerated
    on_cpu = on_cpu if device is None else torch_device(device).type == "cpu"
    # A process that is ready waits for the others, which may have a whole shard of codes to make.
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
    own = state.device if device is None else torch_device(device)
    return state, state.device if own.index is None and own.type == state.device.type else own


def load_pipeline(model: str, device: torch.device, dtype: str = "float32") -> DiffusionAutoencoderPipeline:
    """Loads a pipeline to a device, in channels_last (faster; only changes rounding), without progress bars."""
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(model).to(device, getattr(torch, dtype))
    for network in (pipeline.encoder, pipeline.decoder):
        network.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def processor_name() -> str:
    """Returns the CPU's name, as far as the system knows it."""
    information = Path("/proc/cpuinfo")  # on Linux
    lines = information.read_text().splitlines() if information.is_file() else ()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
