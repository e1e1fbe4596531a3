"""The pipeline on tiny real components: arithmetic against a float64 loop, round trips, threads, tiles, gradients."""

import doctest
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from diffae_hub import (
    AttributeClassifier,
    ConditionedUNet2DModel,
    DiffusionAutoencoderPipeline,
    LatentCodeModel,
    SemanticEncoderModel,
    VPDDIMScheduler,
    VPDPMSolverMultistepScheduler,
)
from diffae_hub.images import Tiles

from ..conftest import TINY, seeded
from ..schedulers.test_probability_flow import level


@pytest.mark.parametrize("steps", [1, 4])
def test_decode_equals_a_float64_loop(tiny_pipeline, steps: int) -> None:
    """Section 3's sampling with v-prediction, written out: x' = alpha' x0 + sigma' eps."""
    code, noise = torch.randn(2, 8, generator=seeded(1)), torch.randn(2, 3, 16, 16, generator=seeded(2))
    x = noise.double()
    times = [1 - k / steps for k in range(steps + 1)]
    with torch.no_grad():
        for now, after in zip(times, times[1:], strict=False):
            (alpha, sigma), (next_alpha, next_sigma) = (level("shifted_cosine", 4.0, t) for t in (now, after))
            velocity = tiny_pipeline.decoder(x.float(), torch.full((2,), 1000 * now), code).sample.double()
            x = next_alpha * (alpha * x - sigma * velocity) + next_sigma * (sigma * x + alpha * velocity)
    actual = tiny_pipeline.decode(code, noise=noise, num_inference_steps=steps, output_type="latent").images
    torch.testing.assert_close(actual.double(), x, atol=1e-4, rtol=1e-4)


def test_inversions_in_the_order_of_their_exactness(tiny_pipeline, images) -> None:
    def error(**options: object) -> float:
        options |= {"mode": "inversion", "num_inference_steps": 10, "output_type": "latent"}
        return float((tiny_pipeline(images, **options).images / 2 + 0.5 - images).abs().max())

    assert error(tolerance=1e-6) < 1e-5 < error() < error(inversion="plain")
    for options in ({"tolerance": 1e-30}, {"tolerance": 0.0}, {"tolerance": 1e-3, "inversion": "plain"}):
        with pytest.raises(ValueError, match="^tolerance"):
            tiny_pipeline.invert(images, num_inference_steps=3, **options)


def test_call_is_encode_invert_decode_and_takes_its_own_output(tiny_pipeline, images) -> None:
    output = tiny_pipeline(images, mode="inversion", num_inference_steps=5, output_type="pt")
    code = tiny_pipeline.encode(images)
    with torch.no_grad():
        assert torch.equal(code, tiny_pipeline.encoder(images * 2 - 1).latent_code)
    noise = tiny_pipeline.invert(images, latent_code=code, num_inference_steps=5)
    decoded = tiny_pipeline.decode(code, noise=noise, num_inference_steps=5, output_type="pt")
    for name in ("latent_code", "noise", "images"):
        assert torch.equal(output[name], decoded[name])
    from_array = tiny_pipeline.invert(images, latent_code=code.numpy(), num_inference_steps=5)
    assert torch.equal(tiny_pipeline.decode(code, from_array.numpy(), 5, output_type="pt").images, decoded.images)
    for kind in ("pil", "np", "pt"):
        again = tiny_pipeline.encode(tiny_pipeline.decode(code, noise, 2, output_type=kind).images)
        assert again.shape == code.shape


def test_output_types_agree(tiny_pipeline, images) -> None:
    def run(output_type: str):
        return tiny_pipeline(images, num_inference_steps=2, generator=seeded(), output_type=output_type).images

    raw, tensor, array, pictures = (run(kind) for kind in ("latent", "pt", "np", "pil"))
    torch.testing.assert_close(tensor, ((raw + 1) / 2).clamp(0, 1))
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    for picture, values in zip(pictures, array, strict=True):
        np.testing.assert_allclose(np.asarray(picture), values * 255, atol=0.51)


def test_latent_projections_run_once_per_trajectory(tiny_pipeline) -> None:
    """Nothing in the loop that does not depend on the step."""
    calls = []
    tiny_pipeline.decoder.down_residuals[0].latent_projection.register_forward_hook(lambda *_: calls.append(1))
    tiny_pipeline.decode(torch.randn(1, 8), num_inference_steps=7, generator=seeded(), output_type="latent")
    assert len(calls) == 1


@pytest.mark.parametrize("mode", ["stochastic", "inversion"])
def test_threads_share_a_pipeline(tiny_pipeline, images, mode: str) -> None:
    def run(steps: int) -> torch.Tensor:
        options = {"mode": mode, "num_inference_steps": steps, "output_type": "latent"}
        return tiny_pipeline(images, generator=seeded(), **options).images

    steps = [2, 5, 3, 7, 4]
    expected = [run(count) for count in steps]
    with ThreadPoolExecutor(5) as threads:
        for actual, alone in zip(threads.map(run, steps), expected, strict=True):
            assert torch.equal(actual, alone)


def test_steps_of_ones_own_with_gradients_leave_the_pipeline_usable(tiny_pipeline, images) -> None:
    code = torch.randn(2, 8, generator=seeded(), requires_grad=True)
    tiny_pipeline.scheduler = VPDPMSolverMultistepScheduler.from_config(tiny_pipeline.scheduler.config)
    options = {"noise": images, "num_inference_steps": 3, "output_type": "latent"}
    expected = tiny_pipeline.decode(code.detach(), **options).images
    scheduler, sample = tiny_pipeline.scheduler, images
    scheduler.set_timesteps(3)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(tiny_pipeline.decoder(sample, timestep, code).sample, timestep, sample).prev_sample
    torch.testing.assert_close(sample, expected, rtol=0, atol=1e-5)
    assert torch.equal(tiny_pipeline.decode(code.detach(), **options).images, expected)


def test_gradients_of_decode_are_finite_differences(tiny_pipeline) -> None:
    """Along a direction, in float64, for z and x_T; none where none is asked for."""
    tiny_pipeline.decoder.double()
    code = torch.randn(1, 8, generator=seeded(1), dtype=torch.float64)
    noise = torch.randn(1, 3, 16, 16, generator=seeded(2), dtype=torch.float64)
    target = torch.rand(1, 3, 16, 16, generator=seeded(3), dtype=torch.float64)

    def loss(code: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        images = tiny_pipeline.decode(code, noise=noise, num_inference_steps=3, output_type="latent").images
        return ((images - target) ** 2).mean()

    inputs = [code.clone().requires_grad_(), noise.clone().requires_grad_()]
    loss(*inputs).backward()
    for index, tensor in enumerate(inputs):
        direction = torch.randn(tensor.shape, generator=seeded(4), dtype=torch.float64)
        up, down = (
            loss(*[t + sign * 1e-2 * direction if i == index else t for i, t in enumerate((code, noise))])
            for sign in (1, -1)
        )
        slope = float((tensor.grad * direction).sum())
        assert float(up - down) / 2e-2 == pytest.approx(slope, rel=2e-2)
    assert not loss(code, noise).requires_grad
    assert not tiny_pipeline(target.float(), num_inference_steps=1, output_type="pt").images.requires_grad


# ---- tiles -----------------------------------------------------------------------------------------------------------


def test_tiles_are_blended_at_each_step(tiny_pipeline) -> None:
    """One step from t = 1 gives x0_hat = -v: the blended outputs of the tiles, each under its own code."""
    picture = torch.rand(1, 3, 24, 40, generator=seeded(1))
    tiny_pipeline.enable_tiling(overlap=4)
    options = {"num_inference_steps": 1, "output_type": "latent"}
    output = tiny_pipeline(picture, generator=seeded(2), **options)
    noise = torch.randn(1, 3, 24, 40, generator=seeded(2))
    tiles = Tiles(24, 40, 16, 4)
    with torch.no_grad():
        codes = tiny_pipeline.encoder(tiles.split(picture) * 2 - 1).latent_code
        velocity = tiny_pipeline.decoder(tiles.split(noise), 1000.0, codes).sample
    torch.testing.assert_close(output.latent_code, codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.images, tiles.join(-velocity), atol=1e-5, rtol=1e-4)


def test_tiles_invert_exactly_in_batches_and_pictures_keep_their_size(tiny_pipeline, monkeypatch) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (26, 37, 3), dtype=np.uint8))
    monkeypatch.setattr("diffae_hub.pipelines.stages.BATCH_SIZE", 4)
    tiny_pipeline.enable_tiling()
    options = {"mode": "inversion", "num_inference_steps": 6, "tolerance": 1e-6}
    np.testing.assert_array_equal(tiny_pipeline(picture, **options).images[0], picture)
    small = tiny_pipeline(picture.resize((10, 40)), num_inference_steps=1).images[0]
    assert small.size == (16, 16)  # does not cover a tile
    tiny_pipeline.disable_tiling()
    assert tiny_pipeline(picture, num_inference_steps=1).images[0].size == (16, 16)
    with pytest.raises(ValueError, match="^overlap"):
        tiny_pipeline.enable_tiling(overlap=16)


# ---- wrong that looks right ------------------------------------------------------------------------------------------


def test_results_that_are_not_finite_are_errors(tiny_pipeline, images) -> None:
    with pytest.raises(ValueError, match="latent_code"):
        tiny_pipeline.decode(torch.full((1, 8), 1e30), num_inference_steps=2)
    with pytest.raises(ValueError, match="half precision"):
        tiny_pipeline.to(torch.float16).decode(torch.full((1, 8), 6e4), num_inference_steps=2)
    tiny_pipeline.to(torch.float32)
    torch.nn.init.constant_(tiny_pipeline.encoder.conv_in.weight, float("nan"))
    with pytest.raises(ValueError, match="encoder"):
        tiny_pipeline.encode(images)
    torch.nn.init.constant_(tiny_pipeline.decoder.conv_in.weight, float("nan"))
    with pytest.raises(ValueError, match="decoder"):
        tiny_pipeline.decode(torch.zeros(1, 8), num_inference_steps=2)


def test_bad_arguments_fail_before_any_work(tiny_pipeline, images) -> None:
    worked = []
    tiny_pipeline.encoder.register_forward_hook(lambda *_: worked.append("encoder"))
    for mode in ("stochastic", "inversion"):
        for bad in (
            {"mode": "magic"},
            {"output_type": "jpeg"},
            {"num_inference_steps": 0},
            {"num_inference_steps": 2000},
            {"generator": [seeded()] * 3},
            {"resize_mode": "zoom"},
            {"inversion": "magic"},
            {"tolerance": -1.0},
        ):
            with pytest.raises(ValueError, match=f"^{next(iter(bad))}"):
                tiny_pipeline(images, **{"mode": mode, "num_inference_steps": 2, **bad})
    for ignored in ({"tolerance": 1e-6}, {"inversion": "plain"}):
        with pytest.raises(ValueError, match=f"^{next(iter(ignored))}|inversion"):
            tiny_pipeline(images, num_inference_steps=2, **ignored)
    assert not worked


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latent_code", torch.zeros(2, 9)),
        ("latent_code", torch.zeros(0, 8)),
        ("latent_code", torch.full((2, 8), float("nan"))),
        ("noise", torch.zeros(2, 3, 16, 16, device="meta")),
        ("noise", torch.zeros(2, 4, 16, 16)),
        ("noise", torch.zeros(2, 3, 15, 16)),
        ("generator", [seeded()]),
    ],
)
def test_bad_codes_and_noises(tiny_pipeline, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        tiny_pipeline.decode(**{"latent_code": torch.zeros(2, 8), "num_inference_steps": 1, name: value})


@pytest.mark.parametrize(
    ("encoder", "decoder", "others", "named"),
    [
        ({}, {"latent_dim": 9}, {}, "decoder.*latent_dim"),
        ({"in_channels": 1}, {}, {}, "in_channels"),
        ({}, {"out_channels": 6}, {}, "out_channels"),
        ({"latent_head": "flatten", "sample_size": 32}, {}, {}, "sample_size"),
        ({"sample_size": 32}, {"latent_spatial_size": 8}, {}, "sample_size"),
        ({}, {}, {"latent_code_model": LatentCodeModel(9, 16, 2, 8, 12)}, "^latent_code_model"),
        ({}, {}, {"attribute_classifier": AttributeClassifier(9, 2)}, "^attribute_classifier"),
    ],
)
def test_components_must_fit(encoder: dict, decoder: dict, others: dict, named: str) -> None:
    networks = SemanticEncoderModel(**TINY | encoder), ConditionedUNet2DModel(**TINY | decoder)
    with pytest.raises(ValueError, match=named):
        DiffusionAutoencoderPipeline(*networks, VPDDIMScheduler(), **others)


def test_images_get_the_size_of_networks_that_replace_others(tiny_pipeline) -> None:
    larger = TINY | {"sample_size": 32}
    tiny_pipeline.encoder, tiny_pipeline.decoder = SemanticEncoderModel(**larger), ConditionedUNet2DModel(**larger)
    output = tiny_pipeline(Image.new("RGB", (40, 40)), mode="inversion", num_inference_steps=2)
    assert (output.images[0].size, output.noise.shape) == ((32, 32), (1, 3, 32, 32))


def test_the_example_in_the_docstring_runs() -> None:
    text = DiffusionAutoencoderPipeline.__call__.__doc__.replace("```py", "").replace("```", "")
    results = doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(text, {}, "example", None, 0))
    assert results.attempted >= 8
    assert results.failed == 0
