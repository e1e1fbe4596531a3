"""Training of a latent code model, which learns the distribution of codes so that `pipe.sample` can make new images.

The recipe "official" predicts noise with a constant beta of 0.008, "velocity" predicts velocity on a shifted cosine
schedule. Both use an L1 loss and AdamW, as the official DiffAE does.
"""

import dataclasses
import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ..files import append_json_lines
from ..flags import check_values, option
from ..metrics.frechet import frechet_distance
from ..models.latent_code_model import LatentCodeModel
from ..schedulers.scheduling_vp_ddim import VPDDIMScheduler
from .checkpoints import check_equal, load_latest_checkpoint, save_checkpoint
from .objective import sample_timesteps
from .run_folder import METRICS, rewind_metrics
from .stop import LossMonitor, StopSignal
from .trainer import Trainer

SCHEDULERS: dict[str, dict[str, Any]] = {
    "official": {"noise_schedule": "constant_beta", "prediction_type": "epsilon", "timestep_spacing": "leading"},
    "velocity": {"noise_schedule": "shifted_cosine", "scaling_factor": 1.0, "prediction_type": "v_prediction"},
}
MIN_CODES = 10

# The purpose of each random draw is part of its seed.
ORDER, NOISE, TIMESTEPS = 11, 12, 13

_training = partial(option, group="training")


@dataclass(frozen=True)
class LatentOptions:
    """Options of the training of a latent code model."""

    recipe: Literal["official", "velocity"] = _training("official", "noise with constant beta, or velocity with SC-1")
    hidden_dim: int = _training(2048, "width of the hidden layers", minimum=1)
    num_layers: int = _training(10, "number of layers; the official models have 10 or 20", minimum=1)
    training_examples: int = _training(5_000_000, "length of the training, in codes", minimum=1)
    batch_size: int = _training(256, "codes per step, over all processes", minimum=1)
    learning_rate: float = _training(1e-4, "learning rate of AdamW", minimum=0)
    weight_decay: float = _training(0.01, "weight decay of AdamW", minimum=0)
    ema_decay: float = _training(0.9999, "decay of the averaged weights")
    validation_fraction: float = _training(0.05, "share of the codes to hold out")
    validation_samples: int = _training(2_000, "codes sampled for a validation", minimum=2)
    checkpoint_every: int = _training(500_000, "codes between checkpoints, each with a validation", minimum=1)
    seed: int = _training(0, "seed of the initial weights and of all random draws", minimum=0)

    def __post_init__(self) -> None:
        check_values(self)
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in (0, 1), got {self.validation_fraction}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")


class LatentTrainer(Trainer):
    """Trains a latent code model on codes (N, latent_dim), of which a random part is held out."""

    def __init__(self, codes: np.ndarray, options: LatentOptions, accelerator: Accelerator) -> None:
        codes = torch.as_tensor(codes, dtype=torch.float32)
        if codes.ndim != 2 or len(codes) < MIN_CODES or not codes.isfinite().all():
            raise ValueError(f"codes must be finite, (N >= {MIN_CODES}, latent_dim), got {tuple(codes.shape)}")
        self.options, self.scheduler = options, VPDDIMScheduler(**SCHEDULERS[options.recipe])
        fraction = options.validation_fraction
        held_out = max(2, round(fraction * len(codes)))
        if held_out > len(codes) - 2:
            raise ValueError(f"validation_fraction must leave 2 of the {len(codes)} codes for training, got {fraction}")
        order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(options.seed))
        torch.manual_seed(options.seed)
        network = LatentCodeModel(codes.shape[1], options.hidden_dim, options.num_layers)
        network.latent_mean.copy_(codes[order[held_out:]].mean(dim=0))
        network.latent_std.copy_(codes[order[held_out:]].std(dim=0).clamp(min=1e-6))
        normalized = network.normalize(codes)
        self.held_out, self.codes = normalized[order[:held_out]], normalized[order[held_out:]]
        network.to(accelerator.device)
        adamw = {"lr": options.learning_rate, "weight_decay": options.weight_decay, "fused": True}
        optimizer = torch.optim.AdamW(network.parameters(), **adamw)
        super().__init__(network, optimizer, accelerator, options, options.seed)

    def step(self) -> torch.Tensor:
        """Takes one optimizer step. Returns this process's share of the mean absolute error, ()."""
        device = self.accelerator.device
        rows = torch.randint(len(self.codes), (self.batch_size,), generator=self.generator(ORDER))
        noise = torch.randn(self.batch_size, self.codes.shape[1], generator=self.generator(NOISE))
        timesteps = sample_timesteps(self.batch_size, 2, self.scheduler, self.generator(TIMESTEPS))[self.share]
        codes, noise = self.codes[rows[self.share]].to(device), noise[self.share].to(device)
        target = self.scheduler.training_target(codes, noise, timesteps)
        noisy = self.scheduler.add_noise(codes, noise, timesteps)
        with self.accelerator.autocast():
            prediction = self.model.train()(noisy, timesteps.to(device), return_dict=False)[0]
        loss = F.l1_loss(prediction.float(), target, reduction="sum") / target[0].numel() / self.batch_size
        self.backward(loss)
        self.update(self.options.learning_rate, max_grad_norm=1.0)
        return loss.detach()

    @torch.no_grad()
    def sampled_codes(self, count: int) -> torch.Tensor:
        """Samples normalised codes (count, latent_dim), on the CPU, in 50 steps of the network as it is."""
        device = self.accelerator.device
        self.scheduler.set_timesteps(50, device=device)
        noise = torch.randn(count, self.codes.shape[1], generator=torch.Generator().manual_seed(self.seed))
        codes = noise.to(device)
        for timestep in self.scheduler.timesteps:
            codes = self.scheduler.step(self.network(codes, timestep).sample, timestep, codes).prev_sample
        return codes.cpu()

    def validate(self) -> dict[str, float]:
        """Measures the Fréchet distance of sampled to held-out normalised codes, and that of Gaussian codes.

        Gaussian codes have the training codes' mean and covariance. `nearest_training_code` is the median distance of
        samples to the nearest training code, over that of held-out codes: far below 1, the model copies.
        """
        with self.averaged_weights():
            sampled = self.sampled_codes(self.options.validation_samples)
        codes = self.codes.double().numpy()
        gaussian = np.random.default_rng(self.seed).multivariate_normal(
            codes.mean(axis=0), np.cov(codes.T), len(sampled), check_valid="ignore"
        )
        nearest = [  # in parts, because the whole matrix of distances may not fit into memory
            torch.cat([torch.cdist(part, self.codes).amin(dim=1) for part in some.split(100)]).median()
            for some in (sampled, self.held_out)
        ]
        return {
            "frechet_distance": frechet_distance(sampled, self.held_out),
            "frechet_distance_gaussian": frechet_distance(torch.from_numpy(gaussian), self.held_out),
            "nearest_training_code": float(nearest[0] / nearest[1]),
        }


def train_latent(
    codes: np.ndarray,
    options: LatentOptions,
    run_folder: Path,
    accelerator: Accelerator,
) -> tuple[LatentCodeModel, VPDDIMScheduler]:
    """Trains a latent code model, from the newest checkpoint in `run_folder` if there is one.

    Writes checkpoints and metrics.jsonl there, and reports progress on stderr. Returns the network with averaged
    weights, and its scheduler. SIGTERM and Ctrl-C end it after a checkpoint. Raises ValueError if the codes cannot be
    used, or if the checkpoints are of other codes or options, and TrainingError for a loss that is not finite.
    """
    report = partial(accelerator.print, file=sys.stderr, flush=True)
    trainer = LatentTrainer(codes, options, accelerator)
    data = {"codes": len(codes), "sum": float(np.asarray(codes, np.float64).sum())}
    settings = {"experiment": dataclasses.asdict(options), "data": data}
    run_folder.mkdir(parents=True, exist_ok=True)
    state = load_latest_checkpoint(run_folder, report)
    if state is not None:
        check_equal({name: state[name] for name in settings}, settings)
        trainer.load_state_dict(state)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        rewind_metrics(run_folder, trainer.examples_seen)
    with StopSignal() as stop_signal:
        monitor = LossMonitor(accelerator, stop_signal)
        while not trainer.finished and not monitor.stopping:
            monitor.add(1 + trainer.examples_seen // trainer.batch_size, trainer.step())
            is_due = trainer.due(options.checkpoint_every)
            if not is_due and not monitor.stopping:
                continue
            loss = monitor.mean()
            if not accelerator.is_main_process:
                continue
            save_checkpoint(run_folder, {**trainer.state_dict(), **settings}, keep=2)
            if is_due:
                figures = {"loss": loss, **trainer.validate()}
                append_json_lines(run_folder / METRICS, [{"examples": trainer.examples_seen, **figures}])
                report(", ".join([f"{trainer.examples_seen} codes", *(f"{k} {v:.4g}" for k, v in figures.items())]))
    accelerator.wait_for_everyone()
    if not trainer.finished:
        signal.raise_signal(signal.Signals[stop_signal.name or "SIGTERM"])  # now with its usual effect
        raise KeyboardInterrupt  # unless it is ignored, as Ctrl-C is in a shell's background jobs
    trainer.averages.copy_to(trainer.parameters)
    return trainer.network.eval(), trainer.scheduler
