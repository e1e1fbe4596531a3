"""DDIM sampling and inversion against the exact probability flow of Gaussian data.

For x_0 ~ N(mu, s^2) the marginal is x_t ~ N(alpha_t mu, v_t) with v_t = alpha_t^2 s^2 + sigma_t^2. The flow's map
between two times is increasing, affine, and carries one Gaussian to the other, so that (x_t - alpha_t mu) / sqrt(v_t)
stays constant on a trajectory. The optimal denoiser is E[x_0 | x_t] = mu + alpha_t s^2 / v_t (x_t - alpha_t mu), and
E[eps | x_t] = sigma_t / v_t (x_t - alpha_t mu).

With the angle phi = arcsin(sigma_t) one DDIM step is x cos(d) + v sin(d), exact up to d^2 where d is the angle of the
step. For SC-S d is about 1 / K and the error of order 1 / K: the ratio of the errors of K and 2K steps is 2. For the
inverted schedule phi is about (2 / pi)^(1/2) t^(1/4) near 0 (and mirrored near 1), so that the first and last steps
dominate with d = K^(-1/4): the error is of order K^(-1/2), and the ratio sqrt(2), which it approaches slowly.
"""

import math

import numpy as np
import pytest
import torch

from diffae_hub.schedulers.scheduling_vp_ddim import VPDDIMScheduler
from diffae_hub.schedulers.scheduling_vp_ddim_inverse import VPDDIMInverseScheduler

MEAN, DEVIATION = 0.4, 0.3
PREDICTION_TYPES = ["v_prediction", "epsilon", "sample"]
# schedule, S, range of the ratio between the errors of K and 2K steps
SCHEDULES = [
    pytest.param("shifted_cosine", 1.0, (1.9, 2.1), id="SC-1"),
    pytest.param("shifted_cosine", 4.0, (1.9, 2.1), id="SC-4"),
    pytest.param("linear_beta", 4.0, (1.8, 2.2), id="linear_beta"),
    pytest.param("inverted", 4.0, (1.25, 1.5), id="inverted"),
]
STARTS = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)


def level(schedule: str, scaling_factor: float, t: float) -> tuple[float, float]:
    """(alpha, sigma) straight from the formulas of the paper."""
    if schedule == "linear_beta":
        table = np.concatenate([[0.0], np.cumsum(np.log(1 - np.linspace(1e-4, 0.02, 1000)))])
        alpha_squared = math.exp(np.interp(1000 * t, np.arange(1001), table))
    elif schedule == "inverted":
        alpha_squared = 2 / math.pi * math.acos(math.sqrt(t))
    elif t in (0, 1):
        alpha_squared = 1 - t
    else:
        alpha_squared = 1 / (1 + (math.tan(math.pi * t / 2) / scaling_factor) ** 2)
    return math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared)


def exact_flow(x: torch.Tensor, here: tuple[float, float], there: tuple[float, float]) -> torch.Tensor:
    def deviation(alpha: float, sigma: float) -> float:
        return math.sqrt(alpha**2 * DEVIATION**2 + sigma**2)

    return there[0] * MEAN + deviation(*there) / deviation(*here) * (x - here[0] * MEAN)


def optimal_output(prediction_type: str, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    centred = (x - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)
    original, noise = MEAN + alpha * DEVIATION**2 * centred, sigma * centred
    return {"sample": original, "epsilon": noise, "v_prediction": alpha * noise - sigma * original}[prediction_type]


def walk(scheduler, x: torch.Tensor, num_steps: int) -> torch.Tensor:
    config = scheduler.config
    scheduler.set_timesteps(num_steps)
    for timestep in scheduler.timesteps:
        here = level(config.noise_schedule, config.scaling_factor, float(timestep) / 1000)
        x = scheduler.step(optimal_output(config.prediction_type, x, *here), timestep, x).prev_sample
    return x


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule, scaling_factor, ratios", SCHEDULES)
@pytest.mark.parametrize("inverts", [False, True])
def test_sampling_and_plain_inversion_converge_to_the_exact_flow(
    inverts, schedule, scaling_factor, ratios, prediction_type
):
    noisy = level(schedule, scaling_factor, 0.999 if prediction_type == "epsilon" else 1.0)
    config = {"noise_schedule": schedule, "scaling_factor": scaling_factor, "prediction_type": prediction_type}
    if inverts:
        scheduler, start = VPDDIMInverseScheduler(**config, inversion="plain"), MEAN + DEVIATION * STARTS
        exact = exact_flow(start, (1.0, 0.0), noisy)
    else:
        scheduler, start = VPDDIMScheduler(**config), STARTS
        exact = exact_flow(start, noisy, (1.0, 0.0))
    errors = [float((walk(scheduler, start, k) - exact).abs().max()) for k in (100, 200)]
    assert ratios[0] < errors[0] / errors[1] < ratios[1]
    if schedule == "shifted_cosine" and not inverts:
        assert errors[-1] < 0.02


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule, scaling_factor, ratios", SCHEDULES)
@pytest.mark.parametrize("time_exponent", [1.0, 1.75])
def test_order_of_round_trips(schedule, scaling_factor, ratios, prediction_type, time_exponent):
    """Plain inversion is of order 1 in the number of steps, predictor-corrector at least of order 2."""
    scheduler = VPDDIMScheduler(
        noise_schedule=schedule,
        scaling_factor=scaling_factor,
        prediction_type=prediction_type,
        time_exponent=time_exponent,
    )
    images = MEAN + DEVIATION * STARTS
    errors = {}
    for inversion in ("plain", "predictor_corrector"):
        inverse = VPDDIMInverseScheduler.from_config(scheduler.config, inversion=inversion)
        errors[inversion] = [
            float((walk(scheduler, walk(inverse, images, k), k) - images).abs().max()) for k in (50, 100)
        ]
    bound = {"inverted": 5 / math.sqrt(100), "linear_beta": 8 / 100}.get(schedule, 4 / 100)
    assert errors["plain"][1] < bound
    if schedule == "shifted_cosine":
        orders = {name: math.log2(coarse / fine) for name, (coarse, fine) in errors.items()}
        assert 0.9 < orders["plain"] < 1.1
        assert 1.8 < orders["predictor_corrector"] < 3.1
