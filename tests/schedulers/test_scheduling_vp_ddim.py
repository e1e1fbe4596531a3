"""VPDDIMScheduler: grids, equality with diffusers' DDIM, training formulas, diffusers' conventions and bad input."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from diffae_hub import VPDDIMInverseScheduler, VPDDIMScheduler

BOTH = pytest.mark.parametrize("scheduler_class", [VPDDIMScheduler, VPDDIMInverseScheduler])
PREDICTION_TYPES = pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
CONFIG = {
    "num_train_timesteps": 500,
    "noise_schedule": "inverted",
    "scaling_factor": 2.0,
    "prediction_type": "sample",
    "timestep_spacing": "leading",
    "clip_sample": True,
}


def official(prediction_type: str = "epsilon") -> VPDDIMScheduler:
    options = {"noise_schedule": "linear_beta", "timestep_spacing": "leading", "clip_sample": True}
    return VPDDIMScheduler(prediction_type=prediction_type, **options)


# ---- grids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction_type", "first"), [("v_prediction", 1000.0), ("epsilon", 999.0)])
@pytest.mark.parametrize("steps", [1, np.int64(50), 1000])
def test_uniform_grid_has_k_equal_steps_from_one_to_zero(prediction_type, first, steps):
    scheduler = VPDDIMScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(steps)
    assert (len(scheduler.timesteps), scheduler.timesteps.dtype) == (steps, torch.float32)
    assert float(scheduler.timesteps[0]) == first
    torch.testing.assert_close(scheduler.timesteps[1:], torch.linspace(1000, 1000 / steps, steps)[1:])


def test_a_grid_with_an_exponent_survives_other_solvers():
    squared = VPDDIMScheduler(time_exponent=2.0)
    config = DPMSolverMultistepScheduler.from_config(squared.config).config
    for scheduler in (squared, VPDDIMScheduler.from_config(config)):
        scheduler.set_timesteps(10)
        torch.testing.assert_close(scheduler.timesteps, 10 * torch.arange(10, 0, -1, dtype=torch.float32) ** 2)
    inverse = VPDDIMInverseScheduler.from_config(squared.config)
    inverse.set_timesteps(10)
    torch.testing.assert_close(inverse.timesteps, 10 * torch.arange(11, dtype=torch.float32) ** 2)
    with pytest.raises(ValueError, match="time_exponent"):
        VPDDIMScheduler(time_exponent=2.0, timestep_spacing="leading")


def test_leading_grid_is_the_official_stride_rule_and_exists_for_no_other_counts():
    counts = {len(range(0, 1000, stride)) for stride in range(1, 1001)}
    assert counts >= {1, 20, 50, 100, 167, 250, 1000}
    scheduler = official()
    for steps in range(1, 1001):
        if steps in counts:
            scheduler.set_timesteps(steps)
            stride = math.ceil(1000 / steps)
            assert scheduler.timesteps.tolist() == [float(i) for i in reversed(range(0, 1000, stride))]
        else:
            below, above = max(c for c in counts if c < steps), min(c for c in counts if c > steps)
            with pytest.raises(ValueError, match=rf"num_inference_steps.*{below} .*{above}"):
                scheduler.set_timesteps(steps)


# ---- against diffusers ----------------------------------------------------------------------------------------------


@PREDICTION_TYPES
def test_official_decoding_equals_diffusers_ddim(prediction_type, rng):
    theirs = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=prediction_type,
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="leading",
        steps_offset=0,
    )
    theirs.alphas_cumprod = torch.from_numpy(ALPHA_BAR)  # their table is float32
    ours = official(prediction_type)
    for steps in (20, 50):
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        sample = torch.randn(2, 3, 8, 8, generator=rng, dtype=torch.float64)
        clamped = 0
        for t_ours, t_theirs in zip(ours.timesteps, theirs.timesteps, strict=True):
            output = torch.randn(sample.shape, generator=rng, dtype=torch.float64)
            result = ours.step(output, t_ours, sample)
            # The official code derives the noise again from the clamped image; diffusers has a switch for that.
            expected = theirs.step(output, int(t_theirs), sample, use_clipped_model_output=True)
            for name in ("prev_sample", "pred_original_sample"):
                torch.testing.assert_close(result[name], expected[name], rtol=0, atol=1e-9)
            clamped += int((result.pred_original_sample.abs() == 1).sum())
            sample = result.prev_sample
        assert clamped > 0


# ---- the update -----------------------------------------------------------------------------------------------------


@BOTH
@PREDICTION_TYPES
@pytest.mark.parametrize("spacing", ["uniform", "leading"])
@pytest.mark.parametrize("schedule", ["shifted_cosine", "linear_beta", "inverted"])
def test_finite_on_every_grid(scheduler_class, prediction_type, spacing, schedule, rng):
    scheduler = scheduler_class(noise_schedule=schedule, prediction_type=prediction_type, timestep_spacing=spacing)
    corrects = scheduler_class is VPDDIMInverseScheduler and spacing == "uniform"
    for steps in (2 if corrects else 1, 4, 1000):
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps) == steps + corrects
        sample = torch.randn(1, 4, generator=rng)
        for t in scheduler.timesteps:
            result = scheduler.step(torch.zeros_like(sample), t, sample)
            assert result.prev_sample.isfinite().all()
            assert result.pred_original_sample.isfinite().all()
            sample = sample if steps == 1000 else result.prev_sample


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(scheduler_class, dtype, rng):
    sample, *outputs = torch.randn(4, 2, 3, 4, 4, generator=rng).to(dtype)
    scheduler, exact = scheduler_class(), scheduler_class()
    scheduler.set_timesteps(10)
    exact.set_timesteps(10)
    for t, output in zip(scheduler.timesteps, outputs, strict=False):
        result = scheduler.step(output, t, sample)
        expected = exact.step(output.float(), t, sample.float())
        assert result.prev_sample.dtype == result.pred_original_sample.dtype == dtype
        assert torch.equal(result.prev_sample, expected.prev_sample.to(dtype))
        sample = result.prev_sample
    times = torch.tensor([3.0, 700.0])
    noisy = scheduler.add_noise(sample, output, times)
    assert torch.equal(noisy, scheduler.add_noise(sample.float(), output.float(), times).to(dtype))


@BOTH
def test_a_loop_may_begin_anywhere_with_a_timestep_of_any_type(scheduler_class, rng):
    scheduler = scheduler_class()
    scheduler.set_timesteps(8)
    sample, output = torch.randn(2, 2, 5, generator=rng)
    scheduler.set_begin_index(3)
    expected = scheduler.step(output, scheduler.timesteps[3], sample).prev_sample
    t = scheduler.timesteps[3]
    for form in (t, float(t), int(t), t.to(torch.float64), t.reshape(1)):
        scheduler.set_timesteps(8)
        assert scheduler.step_index is scheduler.begin_index is None
        assert torch.equal(scheduler.step(output, form, sample).prev_sample, expected)
        assert scheduler.step_index == 4


def test_conventions_of_a_loop():
    scheduler, sample = VPDDIMScheduler(timestep_spacing="trailing"), torch.ones(1, 3)  # another word for uniform
    scheduler.set_timesteps(5, device="meta")
    assert scheduler.timesteps.device.type == "meta"
    scheduler.set_timesteps(5)
    as_tuple = scheduler.step(sample, 800, sample, generator=torch.Generator(), return_dict=False)
    scheduler.set_timesteps(5)
    assert torch.equal(as_tuple[0], scheduler.step(sample, 800, sample).prev_sample)
    assert json.loads(scheduler.to_json_string())["timestep_spacing"] == "uniform"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@BOTH
def test_the_loop_never_waits_for_the_device(scheduler_class):
    scheduler = scheduler_class()
    scheduler.set_timesteps(10, device="cuda")
    scheduler.set_begin_index(0)
    sample = torch.zeros(2, 3, 8, 8, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in scheduler.timesteps:
            sample = scheduler.step(sample, t, sample).prev_sample
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert scheduler.step_index == len(scheduler.timesteps)


# ---- training -------------------------------------------------------------------------------------------------------


def test_training_formulas_broadcast_over_the_batch(rng):
    image, noise = torch.randn(2, 4, 3, 5, 6, generator=rng, dtype=torch.float64)
    timesteps = torch.tensor([0.0, 123.25, 500.0, 1000.0], dtype=torch.float64)
    angle = np.arctan(np.tan(np.pi * timesteps.numpy() / 2000) / 4)
    angle[-1] = np.pi / 2
    alpha, sigma = (torch.from_numpy(f(angle)).reshape(4, 1, 1, 1) for f in (np.cos, np.sin))
    scheduler = VPDDIMScheduler()
    noisy, velocity = alpha * image + sigma * noise, alpha * noise - sigma * image
    torch.testing.assert_close(scheduler.add_noise(image, noise, timesteps), noisy)
    torch.testing.assert_close(scheduler.get_velocity(image, noise, timesteps), velocity)
    torch.testing.assert_close(scheduler.training_target(image, noise, timesteps), velocity)
    assert torch.equal(scheduler.add_noise(image, noise, timesteps)[0], image[0])
    assert torch.equal(scheduler.add_noise(image, noise, timesteps)[3], noise[3])  # phase 1: pure noise
    assert torch.equal(scheduler.training_target(image, noise, timesteps)[3], -image[3])  # and the image as target
    codes, indices = noise[..., 0, 0], torch.tensor([0, 10, 500, 999])  # vectors, and integers of the official rule
    alpha_bar = torch.from_numpy(ALPHA_BAR[indices.numpy()]).reshape(4, 1)
    expected = alpha_bar.sqrt() * codes + (1 - alpha_bar).sqrt() * image[..., 0, 0]
    torch.testing.assert_close(official().add_noise(codes, image[..., 0, 0], indices), expected)
    for one in (123.25, torch.tensor(123.25), torch.tensor([123.25])):
        torch.testing.assert_close(scheduler.add_noise(image, noise, one)[1], noisy[1])
    assert VPDDIMScheduler(prediction_type="epsilon").training_target(image, noise, timesteps) is noise
    assert VPDDIMScheduler(prediction_type="sample").training_target(image, noise, timesteps) is image


# ---- configuration --------------------------------------------------------------------------------------------------


@BOTH
def test_save_and_load(scheduler_class, tmp_path):
    scheduler_class(**CONFIG).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == scheduler_class.__name__
    assert {name: saved[name] for name in CONFIG} == CONFIG
    loaded = scheduler_class.from_pretrained(tmp_path)
    assert type(loaded) is scheduler_class
    assert {name: loaded.config[name] for name in CONFIG} == CONFIG
    bundled = scheduler_class.from_pretrained("cifar10-32-small", subfolder="scheduler")
    assert (bundled.config.prediction_type, bundled.config.scaling_factor) == ("v_prediction", 4.0)


BAD = {
    "noise_schedule": ("cosine", None),
    "prediction_type": ("noise",),
    "timestep_spacing": ("linspace",),
    "scaling_factor": (0, math.nan, math.inf),
    "num_train_timesteps": (0, 100_001),
    "time_exponent": (0, math.nan, math.inf),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_configuration(argument, tmp_path):
    for scheduler_class in (VPDDIMScheduler, VPDDIMInverseScheduler):
        for value in BAD[argument]:  # from a file, where it is most likely
            config = {"_class_name": scheduler_class.__name__, argument: value}
            (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
            with pytest.raises(ValueError, match=argument):
                scheduler_class.from_pretrained(tmp_path)


# ---- bad input ------------------------------------------------------------------------------------------------------


@BOTH
def test_bad_steps(scheduler_class):
    for spacing in ("uniform", "leading"):
        for steps in (0, -1, 1001):
            with pytest.raises(ValueError, match="num_inference_steps"):
                scheduler_class(timestep_spacing=spacing).set_timesteps(steps)
    scheduler, x = scheduler_class(), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, 1000, x)
    scheduler.set_timesteps(2)
    for timestep in (990.0, math.nan, torch.tensor(1.5)):
        with pytest.raises(ValueError, match="timestep"):
            scheduler.step(x, timestep, x)
    with pytest.raises(ValueError, match="model_output"):
        scheduler.step(torch.zeros(2, 3), 1000, x)
    with pytest.raises(ValueError, match="model_output and sample"):
        scheduler.step(x.long(), 1000, x.long())
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="step"):  # after the last
        scheduler.step(x, t, x)


@pytest.mark.parametrize("timesteps", [-0.5, 1000.5, math.nan, [5.0, math.nan], [1.0, 2.0, 3.0], [[1.0], [2.0]]])
def test_bad_training_timesteps(timesteps):
    scheduler, x = VPDDIMScheduler(), torch.zeros(2, 3)
    for function in (scheduler.add_noise, scheduler.training_target):
        with pytest.raises(ValueError, match="timesteps"):
            function(x, x, torch.tensor(timesteps))


def test_bad_training_images():
    scheduler, x = VPDDIMScheduler(), torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="noise"):
        scheduler.add_noise(x, torch.zeros(3, 4, 4), 10)
    with pytest.raises(ValueError, match="original_samples"):
        scheduler.add_noise(x.to(torch.uint8), x.to(torch.uint8), 10)
    with pytest.raises(ValueError, match="timesteps"):
        official().alpha_sigma(1000)  # the last official index is 999
