"""Schedulers that decode, beside the model's own noise schedule."""

from __future__ import annotations

from typing import Any

import torch

from .scheduling_vp_ddim import VPDDIMScheduler


def trained_scheduler(scheduler: Any) -> VPDDIMScheduler:
    """The model's own noise schedule."""
    if isinstance(scheduler, VPDDIMScheduler):
        return scheduler
    raise ValueError(f"scheduler must be a VPDDIMScheduler, got {type(scheduler).__name__}")


def network_timestep(scheduler: Any, timestep: torch.Tensor) -> torch.Tensor:
    """What the network is given at a scheduler's timestep."""
    return timestep
