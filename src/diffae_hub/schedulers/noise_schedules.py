"""Noise schedules: pure functions from the time t to (alpha_t, sigma_t), with x_t = alpha_t x_0 + sigma_t noise.

All of them are variance preserving, alpha_t^2 + sigma_t^2 = 1, with t = 0 the clean image, exactly (1, 0), and t = 1
the noisiest one (section 3 of the paper). Times in [0, 1] of any shape give alpha and sigma of that shape. Everything
is computed in float64, and alpha and sigma each from their own well-conditioned expression: sqrt(1 - alpha^2) would
lose every digit of sigma near t = 0, where DDIM inversion starts.
"""

import functools
import math

import torch
import torch.nn.functional as F

NOISE_SCHEDULES = ("shifted_cosine", "linear_beta", "inverted", "constant_beta")

# The smallest alpha^2 that diffusers' solvers, which divide by alpha, use themselves.
SMALLEST_ALPHA_BAR = 2**-24


def shifted_cosine(t: torch.Tensor, scaling_factor: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The shifted cosine schedule SC-S: alpha_t = sqrt(sigmoid(-2 ln tan(pi t / 2) + 2 ln S)) (section 3).

    The argument of the sigmoid is the log signal-to-noise ratio ln(alpha^2 / sigma^2). S = 1 is the cosine schedule
    alpha_t = cos(pi t / 2). S = 4, which the paper recommends, adds 2 ln 4 = 2.77 to its log-SNR: there is *less* noise
    at a given t, and more of the steps are at low noise levels. Beware of the direction: for high-resolution images
    Hoogeboom et al. use S = 32 / width, which is below 1 and gives *more* noise at a given t.

    At t = 1 it is exactly (0, 1).
    """
    t = t.to(torch.float64)
    half_pi = math.pi / 2
    # cos(pi t / 2) is taken as sin(pi (1 - t) / 2), which is exactly 0 at t = 1; cos(pi / 2) is 6e-17 in floats. The
    # logarithms of the two zeros then give an infinite log-SNR, and the sigmoid of that is exactly 0 or 1.
    log_snr = 2 * (torch.log(torch.sin(half_pi * (1 - t))) - torch.log(torch.sin(half_pi * t)))
    log_snr = log_snr + 2 * math.log(scaling_factor)
    return torch.exp(0.5 * F.logsigmoid(log_snr)), torch.exp(0.5 * F.logsigmoid(-log_snr))


def linear_beta(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The linear-beta schedule of Ho et al., at continuous t: log(alpha_t^2) interpolates the 1000-entry table.

    The table holds alpha_{k/1000}^2 = prod_{j=1..k} (1 - beta_j), with beta from 1e-4 to 0.02 in equal steps, and 1 at
    t = 0. It never reaches pure noise: alpha_1 = 0.0064.
    """
    t = t.to(torch.float64)
    table = _log_alpha_bar_table(t.device)
    position = t * 1000
    lower = position.floor().clamp(0, 999).long()
    log_alpha_bar = table[lower] + (position - lower) * (table[lower + 1] - table[lower])
    # sigma^2 = 1 - exp(log_alpha_bar), kept to full relative precision where log_alpha_bar is close to 0.
    return torch.exp(0.5 * log_alpha_bar), torch.sqrt(-torch.expm1(log_alpha_bar))


@functools.lru_cache(maxsize=8)
def _log_alpha_bar_table(device: torch.device) -> torch.Tensor:
    """log(alpha_{k/1000}^2) for k = 0..1000, float64."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return F.pad(torch.cumsum(torch.log1p(-betas), dim=0), (1, 0)).to(device)


def inverted(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The "inverted" schedule of Hudson et al. as the paper reconstructs it: alpha_t = sqrt((2 / pi) arccos(sqrt(t))).

    At t = 1 it is exactly (0, 1).
    """
    t = t.to(torch.float64)
    signal, noise = torch.sqrt(1 - t), torch.sqrt(t)
    # arccos(sqrt t) and its complement arcsin(sqrt t), by atan2 because both lose digits near the ends.
    half_pi = math.pi / 2
    return torch.sqrt(torch.atan2(signal, noise) / half_pi), torch.sqrt(torch.atan2(noise, signal) / half_pi)


def constant_beta(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The schedule of the official latent code models: 1000 steps of beta = 0.008, alpha_t^2 = (1 - 0.008)^(1000 t).

    It never reaches pure noise: alpha_1 = 0.0180.
    """
    log_alpha_bar = t.to(torch.float64) * (1000 * math.log1p(-0.008))
    return torch.exp(0.5 * log_alpha_bar), torch.sqrt(-torch.expm1(log_alpha_bar))


def alpha_sigma(
    noise_schedule: str, t: torch.Tensor | float, scaling_factor: float = 4.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha_t, sigma_t) of the schedule called `noise_schedule`, one of `NOISE_SCHEDULES`.

    On the device of t; float64, or float32 where the device has no float64. `scaling_factor` is S of the shifted
    cosine schedule; the others do not use it.
    """
    check_choice("noise_schedule", noise_schedule, NOISE_SCHEDULES)
    t = torch.as_tensor(t)
    if t.device.type == "mps":
        alpha, sigma = alpha_sigma(noise_schedule, t.cpu(), scaling_factor)
        return alpha.float().to(t.device), sigma.float().to(t.device)
    if noise_schedule == "shifted_cosine":
        return shifted_cosine(t, scaling_factor)
    return {"linear_beta": linear_beta, "inverted": inverted, "constant_beta": constant_beta}[noise_schedule](t)


def time_at_log_ratio(noise_schedule: str, log_ratio: torch.Tensor, scaling_factor: float = 4.0) -> torch.Tensor:
    """The time t at which ln(alpha_t / sigma_t), half the log-SNR, is `log_ratio`; by bisection, float64, same shape.

    If the schedule does not reach the value, it is the nearer end, 0 or 1.
    """
    low, high = torch.zeros_like(log_ratio, dtype=torch.float64), torch.ones_like(log_ratio, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        alpha, sigma = alpha_sigma(noise_schedule, middle, scaling_factor)
        too_clean = torch.log(alpha / sigma) > log_ratio
        low, high = torch.where(too_clean, middle, low), torch.where(too_clean, high, middle)
    return high


def discrete_betas(noise_schedule: str, num_steps: int, scaling_factor: float, max_time: float) -> list[float]:
    """The betas of diffusers' solvers: prod_{j<=i} (1 - beta_j) = alpha^2 at t = (i + 1) / num_steps, at least 2^-24.

    Times above `max_time` are replaced by it.
    """
    t = (torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps).clamp(max=max_time)
    alpha_bar = (alpha_sigma(noise_schedule, t, scaling_factor)[0] ** 2).clamp(min=SMALLEST_ALPHA_BAR)
    return (1 - alpha_bar / F.pad(alpha_bar[:-1], (1, 0), value=1.0)).tolist()


def check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    """Raises a ValueError that names the argument and its choices unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
