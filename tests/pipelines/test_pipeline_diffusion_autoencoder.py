"""The pipeline on tiny real components: arithmetic against a float64 loop, round trips, conventions of diffusers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from PIL import Image
from safetensors.torch import load_file, save_file

from diffae_hub import (
    AttributeClassifier,
    ConditionedUNet2DModel,
    DiffusionAutoencoderPipeline,
    LatentCodeModel,
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


def test_callbacks_of_diffusers_say_what_they_receive(tiny_pipeline, images) -> None:
    seen = []

    class Halving(PipelineCallback):
        tensor_inputs = ["latent_code", "sample"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            seen.append(list(callback_kwargs))
            return {"sample": callback_kwargs["sample"] / 2}

    options = {"num_inference_steps": 1, "output_type": "latent"}
    plain = tiny_pipeline(images, generator=seeded(), **options).images
    for callback in (Halving(), MultiPipelineCallbacks([Halving()])):
        halved = tiny_pipeline(images, generator=seeded(), callback_on_step_end=callback, **options).images
        torch.testing.assert_close(halved, plain / 2)
    assert seen == [["latent_code", "sample"]] * 2


def test_what_a_callback_returns_is_checked_and_cast(tiny_pipeline, images) -> None:
    def run(answer) -> torch.Tensor:
        return tiny_pipeline(
            images, num_inference_steps=2, generator=seeded(), output_type="latent",
            callback_on_step_end=lambda pipeline, step, timestep, tensors: answer(tensors["sample"]),
        ).images  # fmt: skip

    assert torch.equal(run(lambda sample: {"sample": sample.double()}), run(lambda sample: None))
    assert run(lambda sample: {"sample": sample.double()}).dtype == torch.float32
    with pytest.raises(ValueError, match=r"a tensor of shape \(2, 3, 16, 16\), got \(1, 3, 16, 16\)"):
        run(lambda sample: {"sample": sample[:1]})
    with pytest.raises(ValueError, match=r"a tensor of shape \(2, 3, 16, 16\), got float"):
        run(lambda sample: {"sample": 0.0})
    with pytest.raises(ValueError, match="callback_on_step_end must return None or a dictionary, got Tensor"):
        run(lambda sample: sample)


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


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/folder", "/no/such/folder", "a/b/c", "", "empty"])
def test_unknown_names_list_the_bundled_models(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=r"bundled models \['cifar10-32-small'\]"):
        DiffusionAutoencoderPipeline.from_pretrained(name)


def test_a_folder_of_results_does_not_hide_the_bundled_model(tiny_pipeline, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cifar10-32-small").mkdir()
    assert DiffusionAutoencoderPipeline.from_pretrained("cifar10-32-small").encoder.config.sample_size == 32
    tiny_pipeline.save_pretrained("cifar10-32-small")  # a pipeline's folder comes first
    assert DiffusionAutoencoderPipeline.from_pretrained("cifar10-32-small").encoder.config.sample_size == 16


def test_incomplete_weights_are_named(tiny_pipeline, tmp_path: Path) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    weights = tmp_path / "decoder" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_out.bias"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"decoder/diffusion_pytorch_model\.safetensors lack conv_out\.bias"):
        DiffusionAutoencoderPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model_index.json", "[]", "model_index.json must hold a JSON object, got list"),
        ("model_index.json", "{", "model_index.json must hold JSON, got Expecting"),
        ("model_index.json", '{"encoder": 3}', "model_index.json must give library and class of encoder .* got 3"),
        ("encoder/config.json", "[]", "encoder/config.json must hold a JSON object, got list"),
        ("scheduler/scheduler_config.json", "null", "scheduler_config.json must hold a JSON object, got NoneType"),
        ("encoder/config.json", '{"channel_multipliers": null}', "channel_multipliers must be a non-empty sequence"),
        ("decoder/config.json", '{"norm_num_groups": 0}', "norm_num_groups must be an integer of at least 1, got 0"),
    ],
)
def test_bad_configuration_files(tiny_pipeline, tmp_path: Path, file: str, text: str, message: str) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        DiffusionAutoencoderPipeline.from_pretrained(tmp_path)


def test_channels_last_changes_nothing_but_rounding(tiny_pipeline, images, tmp_path: Path) -> None:
    def run(pipeline) -> torch.Tensor:
        return pipeline(images, mode="inversion", num_inference_steps=10, output_type="latent").images

    contiguous = run(tiny_pipeline)
    for network in (tiny_pipeline.encoder, tiny_pipeline.decoder):
        network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(run(tiny_pipeline), contiguous, atol=1e-5, rtol=1e-5)
    tiny_pipeline.save_pretrained(tmp_path)  # safetensors hold contiguous tensors
    loaded = DiffusionAutoencoderPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(run(loaded), contiguous)


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
    def message(encoder: dict, decoder: dict, components: dict | None = None) -> str:
        with pytest.raises(ValueError) as caught:
            DiffusionAutoencoderPipeline(
                **{
                    "encoder": SemanticEncoderModel(**TINY | encoder),
                    "decoder": ConditionedUNet2DModel(**TINY | decoder),
                    "scheduler": VPDDIMScheduler(),
                }
                | (components or {})
            )
        return str(caught.value)

    assert message({}, {"latent_dim": 9}) == "encoder's latent_dim and decoder's must be the same, got 8 and 9"
    assert message({"in_channels": 1}, {}) == "encoder's in_channels and decoder's must be the same, got 1 and 3"
    assert message({}, {"out_channels": 6}) == "decoder's in_channels and out_channels must be the same, got 3 and 6"
    for encoder, decoder in (({"latent_head": "flatten"}, {}), ({}, {"latent_spatial_size": 8})):
        expected = "encoder's sample_size and decoder's must be the same, got 32 and 16"
        assert message(encoder | {"sample_size": 32}, decoder) == expected
    latent_code_model = LatentCodeModel(9, hidden_dim=16, num_layers=2, time_sinusoid_dim=8, time_embed_dim=12)
    expected = "encoder's latent_dim and {}'s must be the same, got 8 and 9"
    assert message({}, {}, {"latent_code_model": latent_code_model}) == expected.format("latent_code_model")
    classifier = AttributeClassifier(9, num_attributes=2)
    assert message({}, {}, {"attribute_classifier": classifier}) == expected.format("attribute_classifier")
    for name in ("encoder", "decoder", "scheduler"):
        assert message({}, {}, {name: None}) == f"{name} must be given, got None"


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
        ({"generator": 0}, "generator must be None, a torch.Generator or a list of 2, got int"),
        ({"generator": (seeded(), seeded())}, "generator must be .* a list of 2, got tuple"),
        ({"generator": [1, 2]}, "generator must be .* a list of 2, got int"),
        ({"generator": np.random.default_rng(0)}, "generator must be .* a list of 2, got Generator"),
        ({"callback_on_step_end": "print"}, "callback_on_step_end must be None or callable, got str"),
        ({"callback_on_step_end_tensor_inputs": ["secrets"]}, r"list of names among \['sample', .*\['secrets'\]"),
        ({"callback_on_step_end_tensor_inputs": "sample"}, "must be None or a list of names among .*, got 'sample'"),
    ],
)
def test_bad_arguments_fail_before_any_work(tiny_pipeline, images, arguments, message: str) -> None:
    worked = []
    tiny_pipeline.encoder.register_forward_hook(lambda *_: worked.append("encoder"))
    for mode in ("stochastic", "inversion"):
        with pytest.raises(ValueError, match=message):
            tiny_pipeline(images, **{"mode": mode, "num_inference_steps": 2, **arguments})
    assert not worked


@pytest.mark.parametrize("generator", [0, [seeded()], [1, 2]])
def test_decode_checks_a_generator_that_it_does_not_need(tiny_pipeline, generator) -> None:
    with pytest.raises(ValueError, match="generator must be"):
        tiny_pipeline.decode(torch.zeros(2, 8), noise=torch.zeros(2, 3, 16, 16), generator=generator)


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
        (torch.zeros(2, 3, 15, 16), "noise height and width must be divisible by 2, got 15 x 16"),
    ],
)
def test_bad_noise(tiny_pipeline, noise, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.decode(torch.zeros(2, 8), noise=noise, num_inference_steps=1)


def test_noise_of_a_decoder_of_fixed_size(tiny_encoder) -> None:
    decoder = ConditionedUNet2DModel(**TINY, latent_spatial_size=8)
    pipeline = DiffusionAutoencoderPipeline(tiny_encoder, decoder, VPDDIMScheduler())
    with pytest.raises(ValueError, match="noise height and width must be 16 for this model, got 32 x 32"):
        pipeline.decode(torch.zeros(1, 8), noise=torch.zeros(1, 3, 32, 32))


def test_bad_interpolation(tiny_pipeline, images) -> None:
    with pytest.raises(ValueError, match="num_frames must be an integer of at least 2, got 1"):
        tiny_pipeline.interpolate(images[0], images[1], num_frames=1)
    with pytest.raises(ValueError, match="latent_interpolation must be one of"):
        tiny_pipeline.interpolate(images[0], images[1], latent_interpolation="jump")
    with pytest.raises(ValueError, match=r"latent_interpolation must be one of .* got \['slerp'\]"):
        tiny_pipeline.interpolate(images[0], images[1], latent_interpolation=["slerp"])
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
