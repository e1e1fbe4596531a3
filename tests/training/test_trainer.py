"""TwoPhaseTrainer's steps against a plain float64 loop of the paper's formulas."""

import copy
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from diffae_hub.training.options import TrainingOptions
from diffae_hub.training.presets import PRESETS
from diffae_hub.training.trainer import TwoPhaseTrainer

from .runner import TINY_EXPERIMENT, WITHOUT_DROPOUT

EXAMPLES, BATCH, LEARNING_RATE, WARMUP, DECAY, NORM = 128, 16, 1e-3, 64, 0.5, 0.05
OTHER_DECAY = 0.25


def tiny_trainer(
    accelerator: Accelerator, optimizer: str = "adam", weighting: str = "none", **options: object
) -> TwoPhaseTrainer:
    recipe = {"batch_size": BATCH, "training_examples": EXAMPLES, "learning_rate": LEARNING_RATE}
    recipe |= {"warmup_examples": WARMUP, "ema_decay": DECAY, "max_grad_norm": NORM}
    recipe |= {"optimizer": optimizer, "loss_weighting": weighting}
    preset = PRESETS["cifar10-32"].with_overrides({**TINY_EXPERIMENT, **WITHOUT_DROPOUT, **recipe})
    return TwoPhaseTrainer(preset, TrainingOptions(dataset="x", output=Path("y"), **options), accelerator)


@pytest.fixture
def batches(rng: torch.Generator) -> list[torch.Tensor]:
    return [torch.rand(BATCH, 1, 8, 8, generator=rng) * 2 - 1 for _ in range(EXAMPLES // BATCH)]


@pytest.mark.parametrize(("channels_last", "weighting"), [(False, "none"), (True, "sigma")])
def test_steps_are_the_papers(
    accelerator: Accelerator, batches: list[torch.Tensor], channels_last: bool, weighting: str
) -> None:
    """Two steps at t = 1 and six of v-prediction on SC-4, with clipping, Adam, warm-up and averages written out.

    From the trainer the reference only takes the initial weights, t and x_t, which give the noise.
    """
    trainer = tiny_trainer(
        accelerator, weighting=weighting, channels_last=channels_last, more_ema_decays=(OTHER_DECAY,)
    )
    in_layout = {
        p.is_contiguous(memory_format=torch.channels_last) for p in trainer.parameters if p.shape[2:] == (3, 3)
    }
    assert (False not in in_layout) == channels_last
    inputs: list[tuple[torch.Tensor, ...]] = []
    trainer.network.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
    reference = copy.deepcopy(trainer.network).double()
    parameters = list(reference.parameters())
    averages, other_averages = ([parameter.detach().clone() for parameter in parameters] for _ in range(2))
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    for step, images in enumerate(batches, start=1):
        loss = trainer.step(images)
        assert trainer.phase == (1 if step <= 2 else 2)

        x0, x_t, timesteps = (tensor.double() for tensor in inputs[-1])
        torch.testing.assert_close(x0, images.double())
        t = timesteps / 1000
        assert bool((t == 1).all()) == (step <= 2)
        # SC-4 (section 4.3): alpha / sigma = 4 cot(pi t / 2), alpha^2 + sigma^2 = 1.
        angle = torch.atan2(torch.sin(math.pi * t / 2), 4 * torch.cos(math.pi * t / 2))[:, None, None, None]
        noise = (x_t - torch.cos(angle) * x0) / torch.sin(angle)
        velocity = torch.cos(angle) * noise - torch.sin(angle) * x0
        weights = torch.sin(angle) if weighting == "sigma" else 1
        expected = (weights * (reference(x0, x_t, timesteps) - velocity) ** 2).mean()
        assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-4)

        gradients = torch.autograd.grad(expected, parameters)
        norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
        assert float(norm) > NORM  # so that clipping shows
        rate = LEARNING_RATE * min(1.0, step * BATCH / WARMUP)
        decay, other = (min(most, (1 + step) / (10 + step)) for most in (DECAY, OTHER_DECAY))
        assert trainer.learning_rate == pytest.approx(rate)
        with torch.no_grad():
            for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                gradient = gradient * min(1.0, NORM / float(norm))  # noqa: PLW2901
                first[index] = 0.9 * first[index] + 0.1 * gradient
                second[index] = 0.999 * second[index] + 0.001 * gradient**2
                mean, square = first[index] / (1 - 0.9**step), second[index] / (1 - 0.999**step)
                parameter -= rate * mean / (square.sqrt() + 1e-8)
                averages[index] = decay * averages[index] + (1 - decay) * parameter
                other_averages[index] = other * other_averages[index] + (1 - other) * parameter
    assert trainer.finished
    for ours, expected in zip(trainer.parameters, parameters, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=0.02 * LEARNING_RATE)
    for kept, averaged in ((None, averages), (trainer.more_averages[0], other_averages)):
        with trainer.averaged_weights(kept):
            for ours, expected in zip(trainer.parameters, averaged, strict=True):
                torch.testing.assert_close(ours.double(), expected, rtol=0, atol=0.02 * LEARNING_RATE)


def half_precision(scale: float) -> Accelerator:
    """Returns float16 with a loss scale, as on a GPU. PyTorch supports it on the CPU, accelerate does not."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return accelerator


def test_half_precision(accelerator: Accelerator, batches: list[torch.Tensor]) -> None:
    """Losses are close to float32, gradients are clipped after unscaling, and the scale survives a resume."""
    exact = tiny_trainer(accelerator)
    losses = [float(exact.step(images)) for images in batches]
    half = tiny_trainer(half_precision(2.0**12))
    assert float(half.step(batches[0])) == pytest.approx(losses[0], rel=1e-2)
    first = [half.optimizer.state[parameter]["exp_avg"] for parameter in half.parameters]
    assert float(torch.sqrt(sum((10 * average).square().sum() for average in first))) == pytest.approx(NORM, rel=1e-3)
    for images, loss in zip(batches[1:4], losses[1:4], strict=True):
        half_loss = float(half.step(images))
        assert half_loss == pytest.approx(loss, rel=1e-2)
        assert half_loss != loss
    state = copy.deepcopy(half.state_dict())
    resumed = tiny_trainer(half_precision(1.0))
    resumed.load_state_dict(state)
    assert resumed.accelerator.scaler.get_scale() == 2.0**12
    for images in batches[4:]:
        half.step(images)
        resumed.step(images)
    for ours, theirs in zip(resumed.parameters, half.parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_averaged_weights_are_lent(accelerator: Accelerator, batches: list[torch.Tensor]) -> None:
    trainer = tiny_trainer(accelerator)
    trainer.step(batches[0])
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    with pytest.raises(KeyError), trainer.averaged_weights():
        assert not trainer.network.training
        assert any(not torch.equal(ours, old) for ours, old in zip(trainer.parameters, before, strict=True))
        raise KeyError
    assert all(torch.equal(ours, old) for ours, old in zip(trainer.parameters, before, strict=True))


@pytest.mark.parametrize(("before", "after", "optimizer"), [(1, 0, "adam"), (0, 1, "adam"), (1, 0, "muon")])
def test_goes_on_in_another_memory_format(
    accelerator: Accelerator, batches: list[torch.Tensor], before: int, after: int, optimizer: str
) -> None:
    options = {"optimizer": optimizer, "more_ema_decays": (OTHER_DECAY,)}
    whole = tiny_trainer(accelerator, channels_last=bool(before), **options)
    for images in batches[:4]:
        whole.step(images)
    resumed = tiny_trainer(accelerator, channels_last=bool(after), **options)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for ours, average in zip(resumed.parameters, resumed.averages.shadow_params, strict=True):
        assert ours.stride() == average.stride()
    for images in batches[4:]:
        whole.step(images)
        resumed.step(images)
    with resumed.averaged_weights(resumed.more_averages[0]), whole.averaged_weights(whole.more_averages[0]):
        averages = [[parameter.detach().clone() for parameter in t.parameters] for t in (resumed, whole)]
    for ours, theirs in zip([*resumed.parameters, *averages[0]], [*whole.parameters, *averages[1]], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * LEARNING_RATE)
