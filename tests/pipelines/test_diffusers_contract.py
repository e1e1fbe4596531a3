"""What diffusers expects of a pipeline: saving, loading, variants, dtypes, callbacks, offloading, components."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from diffae_hub import (
    AttributeClassifier,
    DiffusionAutoencoderPipeline,
    LatentCodeModel,
    SemanticEncoderModel,
    VPDDIMInverseScheduler,
    VPDDIMScheduler,
    VPDPMSolverMultistepScheduler,
)

from ..conftest import make_tiny_pipeline, seeded

MODES = ("stochastic", "inversion")


def run(pipeline, images: torch.Tensor, mode: str = "stochastic", **options: object) -> torch.Tensor:
    options = {"num_inference_steps": 3, "generator": seeded(), "output_type": "latent"} | options
    return pipeline(images, mode=mode, **options).images


# ---- saving and loading ----------------------------------------------------------------------------------------------


def test_saved_folder_loads_to_the_bit(tiny_pipeline, images, tmp_path: Path) -> None:
    before = [run(tiny_pipeline, images, mode) for mode in MODES]
    tiny_pipeline.save_pretrained(tmp_path)
    loaded = DiffusionAutoencoderPipeline.from_pretrained(tmp_path)
    assert all(torch.equal(run(loaded, images, mode), old) for mode, old in zip(MODES, before, strict=True))
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"][-1] == "DiffusionAutoencoderPipeline"  # behind the name of its loader file
    assert index["encoder"] == ["diffae_hub", "SemanticEncoderModel"]
    tiny_pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    assert (tmp_path / "half" / "encoder" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    loaded = DiffusionAutoencoderPipeline.from_pretrained(tmp_path / "half", variant="fp16")
    assert torch.equal(run(loaded, images), before[0])
    with pytest.raises(ValueError, match="safe_serialization"):
        tiny_pipeline.save_pretrained(tmp_path / "a", safe_serialization=False)


def test_subclasses_load_as_ours(tiny_pipeline, images, tmp_path: Path) -> None:
    class Mine(SemanticEncoderModel):
        pass

    class MyPipeline(DiffusionAutoencoderPipeline):
        pass

    encoder = Mine.from_config(tiny_pipeline.encoder.config)
    encoder.load_state_dict(tiny_pipeline.encoder.state_dict())
    MyPipeline(encoder, tiny_pipeline.decoder, tiny_pipeline.scheduler).save_pretrained(tmp_path)
    assert "import DiffusionAutoencoderPipeline" in (tmp_path / "pipeline.py").read_text()
    loaded = DiffusionAutoencoderPipeline.from_pretrained(tmp_path)
    assert type(loaded.encoder) is SemanticEncoderModel
    assert torch.equal(run(loaded, images), run(tiny_pipeline, images))


def test_optional_components_are_registered_when_assigned(tiny_pipeline, tmp_path: Path) -> None:
    parts = {
        "attribute_classifier": AttributeClassifier(8, num_attributes=2, attribute_names=["a", "b"]),
        "latent_code_model": LatentCodeModel(8, hidden_dim=16, num_layers=2, time_sinusoid_dim=8, time_embed_dim=12),
        "latent_scheduler": VPDDIMScheduler(noise_schedule="constant_beta", prediction_type="epsilon"),
    }
    for name, part in parts.items():
        setattr(tiny_pipeline, name, part)
    tiny_pipeline.scheduler = VPDDIMScheduler(scaling_factor=2.0)
    tiny_pipeline.save_pretrained(tmp_path)
    loaded = DiffusionAutoencoderPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded.attribute_classifier.linear.weight, parts["attribute_classifier"].linear.weight)
    assert loaded.latent_scheduler.config.noise_schedule == "constant_beta"
    assert loaded.latent_code_model.config.hidden_dim == 16
    assert loaded.scheduler.config.scaling_factor == 2.0
    loaded.attribute_classifier = None
    loaded.save_pretrained(tmp_path / "without")
    assert DiffusionAutoencoderPipeline.from_pretrained(tmp_path / "without").attribute_classifier is None


def test_dtype_for_all_or_by_component(tiny_pipeline, images, tmp_path: Path, capfd) -> None:
    expected = run(tiny_pipeline, images)
    tiny_pipeline.save_pretrained(tmp_path)
    for dtype, encoder, decoder in (
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ({"decoder": torch.bfloat16}, torch.float32, torch.bfloat16),
        ({"default": torch.float16, "decoder": torch.float32}, torch.float16, torch.float32),
    ):
        loaded = DiffusionAutoencoderPipeline.from_pretrained(tmp_path, dtype=dtype)
        assert (loaded.encoder.dtype, loaded.decoder.dtype) == (encoder, decoder)
        assert run(loaded, images, "inversion").dtype == torch.float32  # the trajectory's
        assert (run(loaded, images) - expected).norm() / expected.norm() < 0.15
    tiny_pipeline.to(torch.bfloat16)
    assert "float32" not in capfd.readouterr().err


def test_unknown_names_list_the_bundled_models(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("no-such-model", "./no/such/folder", "/no/such/folder", "a/b/c", "", "empty"):
        with pytest.raises(ValueError, match="cifar10-32-small"):
            DiffusionAutoencoderPipeline.from_pretrained(name)


def test_a_folder_of_results_does_not_hide_the_bundled_model(tiny_pipeline, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cifar10-32-small").mkdir()
    assert DiffusionAutoencoderPipeline.from_pretrained("cifar10-32-small").encoder.config.sample_size == 32
    tiny_pipeline.save_pretrained("cifar10-32-small")  # a pipeline's folder comes first
    assert DiffusionAutoencoderPipeline.from_pretrained("cifar10-32-small").encoder.config.sample_size == 16


# ---- calling ---------------------------------------------------------------------------------------------------------


def test_callback_sees_and_changes_every_step(tiny_pipeline, images) -> None:
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, float(timestep), set(tensors)))
        return {"sample": torch.zeros_like(tensors["sample"]).double()} if step == 3 else None

    assert DiffusionAutoencoderPipeline._callback_tensor_inputs == ["sample", "latent_code"]
    output = run(
        tiny_pipeline, images, num_inference_steps=4, callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["sample", "latent_code"],
    )  # fmt: skip
    assert [entry[:2] for entry in seen] == [(0, 1000.0), (1, 750.0), (2, 500.0), (3, 250.0)]
    assert all(entry[2] == {"sample", "latent_code"} for entry in seen)
    assert torch.equal(output, torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        run(tiny_pipeline, images, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["latents"])
    with pytest.raises(ValueError, match="callback_on_step_end"):
        run(tiny_pipeline, images, callback_on_step_end=lambda *_: {"latents": images})


def test_callback_changes_the_code(tiny_pipeline, images) -> None:
    """The first update is with the images' own codes, the second with what the callback returned."""
    code, noise = tiny_pipeline.encode(images), torch.randn(images.shape, generator=seeded())
    half = []
    tiny_pipeline.decode(
        code, noise, num_inference_steps=2, callback_on_step_end=lambda *a: half.append(a[3]["sample"]) and None
    )
    scheduler = tiny_pipeline.scheduler
    scheduler.set_timesteps(2)
    with torch.no_grad():
        velocity = tiny_pipeline.decoder(half[0], scheduler.timesteps[1], code.flip(0)).sample
    expected = scheduler.step(velocity, scheduler.timesteps[1], half[0]).prev_sample
    output = run(
        tiny_pipeline, images, num_inference_steps=2, callback_on_step_end=lambda *_: {"latent_code": code.flip(0)}
    )
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_callbacks_of_diffusers_say_what_they_receive(tiny_pipeline, images) -> None:
    class Halving(PipelineCallback):
        tensor_inputs = ["latent_code", "sample"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            assert list(callback_kwargs) == self.tensor_inputs
            return {"sample": callback_kwargs["sample"] / 2}

    plain = run(tiny_pipeline, images, num_inference_steps=1)
    as_tuple = tiny_pipeline(images, num_inference_steps=1, generator=seeded(), output_type="latent", return_dict=False)
    assert torch.equal(as_tuple[0], plain)
    for callback in (Halving(), MultiPipelineCallbacks([Halving()])):
        halved = run(tiny_pipeline, images, num_inference_steps=1, callback_on_step_end=callback)
        torch.testing.assert_close(halved, plain / 2)


def test_interrupt_skips_the_rest_of_one_call(tiny_pipeline, images) -> None:
    samples = []

    def callback(pipeline, step, timestep, tensors):
        samples.append(tensors["sample"])
        pipeline._interrupt = step == 1

    output = run(tiny_pipeline, images, num_inference_steps=5, callback_on_step_end=callback)
    assert len(samples) == 2
    assert torch.equal(output, samples[-1])
    assert not torch.equal(run(tiny_pipeline, images, num_inference_steps=5), output)


def test_progress_bars_have_names(tiny_pipeline, images, capfd) -> None:
    for disable in (False, True):
        tiny_pipeline.set_progress_bar_config(disable=disable)
        tiny_pipeline(images, mode="inversion", num_inference_steps=2)
        shown = capfd.readouterr().err
        assert [name in shown for name in ("encode", "invert", "decode")] == [not disable] * 3


def test_offload(tiny_pipeline, images) -> None:
    expected = [run(tiny_pipeline, images, mode) for mode in MODES]
    tiny_pipeline.attribute_classifier = AttributeClassifier(8, num_attributes=1, attribute_names=["a"])
    edited = tiny_pipeline.edit(images[0], {"a": 0.3}, num_inference_steps=2, output_type="pt").images
    tiny_pipeline.enable_model_cpu_offload(device="cpu")
    for mode, before in zip(MODES, expected, strict=True):
        torch.testing.assert_close(run(tiny_pipeline, images, mode), before)
    again = tiny_pipeline.edit(images[0], {"a": 0.3}, num_inference_steps=2, output_type="pt").images
    torch.testing.assert_close(again, edited)


def test_compiled_or_in_channels_last(images, tmp_path: Path) -> None:
    pipeline = make_tiny_pipeline(channel_multipliers=(1,), attention_resolutions=())
    expected = run(pipeline, images)
    pipeline.encoder.compile_repeated_blocks(backend="eager")
    pipeline.decoder = torch.compile(pipeline.decoder, backend="eager")
    torch.testing.assert_close(run(pipeline, images), expected, atol=1e-5, rtol=1e-5)
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionAutoencoderPipeline.from_pretrained(tmp_path)
    for network in (loaded.encoder, loaded.decoder):
        network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(run(loaded, images), expected, atol=1e-5, rtol=1e-5)


# ---- diffusers' own schedulers ---------------------------------------------------------------------------------------


def test_inversion_is_what_the_scheduler_s_configuration_says(tiny_pipeline, images) -> None:
    plain = tiny_pipeline.invert(images, num_inference_steps=5, inversion="plain")
    corrected = tiny_pipeline.invert(images, num_inference_steps=5)
    config = VPDDIMInverseScheduler(inversion="plain").config
    for scheduler_class in (VPDDIMScheduler, VPDPMSolverMultistepScheduler, diffusers.DPMSolverMultistepScheduler):
        tiny_pipeline.scheduler = scheduler_class.from_config(config)
        assert torch.equal(tiny_pipeline.invert(images, num_inference_steps=5), plain)
        again = tiny_pipeline.invert(images, num_inference_steps=5, inversion="predictor_corrector")
        assert torch.equal(again, corrected)
    options = {"num_inference_steps": 5, "inversion": "predictor_corrector"}
    ends = tiny_pipeline.interpolate(images, num_frames=2, **options)
    edited = tiny_pipeline.edit(images, torch.zeros(8), **options)
    for output in (ends, edited):
        torch.testing.assert_close(output.noise, corrected, atol=1e-5, rtol=1e-5)


def test_a_scheduler_of_another_schedule_is_refused(tiny_pipeline, images) -> None:
    tiny_pipeline.latent_code_model = LatentCodeModel(8, hidden_dim=16, num_layers=2)
    tiny_pipeline.latent_scheduler = diffusers.DDIMScheduler()
    with pytest.raises(ValueError, match="^scheduler"):
        tiny_pipeline.sample(num_inference_steps=2)
    tiny_pipeline.scheduler = diffusers.DDIMScheduler()
    for call in (tiny_pipeline, tiny_pipeline.invert):
        with pytest.raises(ValueError, match="^scheduler"):
            call(images, num_inference_steps=2)
