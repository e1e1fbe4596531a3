"""Training of a latent code model, the distribution of a data set's codes, with which `pipe.sample` makes new images.

The recipe "official" predicts noise on a constant beta of 0.008 (official DiffAE: L1 loss, AdamW), "velocity" predicts
velocity on a shifted cosine schedule. What a step draws depends on the seed and on the codes seen, on nothing else, as
in `trainer.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from ..data.loader import process_share
from ..metrics.frechet import frechet_distance
from ..models.latent_code_model import LatentCodeModel
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler
from .checkpoints import check_equal, load_latest_checkpoint, restore_averages, restore_state_layout, save_checkpoint
from .objective import derived_seed, sample_timesteps
from .run_folder import append_metrics, rewind_metrics

SCHEDULERS: dict[str, dict[str, Any]] = {
    "official": {"noise_schedule": "constant_beta", "prediction_type": "epsilon", "timestep_spacing": "leading"},
    "velocity": {"noise_schedule": "shifted_cosine", "scaling_factor": 1.0, "prediction_type": "v_prediction"},
}
MIN_CODES = 10

# What each draw of random numbers is for: part of its seed.
ORDER, NOISE, TIMESTEPS = 11, 12, 13


def _option(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "group": "training"})


@dataclass(frozen=True)
class LatentOptions:
    """How a latent code model is trained."""

    recipe: Literal["official", "velocity"] = _option("official", "noise on constant beta, or velocity on SC-1")
    hidden_dim: int = _option(2048, "width of the hidden layers")
    num_layers: int = _option(10, "layers; the official models have 10 or 20")
    training_examples: int = _option(5_000_000, "length, in codes")
    batch_size: int = _option(256, "codes per step, over all processes")
    learning_rate: float = _option(1e-4, "AdamW's rate")
    weight_decay: float = _option(0.01, "AdamW's weight decay")
    ema_decay: float = _option(0.9999, "decay of the averaged weights")
    validation_fraction: float = _option(0.05, "share of the codes that are held out")
    validation_samples: int = _option(2_000, "codes sampled for a validation")
    checkpoint_every: int = _option(500_000, "codes between checkpoints, each with a validation")
    seed: int = _option(0, "of the weights and of every draw")

    def __post_init__(self) -> None:
        for name in ("training_examples", "batch_size", "checkpoint_every", "validation_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in (0, 1), got {self.validation_fraction}")


class LatentTrainer:
    """A latent code model in training.

    Args:
        codes: (N, latent_dim), as the encoder gives them. A random part is held out.
        options: How it is trained.
        accelerator: Device, processes and precision.
    """

    def __init__(self, codes: np.ndarray, options: LatentOptions, accelerator: Accelerator) -> None:
        codes = torch.as_tensor(codes, dtype=torch.float32)
        if codes.ndim != 2 or len(codes) < MIN_CODES or not codes.isfinite().all():
            raise ValueError(f"codes must be at least {MIN_CODES}, finite, (N, latent_dim), got {tuple(codes.shape)}")
        self.options, self.accelerator, self.examples_seen = options, accelerator, 0
        order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(options.seed))
        held_out = max(2, round(options.validation_fraction * len(codes)))
        torch.manual_seed(options.seed)
        self.network = LatentCodeModel(codes.shape[1], options.hidden_dim, options.num_layers)
        self.network.latent_mean.copy_(codes[order[held_out:]].mean(dim=0))
        self.network.latent_std.copy_(codes[order[held_out:]].std(dim=0).clamp(min=1e-6))
        normalized = self.network.normalize(codes)
        self.held_out, self.codes = normalized[order[:held_out]], normalized[order[held_out:]]
        self.scheduler = VPDDIMScheduler(**SCHEDULERS[options.recipe])
        self.network.to(accelerator.device)
        self.parameters = list(self.network.parameters())
        optimizer = torch.optim.AdamW(
            self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        self.averages = EMAModel(self.parameters, decay=options.ema_decay, min_decay=0.0, update_after_step=-1)
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)

    @property
    def finished(self) -> bool:
        """Whether all examples have been seen."""
        return self.examples_seen >= self.options.training_examples

    def step(self) -> torch.Tensor:
        """One optimizer step; returns this process's mean absolute error, ()."""
        options, accelerator, device = self.options, self.accelerator, self.accelerator.device
        share = process_share(options.batch_size, accelerator.process_index, accelerator.num_processes)

        def generator(purpose: int) -> torch.Generator:
            return torch.Generator().manual_seed(derived_seed(options.seed, purpose, self.examples_seen))

        rows = torch.randint(len(self.codes), (options.batch_size,), generator=generator(ORDER))
        noise = torch.randn(options.batch_size, self.codes.shape[1], generator=generator(NOISE))[share].to(device)
        timesteps = sample_timesteps(options.batch_size, 2, self.scheduler, generator(TIMESTEPS), "cpu")[share]
        codes = self.codes[rows[share]].to(device)
        target = self.scheduler.training_target(codes, noise, timesteps)
        noisy = self.scheduler.add_noise(codes, noise, timesteps)
        with accelerator.autocast():
            prediction = self.model.train()(noisy, timesteps.to(device), return_dict=False)[0]
        loss = F.l1_loss(prediction.float(), target, reduction="sum") / target[0].numel() / options.batch_size
        accelerator.backward(loss * accelerator.num_processes)  # DDP averages over processes
        accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.averages.step(self.parameters)
        self.examples_seen += options.batch_size
        return loss.detach()

    def averaged_model(self) -> LatentCodeModel:
        """A copy of the network with the averaged weights."""
        model = LatentCodeModel(**{k: v for k, v in self.network.config.items() if not k.startswith("_")})
        model.load_state_dict(self.network.state_dict())
        self.averages.copy_to(model.parameters())
        return model.to(self.accelerator.device).eval()

    @torch.no_grad()
    def sampled_codes(self, count: int, num_inference_steps: int = 50) -> torch.Tensor:
        """Normalised codes (count, latent_dim) drawn by the averaged network, on the CPU."""
        model, device = self.averaged_model(), self.accelerator.device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        noise = torch.randn(count, self.codes.shape[1], generator=torch.Generator().manual_seed(self.options.seed))
        codes = noise.to(device)
        for timestep in self.scheduler.timesteps:
            codes = self.scheduler.step(model(codes, timestep).sample, timestep, codes).prev_sample
        return codes.cpu()

    def validate(self) -> dict[str, float]:
        """Fréchet distance of sampled to held-out normalised codes, beside that of Gaussian codes of their covariance.

        And how near samples lie to training codes: the median distance to the nearest one, over that of held-out codes.
        A value far below 1 says that the model copies.
        """
        sampled = self.sampled_codes(self.options.validation_samples)
        covariance = torch.cov(self.codes.T.double()) + 1e-6 * torch.eye(self.codes.shape[1], dtype=torch.float64)
        gaussian = torch.distributions.MultivariateNormal(self.codes.double().mean(dim=0), covariance)
        with torch.random.fork_rng():
            torch.manual_seed(self.options.seed)
            drawn = gaussian.sample((len(sampled),)).float()
        nearest = [torch.cdist(codes, self.codes).amin(dim=1).median() for codes in (sampled, self.held_out)]
        return {
            "frechet_distance": frechet_distance(sampled, self.held_out),
            "frechet_distance_gaussian": frechet_distance(drawn, self.held_out),
            "nearest_training_code": float(nearest[0] / nearest[1]),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that [`load_state_dict`] needs."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.averages.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint's state."""
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_state_layout(self.optimizer)
        restore_averages(self.averages, state["ema"])
        self.examples_seen = state["examples_seen"]


def train_latent(
    codes: np.ndarray,
    options: LatentOptions,
    run_folder: Path,
    accelerator: Accelerator,
    report: Callable[[str], None] = print,
) -> tuple[LatentCodeModel, VPDDIMScheduler]:
    """Trains, from the newest checkpoint of `run_folder` if it has one, and writes metrics.jsonl beside them.

    Returns:
        The network with averaged weights, and its scheduler.

    Raises:
        ValueError: If the codes cannot be used, or the checkpoints are of other codes or options.
    """
    trainer = LatentTrainer(codes, options, accelerator)
    description = {"codes": len(codes), "sum": float(np.asarray(codes, np.float64).sum())}
    run_folder.mkdir(parents=True, exist_ok=True)
    _, state = load_latest_checkpoint(run_folder, report)
    if state is not None:
        check_equal(state["experiment"], dataclasses.asdict(options))
        check_equal(state["data"], description)
        trainer.load_state_dict(state)
        report(f"resumed at {trainer.examples_seen} codes")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        rewind_metrics(run_folder, trainer.examples_seen)
    losses = []
    while not trainer.finished:
        before = trainer.examples_seen
        losses.append(trainer.step())
        due = before // options.checkpoint_every != trainer.examples_seen // options.checkpoint_every
        if (due or trainer.finished) and accelerator.is_main_process:
            figures = {"loss": float(torch.stack(losses).mean()) * accelerator.num_processes, **trainer.validate()}
            if not np.isfinite(figures["loss"]):
                raise ValueError(f"learning_rate must be such that the loss stays finite, got {options.learning_rate}")
            more = {"losses": {}, "experiment": dataclasses.asdict(options), "data": description}
            save_checkpoint(run_folder, trainer.examples_seen, {**trainer.state_dict(), **more}, keep=2)
            append_metrics(run_folder, {"examples": trainer.examples_seen, **figures})
            report(", ".join([f"{trainer.examples_seen} codes", *(f"{k} {v:.4g}" for k, v in figures.items())]))
            losses = []
    accelerator.wait_for_everyone()
    return trainer.averaged_model(), trainer.scheduler
