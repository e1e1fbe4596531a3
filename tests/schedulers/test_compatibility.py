"""diffusers' solvers in place of ours: they walk the model's noise schedule, or are refused."""

import json

import diffusers
import pytest
import torch

from diffae_hub import VPDDIMInverseScheduler, VPDDIMScheduler
from diffae_hub.schedulers.compatibility import network_timestep, trained_scheduler

SOLVERS = ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "DDIMScheduler",
           "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"]  # fmt: skip


@pytest.mark.parametrize("name", [*SOLVERS, "DDPMScheduler"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"noise_schedule": "linear_beta", "prediction_type": "epsilon", "timestep_spacing": "leading"},
        {"noise_schedule": "inverted", "prediction_type": "epsilon", "num_train_timesteps": 500},
    ],
    ids=["SC-4", "official", "epsilon"],
)
def test_the_model_s_own_schedule_comes_back(name, config, tmp_path) -> None:
    ours = VPDDIMScheduler(**config)
    leading = config.get("timestep_spacing") == "leading"
    solver = getattr(diffusers, name).from_config(ours.config)
    alpha, _ = ours.alpha_sigma(torch.arange(ours.config.num_train_timesteps) + (not leading))
    torch.testing.assert_close(solver.alphas_cumprod[:-1], alpha[:-1].square().float(), rtol=0, atol=1e-4)
    solver.save_pretrained(tmp_path)
    for other in (solver, type(solver).from_pretrained(tmp_path)):
        assert other.config.prediction_type == ours.config.prediction_type
        assert trained_scheduler(other).config == ours.config
        back = VPDDIMScheduler.from_config(other.config)
        assert json.loads(back.to_json_string()) == json.loads(ours.to_json_string())
    assert network_timestep(solver, 41) == (41 if leading else 42)
    assert network_timestep(ours, 41.5) == 41.5


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("LCMScheduler", {}),
        ("PNDMScheduler", {}),
        ("DDIMInverseScheduler", {}),
        ("DPMSolverMultistepInverseScheduler", {}),
        ("DDIMScheduler", {"timestep_spacing": "leading"}),
        ("DDIMScheduler", {"trained_betas": None}),
        ("DDIMScheduler", {"prediction_type": "epsilon"}),
        ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "beta_end": 0.1, "trained_betas": None}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
    ],
)
def test_what_cannot_be_known_to_share_the_schedule_is_refused(name, changes) -> None:
    solver = getattr(diffusers, name).from_config(VPDDIMScheduler().config, **changes)
    with pytest.raises(ValueError, match="config"):
        VPDDIMScheduler.from_config(getattr(diffusers, name)().config)
    for unknown in (solver, getattr(diffusers, name)(), VPDDIMInverseScheduler()):
        with pytest.raises(ValueError, match="scheduler"):
            trained_scheduler(unknown)
