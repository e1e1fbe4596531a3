"""What is trained, and one step of its training: networks, optimizer and averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers.training_utils import EMAModel

from ..data.loader import process_share
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .checkpoints import restore_averages, restore_state_layout
from .objective import DiffusionAutoencoder, denoising_loss, derived_seed, phase_at, sample_timesteps
from .optimizers import build_optimizer, learning_rate_at
from .presets import TrainingPreset

if TYPE_CHECKING:
    from accelerate import Accelerator

# What each draw of random numbers is for: part of its seed.
NOISE, TIMESTEPS, DROPOUT = 1, 2, 3


class TwoPhaseTrainer:
    """A diffusion autoencoder in training (Algorithms 1 and 2; section 8 for Adam, warm-up and averaged weights).

    Noise, timesteps and dropout of a step depend on the seed and on the examples seen, on nothing else, so that a
    checkpoint needs no state of any random generator.

    Args:
        preset: The experiment.
        accelerator: Device, processes and precision.
        seed: Of the initial weights and of every draw. Several processes draw dropout each for its own share: with
            dropout their weights are not those that one process would have.
        pretrained: Networks whose weights the training begins with; None for new ones.
        channels_last: Whether the networks and images lie in memory with the channels innermost.
        gradient_checkpointing: Whether activations are computed again instead of kept.
        gradient_accumulation_steps: Parts in which a batch goes through the networks.
        compiled: Whether the networks go through `torch.compile`.

    Attributes:
        examples_seen: Examples trained on, over all processes.
        phase1_examples: Examples with t = 1. A run that is continued for longer keeps the number that it began with.
        autoencoder: The networks, with the weights of the last step.
    """

    def __init__(
        self,
        preset: TrainingPreset,
        accelerator: Accelerator,
        *,
        seed: int = 0,
        pretrained: DiffusionAutoencoderPipeline | None = None,
        channels_last: bool = True,
        gradient_checkpointing: bool = False,
        gradient_accumulation_steps: int = 1,
        compiled: bool = False,
    ) -> None:
        self.preset, self.accelerator, self.seed = preset, accelerator, seed
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.examples_seen = 0
        self.phase1_examples = round(preset.phase1_fraction * preset.training_examples)
        self.scheduler = preset.build_scheduler()
        torch.manual_seed(seed)
        self.autoencoder = DiffusionAutoencoder(preset.build_encoder(), preset.build_decoder())
        if pretrained is not None:
            self.autoencoder.encoder.load_state_dict(pretrained.encoder.state_dict())
            self.autoencoder.decoder.load_state_dict(pretrained.decoder.state_dict())
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.autoencoder.to(accelerator.device, memory_format=self._memory_format)
        if gradient_checkpointing:
            self.autoencoder.encoder.enable_gradient_checkpointing()
            self.autoencoder.decoder.enable_gradient_checkpointing()
        self.parameters = list(self.autoencoder.parameters())
        optimizer = build_optimizer(preset.optimizer, self.parameters, preset.learning_rate)
        # With update_after_step=-1 the decay of step n = 1, 2, ... is min(decay, (1 + n) / (10 + n)).
        self.averages = EMAModel(
            self.parameters,
            decay=preset.ema_decay,
            min_decay=0.0 if preset.ema_warmup else preset.ema_decay,
            update_after_step=-1,
            foreach=True,
        )
        model = torch.compile(self.autoencoder) if compiled else self.autoencoder
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    @property
    def finished(self) -> bool:
        """Whether the experiment's examples have all been seen."""
        return self.examples_seen >= self.preset.training_examples

    @property
    def phase(self) -> int:
        """The phase, 1 or 2, of the last step; before the first one, of the first."""
        return phase_at(max(self.examples_seen - self.preset.batch_size, 0), self.phase1_examples)

    @property
    def learning_rate(self) -> float:
        """That of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, images: torch.Tensor) -> torch.Tensor:
        """One optimizer step on a global batch, of which this process has its share.

        Args:
            images: This process's share, (b, C, H, W), in [-1, 1], float32, on any device.

        Returns:
            This process's share of the loss, (), on the device: the shares add up to the loss of the global batch.
        """
        preset, accelerator, device = self.preset, self.accelerator, self.accelerator.device

        # Every process draws the timesteps and the noise of the global batch and takes its share.
        share = process_share(preset.batch_size, accelerator.process_index, accelerator.num_processes)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, TIMESTEPS, self.examples_seen))
        phase = phase_at(self.examples_seen, self.phase1_examples)
        timesteps = sample_timesteps(preset.batch_size, phase, self.scheduler, generator, "cpu")[share]
        generator = torch.Generator(device).manual_seed(derived_seed(self.seed, NOISE, self.examples_seen))
        noise = torch.randn((preset.batch_size, *images.shape[1:]), generator=generator, device=device)[share]
        torch.manual_seed(derived_seed(self.seed, DROPOUT, self.examples_seen, accelerator.process_index))
        images = images.to(device, non_blocking=True)
        images, noise = (tensor.contiguous(memory_format=self._memory_format) for tensor in (images, noise))

        # DDP averages over processes; each adds the sum of its losses over the global batch size.
        self.model.train()
        step_loss = torch.zeros((), device=device)
        splits = (tensor.tensor_split(self.gradient_accumulation_steps) for tensor in (images, noise, timesteps))
        parts = list(zip(*splits, strict=True))
        for index, part in enumerate(parts):
            with accelerator.autocast():
                loss = denoising_loss(self.model, self.scheduler, *part).sum() / preset.batch_size
            step_loss += loss.detach()
            if index < len(parts) - 1:
                with accelerator.no_sync(self.model):
                    accelerator.backward(loss * accelerator.num_processes)
            else:
                accelerator.backward(loss * accelerator.num_processes)
        accelerator.clip_grad_norm_(self.parameters, preset.max_grad_norm)
        self.examples_seen += preset.batch_size
        learning_rate = learning_rate_at(
            self.examples_seen,
            preset.learning_rate,
            preset.lr_scheduler,
            preset.warmup_examples,
            preset.training_examples,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.averages.step(self.parameters)
        return step_loss

    def pipeline(self) -> DiffusionAutoencoderPipeline:
        """A pipeline around the networks as they are, with a scheduler of its own."""
        return DiffusionAutoencoderPipeline(
            self.autoencoder.encoder, self.autoencoder.decoder, self.preset.build_scheduler()
        )

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The networks hold the averaged weights, ready for inference; afterwards the trained ones again."""
        self.averages.store(self.parameters)
        self.averages.copy_to(self.parameters)
        self.autoencoder.eval()
        try:
            yield
        finally:
            self.averages.restore(self.parameters)

    def state_dict(self) -> dict[str, Any]:
        """All that [`load_state_dict`] needs: nested dicts and lists of tensors and plain values."""
        scaler = self.accelerator.scaler
        return {
            "model": self.autoencoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.averages.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "phase1_examples": self.phase1_examples,
        }

    def load_state_dict(self, state: dict[str, Any], examples_seen: int) -> None:
        """Goes on from [`state_dict`], after `examples_seen` examples."""
        self.autoencoder.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_state_layout(self.optimizer)
        restore_averages(self.averages, state["ema"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.examples_seen, self.phase1_examples = examples_seen, state["phase1_examples"]
