"""One training step and the state it changes: networks, optimizer and averaged weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from diffusers.training_utils import EMAModel

from ..data.loader import process_share
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .objective import DiffusionAutoencoder, denoising_loss, derived_seed, sample_timesteps
from .optimizers import build_optimizer, learning_rate_at
from .presets import TrainingPreset

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .latent import LatentOptions
    from .options import TrainingOptions

# The purpose of each random draw is part of its seed.
NOISE, TIMESTEPS, DROPOUT = 1, 2, 3


class Trainer:
    """A network in training, with its optimizer and the averages of its weights.

    The random draws of a step depend only on the seed and on the examples that all processes have seen, so a checkpoint
    needs no random generator's state. `model` is the network as a step calls it: compiled, and wrapped for several
    processes.
    """

    phase1_examples = 0

    def __init__(
        self,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        experiment: TrainingPreset | LatentOptions,
        seed: int,
        constant_decay: bool = False,
        compiled: bool = False,
        more_ema_decays: Sequence[float] = (),
    ) -> None:
        self.network, self.accelerator, self.seed, self.examples_seen = network, accelerator, seed, 0
        self.batch_size, self.training_examples = experiment.batch_size, experiment.training_examples
        self.share = process_share(self.batch_size, accelerator.process_index, accelerator.num_processes)
        self.parameters = list(network.parameters())
        # With update_after_step=-1 the decay of step n = 1, 2, ... is min(decay, (1 + n) / (10 + n)).
        # A `min_decay` equal to the decay turns this warm-up off.
        self.averages, *self.more_averages = (
            EMAModel(self.parameters, decay, decay if constant_decay else 0.0, update_after_step=-1, foreach=True)
            for decay in (experiment.ema_decay, *more_ema_decays)
        )
        self.model, self.optimizer = accelerator.prepare(torch.compile(network) if compiled else network, optimizer)

    @property
    def finished(self) -> bool:
        """Whether all examples have been seen."""
        return self.examples_seen >= self.training_examples

    def due(self, every: int) -> bool:
        """Whether the last step passed a multiple of `every` examples, or was the last."""
        before = self.examples_seen - self.batch_size
        return self.finished or before // every != self.examples_seen // every

    def generator(self, purpose: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Returns a generator for one draw of the next step."""
        return torch.Generator(device).manual_seed(derived_seed(self.seed, purpose, self.examples_seen))

    def backward(self, loss: torch.Tensor) -> None:
        """Backpropagates this process's share of the loss, scaled: DDP averages gradients, but shares must be added."""
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def update(self, learning_rate: float, max_grad_norm: float) -> None:
        """Ends a step: updates the weights and the averages."""
        self.accelerator.clip_grad_norm_(self.parameters, max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        for averages in (self.averages, *self.more_averages):
            averages.step(self.parameters)
        self.examples_seen += self.batch_size

    @contextmanager
    def averaged_weights(self, averages: EMAModel | None = None) -> Iterator[None]:
        """Puts the averaged weights into the network, for inference, and restores the trained ones at the end."""
        averages = averages or self.averages
        averages.store(self.parameters)
        averages.copy_to(self.parameters)
        self.network.eval()
        try:
            yield
        finally:
            averages.restore(self.parameters)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that [`load_state_dict`] needs: nested dicts and lists of tensors and plain values."""
        scaler = self.accelerator.scaler
        return {
            "examples_seen": self.examples_seen,
            "phase1_examples": self.phase1_examples,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.averages.state_dict(),
            "more_ema": [averages.state_dict() for averages in self.more_averages],
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a [`state_dict`]. Averages get the device and memory layout of their parameters.

        Fused optimizers go through a parameter and its averages by address. Averages in another layout (channels_last
        or not) would silently be applied to the wrong weights.
        """
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        saved_averages = [state["ema"], *state.get("more_ema", ())]
        for averages, saved in zip((self.averages, *self.more_averages), saved_averages, strict=True):
            before = averages.shadow_params
            averages.load_state_dict(saved)
            after = averages.shadow_params
            averages.shadow_params = [torch.empty_like(a).copy_(b) for a, b in zip(before, after, strict=True)]
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.examples_seen, self.phase1_examples = state["examples_seen"], state["phase1_examples"]


class TwoPhaseTrainer(Trainer):
    """A diffusion autoencoder in training (Algorithms 1 and 2; section 8 for Adam, warm-up and averaged weights).

    The initial weights are random or those of `pretrained`. Each process draws the dropout of its own share: with
    dropout, several processes get other weights than one process.
    """

    def __init__(
        self,
        preset: TrainingPreset,
        options: TrainingOptions,
        accelerator: Accelerator,
        pretrained: DiffusionAutoencoderPipeline | None = None,
    ) -> None:
        self.preset, self.options, self.scheduler = preset, options, preset.build("scheduler")
        # A run that is made longer keeps the number that it began with.
        self.phase1_examples = round(preset.phase1_fraction * preset.training_examples)
        torch.manual_seed(options.seed)
        network = DiffusionAutoencoder(preset.build("encoder"), preset.build("decoder"))
        if pretrained is not None:
            network.encoder.load_state_dict(pretrained.encoder.state_dict())
            network.decoder.load_state_dict(pretrained.decoder.state_dict())
        self.memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
        network.to(accelerator.device, memory_format=self.memory_format)
        if options.gradient_checkpointing:
            network.encoder.enable_gradient_checkpointing()
            network.decoder.enable_gradient_checkpointing()
        optimizer = build_optimizer(preset.optimizer, network.parameters(), preset.learning_rate)
        averaging = {"constant_decay": not preset.ema_warmup, "more_ema_decays": options.more_ema_decays}
        super().__init__(network, optimizer, accelerator, preset, options.seed, compiled=options.compile, **averaging)

    @property
    def phase(self) -> int:
        """Phase of the last step, 1 or 2; at the start, of the first step. Phases count examples (section 5)."""
        return 1 if max(self.examples_seen - self.batch_size, 0) < self.phase1_examples else 2

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, images: torch.Tensor) -> torch.Tensor:
        """Takes one optimizer step on a global batch, of which `images` are this process's share.

        They are (b, C, H, W), in [-1, 1], float32, on any device. Returns the share of the loss, (), on the device: the
        shares add up to the loss of the global batch.
        """
        preset, accelerator, device = self.preset, self.accelerator, self.accelerator.device

        # Every process draws the timesteps and the noise of the global batch and takes its share.
        phase = 1 if self.examples_seen < self.phase1_examples else 2
        timesteps = sample_timesteps(self.batch_size, phase, self.scheduler, self.generator(TIMESTEPS))[self.share]
        shape = (self.batch_size, *images.shape[1:])
        noise = torch.randn(shape, generator=self.generator(NOISE, device), device=device)[self.share]
        torch.manual_seed(derived_seed(self.seed, DROPOUT, self.examples_seen, accelerator.process_index))
        images = images.to(device, non_blocking=True)
        images, noise = (tensor.contiguous(memory_format=self.memory_format) for tensor in (images, noise))

        self.model.train()
        step_loss = torch.zeros((), device=device)
        count = self.options.gradient_accumulation_steps
        parts = list(zip(*(tensor.tensor_split(count) for tensor in (images, noise, timesteps)), strict=True))
        for index, part in enumerate(parts, start=1):
            with accelerator.autocast():
                losses = denoising_loss(self.model, self.scheduler, *part, preset.loss_weighting)
                loss = losses.sum() / self.batch_size
            step_loss += loss.detach()
            with accelerator.no_sync(self.model) if index < len(parts) else nullcontext():
                self.backward(loss)
        rate = learning_rate_at(
            self.examples_seen + self.batch_size,
            preset.learning_rate,
            preset.lr_scheduler,
            preset.warmup_examples,
            preset.training_examples,
        )
        self.update(rate, preset.max_grad_norm)
        return step_loss

    def pipeline(self) -> DiffusionAutoencoderPipeline:
        """Returns a pipeline with the networks as they are and a new scheduler."""
        return DiffusionAutoencoderPipeline(self.network.encoder, self.network.decoder, self.preset.build("scheduler"))
