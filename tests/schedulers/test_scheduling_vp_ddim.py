"""VPDDIMScheduler: grids, equality with diffusers' DDIM, training formulas, diffusers' conventions and bad input."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

from diffae_hub.schedulers.scheduling_vp_ddim import VPDDIMScheduler
from diffae_hub.schedulers.scheduling_vp_ddim_inverse import VPDDIMInverseScheduler

BOTH = pytest.mark.parametrize("scheduler_class", [VPDDIMScheduler, VPDDIMInverseScheduler])
PREDICTION_TYPES = pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def official(prediction_type: str = "epsilon", clip_sample: bool = True) -> VPDDIMScheduler:
    return VPDDIMScheduler(
        noise_schedule="linear_beta",
        timestep_spacing="leading",
        prediction_type=prediction_type,
        clip_sample=clip_sample,
    )


# ---- grids ----------------------------------------------------------------------------------------------------------


def test_uniform_grid_has_k_equal_steps_from_one_to_zero():
    scheduler = VPDDIMScheduler()
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.dtype == torch.float32
    torch.testing.assert_close(scheduler.timesteps, torch.linspace(1000, 20, 50))
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [1000.0]
    scheduler.set_timesteps(1000)
    assert scheduler.timesteps.tolist() == [float(i) for i in range(1000, 0, -1)]


def test_uniform_grid_of_noise_prediction_starts_at_0_999():
    scheduler = VPDDIMScheduler(prediction_type="epsilon")
    for steps in (1, 50, 1000):
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps) == steps
        assert float(scheduler.timesteps[0]) == 999.0
    scheduler.set_timesteps(50)
    torch.testing.assert_close(scheduler.timesteps[1:], torch.linspace(980, 20, 49))


@pytest.mark.parametrize("steps, last", [(20, 950), (50, 980), (100, 990), (250, 996), (1000, 999), (1, 0), (167, 996)])
def test_leading_grid_is_the_official_stride_rule(steps, last):
    scheduler = official()
    scheduler.set_timesteps(steps)
    stride = {20: 50, 50: 20, 100: 10, 250: 4, 1000: 1, 1: 1000, 167: 6}[steps]
    assert scheduler.timesteps.tolist() == [float(i) for i in reversed(range(0, 1000, stride))]
    assert len(scheduler.timesteps) == steps
    assert float(scheduler.timesteps[0]) == last


@BOTH
@pytest.mark.parametrize("steps", [37, 41, 60, 999])
def test_leading_grid_without_a_stride(scheduler_class, steps):
    counts = {len(range(0, 1000, stride)) for stride in range(1, 1001)}
    below, above = max(c for c in counts if c < steps), min(c for c in counts if c > steps)
    with pytest.raises(ValueError, match=rf"num_inference_steps.*{below} and {above}"):
        scheduler_class(timestep_spacing="leading").set_timesteps(steps)


def test_leading_grid_exists_for_exactly_the_counts_that_a_stride_gives():
    counts = {len(range(0, 1000, stride)) for stride in range(1, 1001)}
    scheduler = official()
    for steps in range(1, 1001):
        if steps in counts:
            assert len(scheduler._leading_indices(steps)) == steps
        else:
            with pytest.raises(ValueError, match="num_inference_steps"):
                scheduler._leading_indices(steps)


# ---- against diffusers ----------------------------------------------------------------------------------------------


@PREDICTION_TYPES
@pytest.mark.parametrize("steps", [20, 50, 250])
@pytest.mark.parametrize("exact_table", [True, False])
def test_official_decoding_equals_diffusers_ddim(prediction_type, steps, exact_table, generator):
    theirs = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=prediction_type,
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="leading",
        steps_offset=0,
    )
    if exact_table:  # their table is float32, which costs sigma four of its digits at the first indices
        theirs.alphas_cumprod = torch.from_numpy(ALPHA_BAR)
    ours = official(prediction_type)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    sample = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    clamped = 0
    for t_ours, t_theirs in zip(ours.timesteps, theirs.timesteps, strict=True):
        output = torch.randn(sample.shape, generator=generator, dtype=torch.float64)
        result = ours.step(output, t_ours, sample)
        # The official code derives the noise again from the clamped image; diffusers has a switch for that.
        expected = theirs.step(output, int(t_theirs), sample, use_clipped_model_output=True)
        tolerance = 1e-9 if exact_table else 2e-4
        torch.testing.assert_close(result.prev_sample, expected.prev_sample, rtol=0, atol=tolerance)
        torch.testing.assert_close(result.pred_original_sample, expected.pred_original_sample, rtol=0, atol=tolerance)
        clamped += int((result.pred_original_sample.abs() == 1).sum())
        sample = result.prev_sample
    assert clamped > 0


@PREDICTION_TYPES
def test_official_decoding_equals_default_diffusers_step_where_nothing_is_clamped(prediction_type, generator):
    theirs = DDIMScheduler(prediction_type=prediction_type, clip_sample=True, set_alpha_to_one=True)
    theirs.alphas_cumprod = torch.from_numpy(ALPHA_BAR)
    ours = official(prediction_type)
    ours.set_timesteps(50)
    theirs.set_timesteps(50)
    for t in theirs.timesteps:
        alpha, sigma = math.sqrt(ALPHA_BAR[t]), math.sqrt(1 - ALPHA_BAR[t])
        image = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64) * 1.8 - 0.9
        noise = torch.randn(image.shape, generator=generator, dtype=torch.float64)
        output = {"sample": image, "epsilon": noise, "v_prediction": alpha * noise - sigma * image}[prediction_type]
        sample = alpha * image + sigma * noise
        result = ours.step(output, t, sample).prev_sample
        torch.testing.assert_close(result, theirs.step(output, int(t), sample).prev_sample, rtol=0, atol=1e-9)


def test_runs_in_a_pipeline_of_diffusers():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_head_dim=4,
    ).eval()
    scheduler = VPDDIMScheduler()
    pipeline = DDPMPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=2, num_inference_steps=4, generator=torch.Generator().manual_seed(1), output_type="np"
    ).images

    # The same by hand: t = 1, 3/4, 1/2, 1/4 with alpha = 1 / sqrt(1 + tan^2(pi t / 2) / 16).
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    angles = [math.pi / 2, *(math.atan(math.tan(math.pi * t / 8) / 4) for t in (3, 2, 1)), 0.0]
    for k, (here, there) in enumerate(zip(angles, angles[1:], strict=False)):
        with torch.no_grad():
            v = unet(x, 1000 - 250 * k).sample
        x = math.cos(there - here) * x + math.sin(there - here) * v
    expected = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(images, expected, atol=1e-5)


# ---- the update -----------------------------------------------------------------------------------------------------


@BOTH
@PREDICTION_TYPES
@pytest.mark.parametrize("spacing", ["uniform", "leading"])
@pytest.mark.parametrize("schedule", ["shifted_cosine", "linear_beta", "inverted"])
@pytest.mark.parametrize("steps", [1, 4, 1000])
def test_finite_on_every_grid(scheduler_class, prediction_type, spacing, schedule, steps, generator):
    scheduler = scheduler_class(noise_schedule=schedule, prediction_type=prediction_type, timestep_spacing=spacing)
    if scheduler_class is VPDDIMInverseScheduler and spacing == "uniform":
        steps = max(steps, 2)
    scheduler.set_timesteps(steps)
    more = scheduler_class is VPDDIMInverseScheduler and spacing == "uniform"
    assert len(scheduler.timesteps) == scheduler.timesteps.numel() == steps + more
    sample = torch.randn(1, 4, generator=generator)
    for t in scheduler.timesteps:
        result = scheduler.step(torch.zeros_like(sample), t, sample)
        assert result.prev_sample.isfinite().all()
        assert result.pred_original_sample.isfinite().all()
        sample = sample if steps == 1000 else result.prev_sample


@PREDICTION_TYPES
def test_the_true_output_gives_back_the_image(prediction_type, generator):
    scheduler = VPDDIMScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(10)
    image, noise = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    for index, t in enumerate(scheduler.timesteps):
        sample = scheduler.add_noise(image, noise, t)
        result = scheduler.step(scheduler.training_target(image, noise, t), t, sample)
        torch.testing.assert_close(result.pred_original_sample, image, rtol=0, atol=1e-9)
        later = scheduler.timesteps[index + 1] if index < 9 else 0
        torch.testing.assert_close(result.prev_sample, scheduler.add_noise(image, noise, later), rtol=0, atol=1e-6)
    torch.testing.assert_close(result.prev_sample, image, rtol=0, atol=1e-9)


@PREDICTION_TYPES
def test_clip_sample_clamps_the_image_and_derives_the_noise_again(prediction_type, generator):
    scheduler = VPDDIMScheduler(prediction_type=prediction_type, clip_sample=True)
    scheduler.set_timesteps(4)
    t, (alpha, sigma), (next_alpha, next_sigma) = (
        500.0,
        *((math.cos(a), math.sin(a)) for a in (math.atan(math.tan(math.pi * t / 2) / 4) for t in (0.5, 0.25))),
    )
    image = 2 * torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    sample = alpha * image + sigma * noise
    result = scheduler.step(scheduler.training_target(image, noise, t), t, sample)
    clamped = image.clamp(-1, 1)
    torch.testing.assert_close(result.pred_original_sample, clamped)
    expected = next_alpha * clamped + next_sigma * (sample - alpha * clamped) / sigma
    torch.testing.assert_close(result.prev_sample, expected)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(scheduler_class, dtype, generator):
    sample, *outputs = torch.randn(4, 2, 3, 4, 4, generator=generator).to(dtype)
    scheduler, exact = scheduler_class(), scheduler_class()
    scheduler.set_timesteps(10)
    exact.set_timesteps(10)
    for t, output in zip(scheduler.timesteps, outputs, strict=False):
        result = scheduler.step(output, t, sample)
        expected = exact.step(output.float(), t, sample.float())
        assert result.prev_sample.dtype == result.pred_original_sample.dtype == dtype
        assert torch.equal(result.prev_sample, expected.prev_sample.to(dtype))
        sample = result.prev_sample
    noisy = scheduler.add_noise(sample, output, torch.tensor([3.0, 700.0]))
    assert noisy.dtype == dtype
    assert torch.equal(noisy, scheduler.add_noise(sample.float(), output.float(), torch.tensor([3.0, 700.0])).to(dtype))


@BOTH
def test_the_first_timestep_may_be_of_any_type(scheduler_class, generator):
    scheduler = scheduler_class()
    scheduler.set_timesteps(8)
    sample, output = torch.randn(2, 2, 5, generator=generator)
    scheduler.set_begin_index(3)
    expected = scheduler.step(output, scheduler.timesteps[3], sample).prev_sample
    t = scheduler.timesteps[3]
    for form in (t, t.clone(), float(t), int(t), t.to(torch.float64), t.reshape(1)):
        scheduler.set_timesteps(8)
        assert torch.equal(scheduler.step(output, form, sample).prev_sample, expected)
        assert scheduler.step_index == 4


def test_begin_index_and_step_index():
    scheduler = VPDDIMScheduler()
    assert scheduler.step_index is None
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(2)
    assert scheduler.begin_index == 2
    sample = torch.zeros(1, 3)
    for expected, t in enumerate(scheduler.timesteps[2:].tolist(), start=3):
        scheduler.step(sample, t, sample)
        assert scheduler.step_index == expected
    scheduler.set_timesteps(5)
    assert scheduler.step_index is None
    assert scheduler.begin_index is None


def test_step_is_deterministic_and_ignores_the_generator():
    scheduler = VPDDIMScheduler()
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    sample = torch.ones(1, 3)
    as_tuple = scheduler.step(sample, 800, sample, generator=generator, return_dict=False)
    scheduler.set_timesteps(5)
    result = scheduler.step(sample, 800, sample)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(as_tuple[0], result.prev_sample)
    assert torch.equal(as_tuple[1], result.pred_original_sample)
    assert scheduler.scale_model_input(sample, 800) is sample
    assert scheduler.init_noise_sigma == 1.0
    assert scheduler.order == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@BOTH
def test_the_loop_never_waits_for_the_device(scheduler_class):
    scheduler = scheduler_class()
    scheduler.set_timesteps(10, device="cuda")
    scheduler.set_begin_index(0)
    sample = torch.zeros(2, 3, 8, 8, device="cuda")
    assert scheduler.timesteps.device.type == "cuda"
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in scheduler.timesteps:
            sample = scheduler.step(sample, t, sample).prev_sample
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert scheduler.step_index == len(scheduler.timesteps)


def test_timesteps_go_to_the_requested_device():
    scheduler = VPDDIMScheduler()
    scheduler.set_timesteps(3, device="meta")
    assert scheduler.timesteps.device.type == "meta"


# ---- training -------------------------------------------------------------------------------------------------------


def test_training_formulas_broadcast_over_the_batch(generator):
    image, noise = torch.randn(2, 4, 3, 5, 6, generator=generator, dtype=torch.float64)
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
    for one in (123.25, torch.tensor(123.25), torch.tensor([123.25])):
        torch.testing.assert_close(scheduler.add_noise(image, noise, one)[1], noisy[1])
    assert VPDDIMScheduler(prediction_type="epsilon").training_target(image, noise, timesteps) is noise
    assert VPDDIMScheduler(prediction_type="sample").training_target(image, noise, timesteps) is image


def test_training_formulas_for_vectors_and_integer_timesteps(generator):
    code, noise = torch.randn(2, 3, 8, generator=generator)
    timesteps = torch.tensor([0, 10, 999])
    alpha_bar = torch.from_numpy(ALPHA_BAR[timesteps.numpy()]).reshape(3, 1)
    expected = alpha_bar.sqrt() * code + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(official().add_noise(code, noise, timesteps), expected.float())
    theirs = DDIMScheduler().add_noise(code, noise, timesteps)
    torch.testing.assert_close(official().add_noise(code, noise, timesteps), theirs, rtol=0, atol=1e-4)


def test_training_formulas_compile_without_graph_breaks(generator):
    scheduler = VPDDIMScheduler()
    image, noise = torch.randn(2, 2, 3, 4, 4, generator=generator)
    timesteps = torch.tensor([10.0, 990.0])

    def both(x: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return scheduler.add_noise(x, eps, t), scheduler.training_target(x, eps, t)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image, noise, timesteps), both(image, noise, timesteps))


# ---- configuration --------------------------------------------------------------------------------------------------


@BOTH
def test_save_and_load(scheduler_class, tmp_path):
    config = {
        "num_train_timesteps": 500,
        "noise_schedule": "inverted",
        "scaling_factor": 2.0,
        "prediction_type": "sample",
        "timestep_spacing": "leading",
        "clip_sample": True,
    }
    scheduler_class(**config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == scheduler_class.__name__
    assert {name: saved[name] for name in config} == config
    loaded = scheduler_class.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in config} == config
    assert type(loaded) is scheduler_class
    for other_class in (VPDDIMScheduler, VPDDIMInverseScheduler):
        other = other_class.from_config(loaded.config)
        assert type(other) is other_class
        assert {name: other.config[name] for name in config} == config


@BOTH
def test_conventions_of_diffusers(scheduler_class):
    assert scheduler_class.__module__ == "diffae_hub"
    scheduler = scheduler_class()
    assert scheduler.compatibles == []
    assert len(scheduler) == len(scheduler.timesteps) == 1000
    sample = torch.ones(1, 3)
    for copied in (copy.deepcopy, lambda original: pickle.loads(pickle.dumps(original))):
        scheduler.set_timesteps(4)
        other = copied(scheduler)
        for t, t_other in zip(scheduler.timesteps, other.timesteps, strict=True):
            ours = scheduler.step(sample, t, sample).prev_sample
            assert torch.equal(other.step(sample, t_other, sample).prev_sample, ours)


def test_trailing_means_uniform(tmp_path):
    scheduler, same = VPDDIMScheduler(timestep_spacing="trailing"), VPDDIMScheduler()
    for each in (scheduler, same):
        each.set_timesteps(7)
        each.save_pretrained(tmp_path / str(id(each)))
    assert torch.equal(scheduler.timesteps, same.timesteps)
    saved = [(tmp_path / str(id(each)) / "scheduler_config.json").read_text() for each in (scheduler, same)]
    assert saved[0] == saved[1]
    assert json.loads(saved[0])["timestep_spacing"] == "uniform"


def test_the_bundled_scheduler_by_name():
    for scheduler_class in (VPDDIMScheduler, VPDDIMInverseScheduler):
        scheduler = scheduler_class.from_pretrained("cifar10-32-small", subfolder="scheduler")
        assert (scheduler.config.prediction_type, scheduler.config.scaling_factor) == ("v_prediction", 4.0)


@BOTH
@pytest.mark.parametrize(
    "argument, value",
    [
        ("noise_schedule", "cosine"),
        ("noise_schedule", None),
        ("prediction_type", "noise"),
        ("timestep_spacing", "linspace"),
        ("scaling_factor", 0),
        ("scaling_factor", -4.0),
        ("scaling_factor", math.nan),
        ("scaling_factor", math.inf),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", 100_001),
    ],
)
def test_bad_configuration(scheduler_class, argument, value, tmp_path):
    with pytest.raises(ValueError, match=argument):
        scheduler_class(**{argument: value})
    # The same from a file, where it is more likely.
    config = {"_class_name": scheduler_class.__name__, argument: value}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=argument):
        scheduler_class.from_pretrained(tmp_path)


# ---- bad input ------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("spacing", ["uniform", "leading"])
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_number_of_steps_out_of_range(scheduler_class, spacing, steps):
    with pytest.raises(ValueError, match="num_inference_steps"):
        scheduler_class(timestep_spacing=spacing).set_timesteps(steps)


def test_number_of_steps_is_an_integer():
    scheduler = VPDDIMScheduler()
    scheduler.set_timesteps(np.int64(5))
    assert len(scheduler.timesteps) == 5
    with pytest.raises(TypeError):
        scheduler.set_timesteps(10.5)


@BOTH
def test_steps_before_the_first_and_after_the_last(scheduler_class):
    scheduler, x = scheduler_class(), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, 1000, x)
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, t, x)


@pytest.mark.parametrize("timestep", [990.0, -1, math.nan, torch.tensor(1.5)])
def test_timestep_that_is_not_in_the_list(timestep):
    scheduler = VPDDIMScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="timestep"):
        scheduler.step(torch.zeros(1), timestep, torch.zeros(1))


def test_step_with_shapes_that_do_not_fit():
    scheduler = VPDDIMScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="model_output"):
        scheduler.step(torch.zeros(2, 3), 1000, torch.zeros(1, 3))


@pytest.mark.parametrize("timesteps", [-0.5, 1000.5, math.nan, math.inf, [10.0, 2000.0], [5.0, math.nan]])
def test_training_timesteps_out_of_range(timesteps):
    scheduler, x = VPDDIMScheduler(), torch.zeros(2, 3)
    for function in (scheduler.add_noise, scheduler.get_velocity, scheduler.training_target):
        with pytest.raises(ValueError, match="timesteps"):
            function(x, x, torch.tensor(timesteps))


def test_official_timesteps_end_at_999():
    with pytest.raises(ValueError, match="timesteps"):
        official().alpha_sigma(1000)


def test_training_input_that_does_not_fit():
    scheduler, x = VPDDIMScheduler(), torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="noise"):
        scheduler.add_noise(x, torch.zeros(3, 4, 4), 10)
    for timesteps in (torch.zeros(3), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match="timesteps"):
            scheduler.add_noise(x, x, timesteps)
    with pytest.raises(ValueError, match="original_samples"):
        scheduler.add_noise(x.to(torch.uint8), x.to(torch.uint8), 10)
