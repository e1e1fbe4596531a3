"""Conversion of official checkpoints: configuration, names, and numbers against a reference in plain float64."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffae_hub import (
    ConditionedUNet2DModel,
    DiffusionAutoencoderPipeline,
    LatentCodeModel,
    SemanticEncoderModel,
    VPDDIMScheduler,
)
from diffae_hub.cli.main import main
from diffae_hub.conversion.convert import convert_official_checkpoint
from diffae_hub.conversion.official_configuration import (
    CELEBA_ATTRIBUTES,
    OFFICIAL_LATENT_SCHEDULER,
    infer_autoencoder_configuration,
    infer_latent_code_model_configuration,
)
from diffae_hub.conversion.official_names import official_tensors

from . import reference_network as reference
from .official_files import autoencoder_state, classifier_state, latent_state, of_group, save_lightning, statistics
from .reference_network import CELEBA64, FFHQ128, FFHQ256, MINIATURE, TINY, Architecture

load = DiffusionAutoencoderPipeline.from_pretrained


def convert(tmp_path: Path, state: dict[str, Any], **options: Any) -> DiffusionAutoencoderPipeline:
    convert_official_checkpoint(save_lightning(tmp_path / "last.ckpt", state), tmp_path / "out", **options)
    return load(tmp_path / "out")


# ---- configuration and names -----------------------------------------------------------------------------------------


def check_networks(models: tuple[nn.Module, ...], shapes: reference.Shapes, parameters: list[int] | None) -> None:
    """Every tensor of ours has one of theirs, every one of theirs is used once, and the published counts are met."""
    tensors = [tensor for model in models for tensor in official_tensors(model)]
    names = [(name, tensor.official_shape) for tensor in tensors for name in tensor.official_names]
    assert len(names) == len(shapes)
    assert dict(names) == shapes
    assert len(tensors) == sum(len(list(model.parameters())) for model in models)
    if parameters:
        assert [sum(parameter.numel() for parameter in model.parameters()) for model in models] == parameters


@pytest.mark.parametrize(
    ("a", "options", "parameters"),
    [
        (FFHQ256, {}, [30_150_400, 138_341_891]),
        (FFHQ128, {}, [24_673_536, 103_871_619]),
        (CELEBA64, {}, [19_320_512, 71_518_723]),
        (replace(TINY, blocks=2, encoder_blocks=2), {}, None),
        (replace(TINY, blocks=3, encoder_multipliers=(1, 2, 4)), {"encoder_layers_per_block": 1}, None),
        (replace(TINY, image_size=64, decoder_multipliers=(1, 2, 4), encoder_multipliers=(1, 2, 2, 4)), {}, None),
        (replace(TINY, attention=(16, 32)), {"image_size": 32}, None),
        (replace(TINY, attention=()), {"image_size": 32}, None),
        (replace(TINY, attention=(8,)), {"image_size": 32}, None),
        (replace(TINY, image_size=16, decoder_multipliers=(1,), encoder_multipliers=(2, 1)), {}, None),
    ],
)
def test_autoencoders_are_inferred(a: Architecture, options: dict[str, int], parameters: list[int] | None) -> None:
    shapes = reference.autoencoder_shapes(a)
    encoder, decoder = infer_autoencoder_configuration(shapes, **options)
    assert encoder["sample_size"] == decoder["sample_size"] == a.image_size
    with torch.device("meta"):
        models = SemanticEncoderModel(**encoder), ConditionedUNet2DModel(**decoder)
    check_networks(models, shapes, parameters)


@pytest.mark.parametrize(("layers", "parameters"), [(10, 54_109_696), (20, 117_106_176)])
def test_published_latent_code_models_are_inferred(layers: int, parameters: int) -> None:
    shapes = reference.latent_net_shapes(replace(FFHQ256, latent_layers=layers))
    with torch.device("meta"):
        model = LatentCodeModel(**infer_latent_code_model_configuration(shapes))
    check_networks((model,), shapes, [parameters])


@pytest.mark.parametrize(
    ("change", "options", "tensor", "named"),
    [
        ({"attention": (16, 32)}, {}, {}, "image_size"),
        ({"attention": ()}, {}, {}, "image_size"),
        ({}, {"image_size": 30}, {}, "image_size"),
        ({}, {"image_size": 0}, {}, "image_size"),
        ({"blocks": 3}, {}, {}, "encoder_layers_per_block"),
        ({}, {}, {"time_embed.time_embed.0.weight": ()}, "checkpoint .*time_embed.0.weight"),
        ({}, {}, {"out.2.weight": (0, 16, 3, 3)}, "checkpoint .*out.2.weight"),
    ],
)
def test_networks_that_cannot_be_inferred(change: dict, options: dict, tensor: dict, named: str) -> None:
    shapes = reference.autoencoder_shapes(replace(TINY, **change)) | tensor
    with pytest.raises(ValueError, match=f"^{named}"):
        infer_autoencoder_configuration(shapes, **options)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "options"),
    [
        (TINY, {}),
        (replace(TINY, blocks=2, encoder_blocks=2, decoder_multipliers=(1, 2, 4)), {}),
        (replace(TINY, heads=4, attention=(16, 8)), {"num_attention_heads": 4}),
    ],
    ids=["tiny", "deeper", "heads"],
)
def test_codes_and_noise_predictions(tmp_path: Path, a: Architecture, options: dict) -> None:
    state = autoencoder_state(a)
    pipeline, w = convert(tmp_path, state, **options), of_group(state, "ema_model")
    generator = torch.Generator().manual_seed(0)
    size = a.image_size
    images = torch.rand(3, 3, size, size, generator=generator) * 2 - 1
    noisy, t = torch.randn(3, 3, size, size, generator=generator), torch.tensor([0, 321, 999])
    with torch.no_grad():
        code = pipeline.encoder(images).latent_code
        noise = pipeline.decoder(noisy, t, code).sample
    torch.testing.assert_close(code.double(), reference.encode(w, a, images.double()), atol=1e-4, rtol=0)
    expected = reference.predict_noise(w, a, noisy.double(), t, code.double())
    assert expected.std() > 0.1
    torch.testing.assert_close(noise.double(), expected, atol=1e-4, rtol=0)


def test_decoding_and_inversion_trajectories(pipeline_folder: Path) -> None:
    pipeline, w = load(pipeline_folder), of_group(latent_state(MINIATURE), "ema_model")
    generator = torch.Generator().manual_seed(0)
    code, noise = torch.randn(1, 12, generator=generator), torch.randn(1, 3, 16, 16, generator=generator)
    images = pipeline.decode(code, noise=noise, num_inference_steps=50, output_type="latent").images
    expected = reference.decode(w, MINIATURE, noise.double(), code.double(), 50)
    assert expected.std() > 0.1
    torch.testing.assert_close(images.double(), expected, atol=1e-3, rtol=0)

    image = torch.rand(1, 3, 16, 16, generator=generator) * 2 - 1
    inverted = pipeline.invert(image / 2 + 0.5, num_inference_steps=20)
    code = reference.encode(w, MINIATURE, image.double())
    expected = reference.invert(w, MINIATURE, image.double(), code, 20)
    assert expected.std() > 0.1
    torch.testing.assert_close(inverted.double(), expected, atol=1e-3, rtol=0)


def test_latent_predictions_and_attributes(pipeline_folder: Path) -> None:
    pipeline, state, classifier = load(pipeline_folder), latent_state(MINIATURE), classifier_state(MINIATURE)
    noise, t = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 500, 999])
    with torch.no_grad():
        prediction = pipeline.latent_code_model(noise, t).sample
    expected = reference.predict_latent_noise(of_group(state, "ema_model"), MINIATURE, noise.double(), t)
    torch.testing.assert_close(prediction.double(), expected, atol=1e-4, rtol=0)
    assert dict(pipeline.latent_scheduler.config) == dict(VPDDIMScheduler(**OFFICIAL_LATENT_SCHEDULER).config)

    normalized = (noise.double() - classifier["conds_mean"].double()) / classifier["conds_std"].double()
    # The last weights, not the averaged ones: those are what official editing uses.
    expected = normalized @ classifier["classifier.weight"].double().T + classifier["classifier.bias"].double()
    torch.testing.assert_close(pipeline.attribute_classifier(noise).logits.double(), expected, atol=1e-4, rtol=0)
    assert list(pipeline.attribute_classifier.config.attribute_names) == list(CELEBA_ATTRIBUTES)


# ---- where the parts come from ---------------------------------------------------------------------------------------


def test_one_file_with_everything(tmp_path: Path) -> None:
    state = latent_state(MINIATURE) | classifier_state(MINIATURE, attributes=1)
    pipeline = convert(tmp_path, state)
    assert torch.equal(pipeline.latent_code_model.latent_mean, state["conds_mean"][0])
    assert torch.equal(pipeline.attribute_classifier.latent_std, state["conds_std"][0])
    assert torch.equal(pipeline.attribute_classifier.linear.weight, state["classifier.weight"])
    assert pipeline.attribute_classifier.config.attribute_names is None
    pipeline = convert(tmp_path, state, ema=False, ema_classifier=True, overwrite=True)
    weight = state["model.latent_net.layers.3.linear.weight"]
    assert torch.equal(pipeline.latent_code_model.linear_out.weight, weight)
    assert torch.equal(pipeline.attribute_classifier.linear.weight, state["ema_classifier.weight"])


def test_statistics_from_latent_pkl(tmp_path: Path) -> None:
    state, values, file = latent_state(MINIATURE), statistics(MINIATURE, seed=8), tmp_path / "latent.pkl"
    bare = {name: tensor for name, tensor in state.items() if not name.startswith("conds")}
    torch.save({"conds": torch.zeros(5, 12), **values}, file)
    model = convert(tmp_path, bare, latent_stats=file).latent_code_model
    assert torch.equal(model.latent_mean, values["conds_mean"])
    assert torch.equal(model.latent_std, values["conds_std"])
    # The checkpoint's own are taken where it has them.
    model = convert(tmp_path, state, latent_stats=file, overwrite=True).latent_code_model
    assert torch.equal(model.latent_mean, state["conds_mean"][0])


def test_parts_that_belong_to_other_encoders_are_warnings(tmp_path: Path) -> None:
    classifier = classifier_state(MINIATURE)
    classifier |= {name: tensor[None] for name, tensor in statistics(MINIATURE, seed=8).items()}
    report = convert_official_checkpoint(
        save_lightning(tmp_path / "last.ckpt", autoencoder_state(MINIATURE)),
        tmp_path / "out",
        latent_checkpoint=save_lightning(tmp_path / "latent.ckpt", latent_state(MINIATURE, seed=50)),
        classifier_checkpoint=save_lightning(tmp_path / "classifier.ckpt", classifier),
    )
    assert len(report["warnings"]) == 2


def test_image_size_of_the_noise_buffer_and_the_argument(tmp_path: Path) -> None:
    state = autoencoder_state(replace(MINIATURE, image_size=32))  # attention at 16, the second level
    state["x_T"] = torch.zeros(4, 3, 64, 64)  # attention at 32 then
    pipeline = convert(tmp_path, state)
    assert (pipeline.decoder.config.sample_size, list(pipeline.decoder.config.attention_resolutions)) == (64, [32])
    assert convert(tmp_path, state, overwrite=True, image_size=16).decoder.config.sample_size == 16
    del state["x_T"]
    assert convert(tmp_path, state, overwrite=True).decoder.config.sample_size == 32


def test_averaged_weights_alone_in_half_precision_are_enough(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in autoencoder_state(MINIATURE).items() if name.startswith("ema")}
    weight = convert(tmp_path, state).decoder.conv_in.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["ema_model.input_blocks.0.0.weight"].float())


# ---- every tensor is accounted for -----------------------------------------------------------------------------------

CONV = "ema_model.output_blocks.1.0.out_layers.3.weight"
LATENT_ALIAS = "ema_model.latent_net.layers.1.cond_layers.1.bias"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({CONV: None}, CONV),
        ({CONV: torch.zeros(16, 16, 3, 2)}, CONV),
        ({CONV: torch.zeros(16, 16, 3, 3, dtype=torch.int64)}, CONV),
        ({CONV: torch.zeros(1).expand(16, 16, 3, 3)}, CONV),
        ({CONV: torch.zeros(16, 16, 3, 3).to_sparse()}, "checkpoint"),
        ({3: torch.zeros(1)}, "3"),
        ({"ema_model.encoder.out.3.bias": torch.full((12,), math.nan)}, "encoder.out.3.bias"),
        ({"discriminator.weight": torch.zeros(1)}, "discriminator.weight"),
        ({LATENT_ALIAS: None}, LATENT_ALIAS),
        ({LATENT_ALIAS: torch.zeros(20)}, LATENT_ALIAS),
        ({"ema_model.latent_net.layers.0.linear.weight": None}, "latent_net.layers.0.linear.weight"),
        ({"classifier.bias": torch.zeros(3)}, "classifier.bias"),
        ({"classifier.bias": None, "classifier.weight": None}, "weight"),
        ({"classifier.weight": torch.zeros(40, 11)}, "conds_mean"),
        ({"conds_mean": None}, "latent_stats"),
        ({"conds_std": torch.zeros(12)}, "conds_std"),
        ({"conds_mean": torch.full((12,), math.nan)}, "conds_mean"),
    ],
)
def test_unknown_missing_and_misshapen_tensors_are_named(tmp_path: Path, change: dict, named: str) -> None:
    state: dict = latent_state(MINIATURE) | classifier_state(MINIATURE) | change
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(ValueError, match=named):
        convert(tmp_path, state)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_names_in_messages_are_short_and_printable(tmp_path: Path) -> None:
    state = latent_state(MINIATURE)
    for name in ("ema_model.\x1b]0;title\x07", "\x1b[31m", "ema_model." + "x" * 10**6, (b"\x07",)):
        with pytest.raises(ValueError, match="^checkpoint") as caught:
            convert(tmp_path, state | {name: torch.zeros(1)})
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600


def test_weights_that_are_views_of_one_storage_are_refused(tmp_path: Path) -> None:
    """A file of a megabyte would become one of any size."""
    state = autoencoder_state(MINIATURE)
    numbers = torch.randn(max(tensor.numel() for tensor in state.values()))
    shared = {name: numbers[: tensor.numel()].view(tensor.shape) for name, tensor in state.items()}
    with pytest.raises(RuntimeError):
        convert(tmp_path, shared)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_wrong_kind_of_checkpoint(tmp_path: Path) -> None:
    autoencoder = save_lightning(tmp_path / "autoencoder.ckpt", autoencoder_state(MINIATURE))
    classifier = save_lightning(tmp_path / "classifier.ckpt", classifier_state(MINIATURE))
    other = save_lightning(tmp_path / "other.ckpt", classifier_state(replace(MINIATURE, latent=10)))
    plain = tmp_path / "plain.ckpt"
    torch.save({"weights": torch.zeros(1)}, plain)
    for named, checkpoint, arguments in (
        ("checkpoint", classifier, {}),
        ("checkpoint", plain, {}),
        ("latent_checkpoint", autoencoder, {"latent_checkpoint": classifier}),
        ("latent_checkpoint", autoencoder, {"latent_checkpoint": tmp_path / "nothing"}),
        ("classifier_checkpoint", autoencoder, {"classifier_checkpoint": autoencoder}),
        (".*latent_dim", autoencoder, {"classifier_checkpoint": other}),
    ):
        with pytest.raises(ValueError, match=f"^{named}"):
            convert_official_checkpoint(checkpoint, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


# ---- files -----------------------------------------------------------------------------------------------------------


def test_output_folders(tmp_path: Path) -> None:
    """What else may be replaced is the export's test."""
    checkpoint = save_lightning(tmp_path / "last.ckpt", autoencoder_state(MINIATURE))
    out, link = tmp_path / "new" / "out", tmp_path / "link"
    convert_official_checkpoint(checkpoint, out)
    link.symlink_to(out)
    inside = save_lightning(out / "last.ckpt", autoencoder_state(MINIATURE))
    for source, output in ((checkpoint, checkpoint), (inside, out)):
        with pytest.raises(ValueError, match="^output"):
            convert_official_checkpoint(source, output, overwrite=True)
    assert inside.exists()
    convert_official_checkpoint(checkpoint, link, overwrite=True)
    assert link.is_symlink()
    assert not inside.exists()
    assert load(link).decoder.config.sample_size == 16
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_peak_memory_is_at_most_twice_the_size_of_the_checkpoint(tmp_path: Path, memory_growth) -> None:
    a = replace(MINIATURE, base=64, decoder_multipliers=(1, 4), encoder_multipliers=(1, 4), image_size=32)
    state = {name: tensor for name, tensor in autoencoder_state(a).items() if not name.startswith("model.")}
    checkpoint = save_lightning(tmp_path / "last.ckpt", state)
    size = checkpoint.stat().st_size
    assert size > 30e6
    del state
    growth = memory_growth(lambda: convert_official_checkpoint(checkpoint, tmp_path / "out"))
    assert growth < 2 * size


# ---- the command -----------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys) -> None:
    checkpoint = save_lightning(tmp_path / "last.ckpt", autoencoder_state(MINIATURE))
    latent = save_lightning(tmp_path / "latent.ckpt", latent_state(MINIATURE, seed=9))
    flags = ("--latent-checkpoint", str(latent), "--no-ema", "--json")
    assert main(["convert", str(checkpoint), str(tmp_path / "out"), *flags]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1  # the warning of another encoder
    report = json.loads(captured.out)
    assert report["folder"] == str(tmp_path / "out")
    assert report["configurations"]["decoder"]["sample_size"] == 16
    pipeline = load(tmp_path / "out")
    assert report["parameters"]["decoder"] == pipeline.decoder.num_parameters()
    assert set(report["parameters"]) == {"encoder", "decoder", "latent_code_model"}
    # Without averaging the numbers come from model.*.
    assert torch.equal(pipeline.decoder.conv_out.bias, autoencoder_state(MINIATURE)["model.out.2.bias"])
