"""Export of pipelines as official checkpoints, and the way there and back."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffae_hub import DiffusionAutoencoderPipeline, VPDDIMScheduler
from diffae_hub.cli.export_official import export_official_arguments, run_export_official
from diffae_hub.cli.main import main
from diffae_hub.conversion.convert import convert_official_checkpoint
from diffae_hub.conversion.export_official import export_official_checkpoints

from . import reference_network as reference
from .official_files import autoencoder_state, classifier_state, latent_state, of_group, save_lightning
from .reference_network import MINIATURE, Architecture


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("originals")
    return {
        "autoencoder": save_lightning(folder / "autoencoder.ckpt", autoencoder_state(MINIATURE)),
        "latent": save_lightning(folder / "latent.ckpt", latent_state(MINIATURE)),
        "classifier": save_lightning(folder / "classifier.ckpt", classifier_state(MINIATURE)),
    }


@pytest.fixture(scope="module")
def pipeline_folder(originals, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "out"
    convert_official_checkpoint(
        originals["autoencoder"],
        folder,
        latent_checkpoint=originals["latent"],
        classifier_checkpoint=originals["classifier"],
    )
    return folder


def state_dict(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]  # our own files hold tensors and numbers only


def test_official_to_pipeline_and_back_is_equal_to_the_bit(originals, pipeline_folder: Path, tmp_path: Path) -> None:
    exported = export_official_checkpoints(pipeline_folder, tmp_path / "out")
    assert {name: path.name for name, path in exported.items()} == {
        "autoencoder": "autoencoder.ckpt",
        "latent": "latent.ckpt",
        "classifier": "classifier.ckpt",
    }
    for name, path in exported.items():
        before, after = torch.load(originals[name], weights_only=False)["state_dict"], state_dict(path)
        assert set(after) == set(before)  # the keys of the official class's state_dict()
        for key, tensor in after.items():
            assert tensor.dtype == torch.float32
            if key == "x_T":
                assert tensor.shape == (32, 3, 16, 16)
                continue
            assert tensor.shape == before[key].shape
            # The pipeline holds the averaged networks and the last classifier; they stand for both.
            source = key.replace("ema_classifier.", "classifier.")
            source = f"ema_{source}" if source.startswith("model.") else source
            assert torch.equal(tensor, before[source]), key


def test_pipeline_to_official_and_back_is_equal_to_the_bit(pipeline_folder: Path, tmp_path: Path) -> None:
    exported = export_official_checkpoints(pipeline_folder, tmp_path / "official")
    convert_official_checkpoint(
        exported["autoencoder"],
        tmp_path / "back",
        latent_checkpoint=exported["latent"],
        classifier_checkpoint=exported["classifier"],
    )
    before, after = (DiffusionAutoencoderPipeline.from_pretrained(f) for f in (pipeline_folder, tmp_path / "back"))
    for name in ("encoder", "decoder", "latent_code_model", "attribute_classifier"):
        one, other = getattr(before, name), getattr(after, name)
        assert dict(one.config) | {"_name_or_path": ""} == dict(other.config) | {"_name_or_path": ""}
        assert one.state_dict().keys() == other.state_dict().keys()
        for key, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[key])
    for name in ("scheduler", "latent_scheduler"):
        assert dict(getattr(before, name).config) == dict(getattr(after, name).config)


@pytest.mark.parametrize("ema", [True, False])
def test_the_latent_checkpoint_alone_is_a_whole_pipeline(pipeline_folder: Path, tmp_path: Path, ema: bool) -> None:
    exported = export_official_checkpoints(pipeline_folder, tmp_path / "official")
    report = convert_official_checkpoint(exported["latent"], tmp_path / "back", ema=ema)
    assert set(report.parameters) == {"encoder", "decoder", "latent_code_model"}


def test_layout_of_lightning_and_shared_storage(pipeline_folder: Path, tmp_path: Path) -> None:
    path = export_official_checkpoints(pipeline_folder, tmp_path / "out")["latent"]
    content = torch.load(path, weights_only=True)
    assert content["global_step"] == 0  # the official code prints it
    assert content["epoch"] == 0
    assert content["pytorch-lightning_version"]
    state = content["state_dict"]
    name = "latent_net.layers.0.linear_emb.weight"
    storages = {
        state[f"{group}.{alias}"].untyped_storage().data_ptr()
        for group in ("model", "ema_model")
        for alias in (name, name.replace("linear_emb", "cond_layers.1"))
    }
    assert len(storages) == 1
    distinct = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in state.values()}
    assert path.stat().st_size < sum(distinct.values()) + 400 * len(state)
    assert state["conds_mean"].shape == (1, 12)


def test_an_exported_network_computes_the_same(pipeline_folder: Path, tmp_path: Path) -> None:
    w = of_group(state_dict(export_official_checkpoints(pipeline_folder, tmp_path / "out")["autoencoder"]), "ema_model")
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(pipeline_folder)
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([5, 700])
    with torch.no_grad():
        code = pipeline.encoder(x).latent_code
        noise = pipeline.decoder(x, t, code).sample
    torch.testing.assert_close(code.double(), reference.encode(w, MINIATURE, x.double()), atol=1e-4, rtol=0)
    expected = reference.predict_noise(w, MINIATURE, x.double(), t, code.double())
    torch.testing.assert_close(noise.double(), expected, atol=1e-4, rtol=0)


def test_a_pipeline_of_two_networks_in_half_precision(originals, tmp_path: Path) -> None:
    convert_official_checkpoint(originals["autoencoder"], tmp_path / "pipeline")
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(tmp_path / "pipeline").to(torch.float16)
    exported = export_official_checkpoints(pipeline, tmp_path / "out")
    assert list(exported) == ["autoencoder"]
    original = state_dict_of(originals["autoencoder"])["ema_model.out.2.weight"]
    assert torch.equal(state_dict(exported["autoencoder"])["model.out.2.weight"], original.half().float())


def state_dict_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)["state_dict"]


def small(a: Architecture = MINIATURE, encoder: dict | None = None, decoder: dict | None = None, **scheduler):
    """A pipeline of untrained networks with the official options, but for those given."""
    from diffae_hub import ConditionedUNet2DModel, SemanticEncoderModel
    from diffae_hub.conversion.official_configuration import infer_autoencoder_configuration

    encoder_config, decoder_config = infer_autoencoder_configuration(reference.autoencoder_shapes(a))
    official = {"noise_schedule": "linear_beta", "prediction_type": "epsilon", "timestep_spacing": "leading"}
    return DiffusionAutoencoderPipeline(
        SemanticEncoderModel(**encoder_config | (encoder or {})),
        ConditionedUNet2DModel(**decoder_config | (decoder or {})),
        VPDDIMScheduler(**official | scheduler),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": {"latent_head": "flatten"}}, "encoder must have latent_head='pool' for the official code"),
        ({"encoder": {"norm_num_groups": 8}}, "encoder must have norm_num_groups=32"),
        ({"encoder": {"base_channels": 16}}, "decoder must have base_channels=16 for the official code, got 8"),
        ({"decoder": {"latent_scale_shift": True}}, "decoder must have latent_scale_shift=False"),
        ({"decoder": {"latent_mlp_layers": 2}}, "decoder must have latent_mlp_layers=0"),
        ({"decoder": {"latent_spatial_size": 8}}, "decoder must have latent_spatial_size=None"),
        (
            {"encoder": {"in_channels": 6}, "decoder": {"in_channels": 6, "out_channels": 6}},
            "encoder must have in_channels=3",
        ),
        ({"decoder": {"num_attention_heads": 2}}, "decoder must have num_attention_heads=1"),
        ({"prediction_type": "v_prediction"}, "scheduler must have prediction_type='epsilon'"),
        ({"noise_schedule": "shifted_cosine"}, "scheduler must have noise_schedule='linear_beta'"),
        ({"timestep_spacing": "uniform"}, "scheduler must have timestep_spacing='leading'"),
    ],
)
def test_what_the_official_code_has_no_option_for(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_official_checkpoints(small(**options), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_latent_code_models_without_an_official_counterpart(tmp_path: Path, pipeline_folder: Path) -> None:
    from diffae_hub import LatentCodeModel

    pipeline = DiffusionAutoencoderPipeline.from_pretrained(pipeline_folder)
    pipeline.register_modules(latent_scheduler=VPDDIMScheduler())
    with pytest.raises(ValueError, match="latent_scheduler must have noise_schedule='constant_beta'"):
        export_official_checkpoints(pipeline, tmp_path / "out")
    pipeline.register_modules(latent_scheduler=None)
    with pytest.raises(ValueError, match="latent_scheduler must be there with a latent_code_model"):
        export_official_checkpoints(pipeline, tmp_path / "out")
    pipeline.register_modules(latent_code_model=LatentCodeModel(12, 20, 3, 8, 24))
    with pytest.raises(ValueError, match="latent_code_model must have time_embed_dim=12 for the official code, got 24"):
        export_official_checkpoints(pipeline, tmp_path / "out")


def test_other_resolutions_of_attention_survive(tmp_path: Path) -> None:
    a = replace(MINIATURE, image_size=32, attention=(16,), encoder_multipliers=(1, 2))
    path = export_official_checkpoints(small(a), tmp_path / "out")["autoencoder"]
    report = convert_official_checkpoint(path, tmp_path / "back")
    assert report.configurations["decoder"]["sample_size"] == 32
    assert {name: tuple(tensor.shape) for name, tensor in of_group(state_dict(path), "model").items()} == (
        reference.autoencoder_shapes(a)
    )


def test_output_folders(pipeline_folder: Path, tmp_path: Path) -> None:
    export_official_checkpoints(pipeline_folder, tmp_path / "out")
    with pytest.raises(ValueError, match="output must be a new or empty folder"):
        export_official_checkpoints(pipeline_folder, tmp_path / "out")
    export_official_checkpoints(pipeline_folder, tmp_path / "out", overwrite=True)
    with pytest.raises(ValueError, match="one with a autoencoder.ckpt|one with an autoencoder.ckpt"):
        export_official_checkpoints(pipeline_folder, pipeline_folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_command(pipeline_folder: Path, tmp_path: Path, capsys) -> None:
    parser = argparse.ArgumentParser()
    export_official_arguments(parser)
    words = [str(pipeline_folder), str(tmp_path / "out")]
    assert run_export_official(parser.parse_args(words)) == 0
    assert f"latent: {tmp_path / 'out' / 'latent.ckpt'}" in capsys.readouterr().out
    assert run_export_official(parser.parse_args([*words, "--overwrite", "--json"])) == 0
    paths = json.loads(capsys.readouterr().out)
    assert set(paths) == {"autoencoder", "latent", "classifier"}
    assert all(Path(path).is_file() for path in paths.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{pipeline}", "full"], "output must be a new or empty folder"),
        (["{pipeline}", "full", "--overwrite"], "with --overwrite one with a autoencoder.ckpt"),
        (["other", "out"], "decoder must have latent_scale_shift=False for the official code, got True"),
        (["{pipeline}"], "OUT_DIR"),
    ],
)
def test_bad_input_ends_with_one_line(
    pipeline_folder: Path, tmp_path: Path, monkeypatch, capsys, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    small(decoder={"latent_scale_shift": True}).save_pretrained("other")
    Path("full").mkdir()
    Path("full", "thesis.tex").write_text("x")
    assert main(["export-official", *(word.replace("{pipeline}", str(pipeline_folder)) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(message, captured.err)
    assert captured.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "other"]
