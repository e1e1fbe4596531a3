"""Optimizers and learning-rate schedules by name. The paper uses "adam" and "constant" (section 8)."""

from collections.abc import Iterable

import torch
from diffusers.optimization import SchedulerType, get_scheduler

OPTIMIZERS = ("adam", "adamw", "muon")
LEARNING_RATE_SCHEDULES = ("constant", "linear", "cosine", "polynomial")


def newton_schulz(matrices: torch.Tensor) -> torch.Tensor:
    """Moves the singular values of matrices towards 1, in five steps (Jordan et al. 2024, "Muon").

    Each step is X <- (a I + b X X^T + c (X X^T)^2) X. The polynomials are multiplied on the small Gram matrix and then
    applied to X once. For wide matrices this takes a third of the operations of applying them one by one.

    Matrices are (..., m, n), float32. In the result all but tiny singular values are between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    if matrices.shape[-2] > matrices.shape[-1]:
        return newton_schulz(matrices.mT).mT
    matrices = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    gram = matrices @ matrices.mT
    identity = product = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for _ in range(5):
        polynomial = a * identity + b * gram + c * (gram @ gram)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    return product @ matrices


class Muon(torch.optim.Adam):
    """Muon for matrices and convolutions, Adam for everything else.

    `torch.optim.Muon` takes only matrices and computes in bfloat16, which most CPUs emulate. Here a convolution's
    weight (out, in, h, w) counts as a matrix (out, in h w), and all is computed in float32. The update of an m x n
    matrix is scaled by 0.2 sqrt(max(m, n)): it is then as large as one of Adam's, so that both share a learning rate
    (Liu et al. 2025, "Muon is scalable for LLM training"). `momentum` is the decay of the averaged gradient, with
    Nesterov's look-ahead.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, lr=lr, betas=(0.9, 0.999))
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes one step. Parameters that Muon has moved lose their gradient, so that Adam skips them."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2 or parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())  # not used, but Adam needs it to load a state
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"].lerp_(parameter.grad, 1 - self.momentum)
                update = newton_schulz(parameter.grad.lerp(average, self.momentum).flatten(1))
                scale = 0.2 * max(update.shape) ** 0.5
                parameter.sub_(update.view_as(parameter), alpha=group["lr"] * scale)
                parameter.grad = None
        super().step()


def build_optimizer(name: str, parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Returns the optimizer of that name, with betas 0.9 and 0.999. AdamW has a weight decay of 0.01."""
    if name == "muon":
        return Muon(parameters, lr=learning_rate)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(parameters, lr=learning_rate, betas=(0.9, 0.999), fused=True)


def learning_rate_at(
    examples_seen: int, learning_rate: float, schedule: str, warmup_examples: int, training_examples: int
) -> float:
    """Returns the rate: linear warm-up, then a diffusers schedule, in examples. `examples_seen` includes this batch."""
    name = SchedulerType.CONSTANT_WITH_WARMUP if schedule == "constant" else SchedulerType(schedule)
    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(name, unused, num_warmup_steps=warmup_examples, num_training_steps=training_examples)
    return learning_rate * scheduler.lr_lambdas[0](examples_seen)
