"""The pipeline on tiny real components: arithmetic against a float64 loop, round trips, conventions of diffusers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffae_hub import (
    ConditionedUNet2DModel,
    DiffusionAutoencoderPipeline,
    SemanticEncoderModel,
    VPDDIMScheduler,
)

from ..conftest import TINY, randomize


@pytest.fixture
def images(rng: torch.Generator) -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=rng) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sc4(t: float) -> tuple[float, float]:
    """alpha and sigma of SC-4, from tan: alpha / sigma = S / tan(pi t / 2)."""
    if t == 1.0:
        return 0.0, 1.0
    ratio = math.tan(math.pi * t / 2) / 4.0  # sigma / alpha
    alpha = 1.0 / math.sqrt(1.0 + ratio * ratio)
    return alpha, alpha * ratio


@pytest.mark.parametrize("steps", [1, 4])
def test_decode_equals_a_float64_loop(tiny_pipeline, steps: int) -> None:
    """Section 3's sampling with v-prediction, written out: x' = alpha' x0 + sigma' eps."""
    code, noise = torch.randn(2, 8, generator=seeded(1)), torch.randn(2, 3, 16, 16, generator=seeded(2))
    x = noise.double()
    times = [1 - k / steps for k in range(steps + 1)]
    with torch.no_grad():
        for now, after in zip(times, times[1:], strict=False):
            (alpha, sigma), (next_alpha, next_sigma) = sc4(now), sc4(after)
            velocity = tiny_pipeline.decoder(x.float(), torch.full((2,), 1000 * now), code).sample.double()
            x = next_alpha * (alpha * x - sigma * velocity) + next_sigma * (sigma * x + alpha * velocity)
    actual = tiny_pipeline.decode(code, noise=noise, num_inference_steps=steps, output_type="latent").images
    torch.testing.assert_close(actual.double(), x, atol=1e-4, rtol=1e-4)


def test_inversion_then_decoding_returns_the_image(tiny_pipeline, images) -> None:
    errors = [
        float(
            (tiny_pipeline(images, mode="inversion", num_inference_steps=k, output_type="latent").images - images).std()
        )
        for k in (25, 50, 100, 200)
    ]
    assert errors[-1] < 0.1
    assert errors == sorted(errors, reverse=True)


def test_encode_is_the_encoder(tiny_pipeline, images) -> None:
    with torch.no_grad():
        expected = tiny_pipeline.encoder(images).latent_code
    assert torch.equal(tiny_pipeline.encode(images), expected)


def test_call_is_encode_invert_decode(tiny_pipeline, images) -> None:
    output = tiny_pipeline(images, mode="inversion", num_inference_steps=5, output_type="latent")
    code = tiny_pipeline.encode(images)
    noise = tiny_pipeline.invert(images, latent_code=code, num_inference_steps=5)
    decoded = tiny_pipeline.decode(code, noise=noise, num_inference_steps=5, output_type="latent")
    assert torch.equal(output.latent_code, code)
    assert torch.equal(output.noise, noise)
    assert torch.equal(output.images, decoded.images)


def test_one_generator_per_image_makes_images_independent_of_the_batch(tiny_pipeline, images) -> None:
    options = {"num_inference_steps": 3, "output_type": "latent"}
    together = tiny_pipeline(images, generator=[seeded(7), seeded(8)], **options)
    for index, seed in enumerate((7, 8)):
        alone = tiny_pipeline(images[index : index + 1], generator=[seeded(seed)], **options)
        assert torch.equal(alone.noise[0], together.noise[index])
        torch.testing.assert_close(alone.images[0], together.images[index], atol=1e-5, rtol=1e-5)


def test_same_seed_same_output(tiny_pipeline, images) -> None:
    first, second, other = (
        tiny_pipeline(images, num_inference_steps=2, generator=seeded(s), output_type="latent").images
        for s in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_output_types_agree(tiny_pipeline, images) -> None:
    def run(output_type: str):
        return tiny_pipeline(images, num_inference_steps=2, generator=seeded(), output_type=output_type).images

    raw, tensor, array, pictures = (run(kind) for kind in ("latent", "pt", "np", "pil"))
    torch.testing.assert_close(tensor, ((raw + 1) / 2).clamp(0, 1))
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert [picture.size for picture in pictures] == [(16, 16)] * 2
    for picture, values in zip(pictures, array, strict=True):
        np.testing.assert_allclose(np.asarray(picture), values * 255, atol=0.51)


def test_return_tuple(tiny_pipeline, images) -> None:
    result = tiny_pipeline(images, num_inference_steps=1, generator=seeded(), return_dict=False, output_type="pt")
    assert [tuple(part.shape) for part in result] == [(2, 3, 16, 16), (2, 8), (2, 3, 16, 16)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_keep_a_float32_trajectory(tiny_pipeline, images, dtype: torch.dtype) -> None:
    options = {"num_inference_steps": 10, "output_type": "latent"}
    expected = tiny_pipeline(images, generator=seeded(), **options).images
    actual = tiny_pipeline.to(dtype)(images, generator=seeded(), **options)
    assert actual.images.dtype == actual.noise.dtype == torch.float32
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    assert (actual.images - expected).norm() / expected.norm() < tolerance


def test_callback_sees_and_changes_every_step(tiny_pipeline, images) -> None:
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, float(timestep), set(tensors)))
        return {"sample": torch.zeros_like(tensors["sample"])} if step == 3 else None

    output = tiny_pipeline(
        images, num_inference_steps=4, generator=seeded(), output_type="latent",
        callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["sample", "latent_code"],
    )  # fmt: skip
    assert [entry[:2] for entry in seen] == [(0, 1000.0), (1, 750.0), (2, 500.0), (3, 250.0)]
    assert all(entry[2] == {"sample", "latent_code"} for entry in seen)
    assert torch.equal(output.images, torch.zeros_like(output.images))


def test_latent_projections_run_once_per_trajectory(tiny_pipeline) -> None:
    """Nothing in the loop that does not depend on the step."""
    calls = {"latent": 0, "time": 0}
    blocks = tiny_pipeline.decoder._residual_blocks()
    for block in blocks:
        block.latent_projection.register_forward_hook(lambda *_: calls.update(latent=calls["latent"] + 1))
        block.time_projection.register_forward_hook(lambda *_: calls.update(time=calls["time"] + 1))
    tiny_pipeline.decode(torch.randn(1, 8), num_inference_steps=7, generator=seeded(), output_type="latent")
    assert calls == {"latent": len(blocks), "time": 7 * len(blocks)}


# ---- interpolation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["slerp", "lerp"])
def test_interpolation_ends_at_the_images(tiny_pipeline, images, how: str) -> None:
    output = tiny_pipeline.interpolate(
        images[0], images[1], num_frames=5, num_inference_steps=200, latent_interpolation=how, output_type="latent"
    )
    codes = tiny_pipeline.encode(images)
    assert output.images.shape == (5, 3, 16, 16)
    assert float((output.images[[0, -1]] - images).std()) < 0.1
    middle = codes.mean(dim=0)
    if how == "slerp":  # halfway on the arc: the sum of the two, scaled by 1 / (2 cos(w / 2))
        cosine = torch.nn.functional.cosine_similarity(codes[0], codes[1], dim=0)
        middle = middle / torch.cos(torch.arccos(cosine) / 2)
    torch.testing.assert_close(output.latent_code[2], middle, atol=1e-4, rtol=1e-4)


# ---- loading and saving ----------------------------------------------------------------------------------------------


def test_round_trip_is_bit_equal(tiny_pipeline, images, tmp_path: Path) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    loaded = DiffusionAutoencoderPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for mode in ("stochastic", "inversion"):
        first, second = (
            pipeline(images, mode=mode, num_inference_steps=3, generator=seeded(), output_type="latent").images
            for pipeline in (tiny_pipeline, loaded)
        )
        assert torch.equal(first, second)


def test_saved_folder(tiny_pipeline, tmp_path: Path) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DiffusionAutoencoderPipeline"
    assert index["encoder"] == ["diffae_hub", "SemanticEncoderModel"]
    assert index["decoder"] == ["diffae_hub", "ConditionedUNet2DModel"]
    assert index["scheduler"] == ["diffae_hub", "VPDDIMScheduler"]
    weights = [path.suffix for path in tmp_path.rglob("*") if path.stat().st_size > 5_000 and path.is_file()]
    assert set(weights) == {".safetensors"}


def test_float16_weights_load_as_float32_unless_asked(tiny_pipeline, tmp_path: Path) -> None:
    tiny_pipeline.to(torch.float16).save_pretrained(tmp_path)
    assert DiffusionAutoencoderPipeline.from_pretrained(tmp_path).decoder.dtype == torch.float32
    loaded = DiffusionAutoencoderPipeline.from_pretrained(tmp_path, dtype=torch.float16)
    assert loaded.decoder.dtype == loaded.encoder.dtype == torch.float16


def test_pickled_weights_are_neither_written_nor_read(tiny_pipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="safe_serialization must be True"):
        tiny_pipeline.save_pretrained(tmp_path / "a", safe_serialization=False)
    tiny_pipeline.save_pretrained(tmp_path / "b")
    weights = tmp_path / "b" / "decoder" / "diffusion_pytorch_model.safetensors"
    torch.save(tiny_pipeline.decoder.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises((OSError, ValueError)):
        DiffusionAutoencoderPipeline.from_pretrained(tmp_path / "b")


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/folder", "/no/such/folder", "a/b/c"])
def test_unknown_names_list_the_bundled_models(name: str) -> None:
    with pytest.raises(ValueError, match=r"bundled models \['cifar10-32-small'\]"):
        DiffusionAutoencoderPipeline.from_pretrained(name)


def test_damaged_weights_are_named(tiny_pipeline, tmp_path: Path) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    weights = tmp_path / "encoder" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"encoder/diffusion_pytorch_model\.safetensors is damaged or truncated"):
        DiffusionAutoencoderPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("noise_schedule", "moonlight"), ("prediction_type", "guess"), ("scaling_factor", -1)]
)
def test_bad_scheduler_configuration(tiny_pipeline, tmp_path: Path, key: str, value: object) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=key):
        DiffusionAutoencoderPipeline.from_pretrained(tmp_path)


def test_components_must_fit() -> None:
    with pytest.raises(ValueError, match="must have one latent_dim, got 8 and 9"):
        DiffusionAutoencoderPipeline(
            SemanticEncoderModel(**TINY), ConditionedUNet2DModel(**{**TINY, "latent_dim": 9}), VPDDIMScheduler()
        )


def test_model_cpu_offload_hooks_see_every_call(tiny_pipeline, images) -> None:
    """Offload moves a model when it is called through its hook: prepare_latent has to go through it as well."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Counter(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    counters = {}
    for name in ("encoder", "decoder"):
        counters[name] = Counter()
        add_hook_to_module(getattr(tiny_pipeline, name), counters[name])
    tiny_pipeline(images, num_inference_steps=3, generator=seeded(), output_type="latent")
    assert counters["encoder"].calls == 1
    assert counters["decoder"].calls == 4  # prepare_latent and three steps


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "magic"}, "mode must be one of"),
        ({"output_type": "jpeg"}, "output_type must be one of"),
        ({"num_inference_steps": 0}, "num_inference_steps must be between 1 and 1000, got 0"),
        ({"num_inference_steps": -1}, "num_inference_steps must be between 1 and 1000, got -1"),
        ({"num_inference_steps": 2000}, "num_inference_steps must be between 1 and 1000, got 2000"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer"),
        ({"generator": [seeded()]}, "generator must be one generator or a list of 2, got 1"),
        ({"generator": [seeded()] * 3}, "generator must be one generator or a list of 2, got 3"),
        ({"resize_mode": "zoom"}, "resize_mode must be None or one of"),
        ({"callback_on_step_end_tensor_inputs": ["secrets"]}, "callback_on_step_end_tensor_inputs must be among"),
    ],
)
def test_bad_arguments(tiny_pipeline, images, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(images, **{"num_inference_steps": 2, **arguments})


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (torch.zeros(2, 9), r"latent_code must have shape \(batch, 8\), got \(2, 9\)"),
        (torch.zeros(8), "latent_code must have shape"),
        (torch.zeros(0, 8), "latent_code must have shape"),
        (torch.zeros(2, 8, dtype=torch.long), "latent_code must be a floating-point tensor"),
        (torch.full((2, 8), float("nan")), "latent_code must be finite"),
        ([0.0] * 8, "latent_code must be a floating-point tensor, got list"),
    ],
)
def test_bad_latent_code(tiny_pipeline, code, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.decode(code, num_inference_steps=1)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (torch.zeros(2, 4, 16, 16), r"noise must have shape \(2, 3, height, width\), got \(2, 4, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16), "noise must have shape"),
        (torch.zeros(2, 3, 16, 16).int(), "noise must be a floating-point tensor"),
        (torch.full((2, 3, 16, 16), float("inf")), "noise must be finite"),
    ],
)
def test_bad_noise(tiny_pipeline, noise, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.decode(torch.zeros(2, 8), noise=noise, num_inference_steps=1)


def test_bad_interpolation(tiny_pipeline, images) -> None:
    with pytest.raises(ValueError, match="num_frames must be an integer of at least 2, got 1"):
        tiny_pipeline.interpolate(images[0], images[1], num_frames=1)
    with pytest.raises(ValueError, match="latent_interpolation must be one of"):
        tiny_pipeline.interpolate(images[0], images[1], latent_interpolation="jump")
    with pytest.raises(ValueError, match="image_a and image_b must be one image each"):
        tiny_pipeline.interpolate(images, images[1])


def test_one_channel_model_gives_grayscale_pictures() -> None:
    tiny = {**TINY, "in_channels": 1}
    pipeline = DiffusionAutoencoderPipeline(
        randomize(SemanticEncoderModel(**tiny)),
        randomize(ConditionedUNet2DModel(**tiny, out_channels=1)),
        VPDDIMScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    (picture,) = pipeline(colour, num_inference_steps=1, generator=seeded()).images
    assert (picture.mode, picture.size) == ("L", (16, 16))
