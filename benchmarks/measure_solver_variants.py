"""Compares our DPM-Solver++(2M) with a third-order solver and with a first step without an evaluation.

    python benchmarks/measure_solver_variants.py validation.parquet --model cifar10-32-small --num-images 64

Each figure is the mean PSNR, in dB, between images decoded in K evaluations and in 100 steps from the same codes and
noise. "3M" extrapolates x0_hat from three levels (Lu et al., DPM-Solver++, multistep of third order). "free start"
assumes x0_hat = 0, grey, in the short step from pure noise, which leaves one more evaluation for the rest.
"""

import math

import torch
from measure_solver_ends import BATCH_SIZE, options_and_inputs

from diffae_hub import VPDPMSolverMultistepScheduler
from diffae_hub.metrics.psnr import peak_signal_to_noise_ratio


class ThirdOrder(VPDPMSolverMultistepScheduler):
    """Takes interior steps from three levels, once there are three."""

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self.originals: list[torch.Tensor] = []

    def _update(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (alpha, sigma), (next_alpha, next_sigma) = self._levels[index], self._levels[index + 1]
        levels = self._levels[max(0, index - 2) : index + 2]
        if len(levels) < 4 or levels[0][0] == 0 or next_sigma == 0:
            following, original = super()._update(index, model_output, sample)
            self.originals.append(original)
            return following, original
        original, _ = self._predict(model_output, sample, alpha, sigma)
        steps = [math.log(a / s) for a, s in levels]
        before_last, last, h = (second - first for first, second in zip(steps, steps[1:], strict=False))
        slope = (original - self.originals[-1]) * h / last
        slope_before = (self.originals[-1] - self.originals[-2]) * h / before_last
        first = slope + (slope - slope_before) * last / (last + before_last)
        second = (slope - slope_before) * h / (last + before_last)
        decay = math.expm1(-h)
        extrapolated = original - (decay / h + 1) / decay * first + ((decay + h) / h**2 - 0.5) / decay * second
        self.originals.append(original)
        self._last_original = original
        return next_alpha * extrapolated + next_sigma * (sample - alpha * extrapolated) / sigma, original


def main() -> None:
    options, pipe, codes, noise = options_and_inputs(__doc__, 64)

    @torch.no_grad()
    def decode(scheduler: VPDPMSolverMultistepScheduler, steps: int, free_start: bool = False) -> torch.Tensor:
        images = []
        for code, x_t in zip(codes.split(BATCH_SIZE), noise.split(BATCH_SIZE), strict=True):
            scheduler.set_timesteps(steps + free_start)
            for index, timestep in enumerate(scheduler.timesteps):
                if free_start and index == 0:
                    prediction = torch.zeros_like(x_t)  # at t = 1 the velocity is -x_0
                else:
                    prediction = pipe.decoder(x_t, timestep, code).sample
                x_t = scheduler.step(prediction, timestep, x_t).prev_sample
                if free_start and index == 0:
                    scheduler._last_original = None
            images.append((x_t / 2 + 0.5).clamp(0, 1))
        return torch.cat(images)

    converged = decode(VPDPMSolverMultistepScheduler.from_config(pipe.scheduler.config, lambda_max=5.0), 100)
    print("| |", " | ".join(f"K = {steps}" for steps in options.steps), "|")
    print("|---" * (1 + len(options.steps)) + "|")
    variants = {"2M": (VPDPMSolverMultistepScheduler, False), "3M": (ThirdOrder, False)}
    variants |= {f"{name}, free start": (scheduler, True) for name, (scheduler, _) in variants.items()}
    for name, (scheduler, free_start) in variants.items():
        solver = scheduler.from_config(pipe.scheduler.config)
        images = [decode(solver, steps, free_start) for steps in options.steps]
        psnr = [float(peak_signal_to_noise_ratio(batch, converged).mean()) for batch in images]
        print(f"| {name} |", " | ".join(f"{value:.1f}" for value in psnr), "|", flush=True)


if __name__ == "__main__":
    main()
