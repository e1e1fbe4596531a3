"""Export of pipelines as official checkpoints, and the way there and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffae_hub import (
    ConditionedUNet2DModel,
    DiffusionAutoencoderPipeline,
    LatentCodeModel,
    SemanticEncoderModel,
    VPDDIMScheduler,
)
from diffae_hub.cli.main import main
from diffae_hub.conversion.convert import convert_official_checkpoint
from diffae_hub.conversion.export_official import export_official_checkpoints
from diffae_hub.conversion.official_configuration import infer_autoencoder_configuration

from . import reference_network as reference
from .official_files import autoencoder_state, classifier_state, latent_state, of_group, save_lightning
from .reference_network import MINIATURE, Architecture

STATES = {"autoencoder": autoencoder_state, "latent": latent_state, "classifier": classifier_state}


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("originals")
    return {name: save_lightning(folder / f"{name}.ckpt", state(MINIATURE)) for name, state in STATES.items()}


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


def test_official_to_pipeline_and_back_is_equal_to_the_bit(pipeline_folder: Path, tmp_path: Path) -> None:
    exported = export_official_checkpoints(pipeline_folder, tmp_path / "out")
    assert {name: path.name for name, path in exported.items()} == {name: f"{name}.ckpt" for name in STATES}
    for name, path in exported.items():
        before, after = STATES[name](MINIATURE), state_dict(path)
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
    original = autoencoder_state(MINIATURE)["ema_model.out.2.weight"]
    assert torch.equal(state_dict(exported["autoencoder"])["model.out.2.weight"], original.half().float())


def small(a: Architecture = MINIATURE, encoder: dict | None = None, decoder: dict | None = None, **scheduler):
    """A pipeline of untrained networks with the official options, but for those given."""
    encoder_config, decoder_config = infer_autoencoder_configuration(reference.autoencoder_shapes(a))
    official = {"noise_schedule": "linear_beta", "prediction_type": "epsilon", "timestep_spacing": "leading"}
    return DiffusionAutoencoderPipeline(
        SemanticEncoderModel(**encoder_config | (encoder or {})),
        ConditionedUNet2DModel(**decoder_config | (decoder or {})),
        VPDDIMScheduler(**official | scheduler),
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"encoder": {"latent_head": "flatten"}}, "encoder .*latent_head"),
        ({"encoder": {"norm_num_groups": 8}}, "encoder .*norm_num_groups"),
        ({"encoder": {"patch_size": 2}}, "encoder .*patch_size"),
        ({"encoder": {"base_channels": 16}}, "decoder .*base_channels"),
        ({"decoder": {"patch_size": 2}}, "decoder .*patch_size"),
        ({"decoder": {"latent_scale_shift": True}}, "decoder .*latent_scale_shift"),
        ({"decoder": {"latent_mlp_layers": 2}}, "decoder .*latent_mlp_layers"),
        ({"decoder": {"latent_spatial_size": 8}}, "decoder .*latent_spatial_size"),
        ({"encoder": {"in_channels": 6}, "decoder": {"in_channels": 6, "out_channels": 6}}, "encoder .*in_channels"),
        ({"decoder": {"num_attention_heads": 2}}, "decoder .*num_attention_heads"),
        ({"prediction_type": "v_prediction"}, "scheduler .*prediction_type"),
        ({"noise_schedule": "shifted_cosine"}, "scheduler .*noise_schedule"),
        ({"timestep_spacing": "uniform"}, "scheduler .*timestep_spacing"),
    ],
)
def test_what_the_official_code_has_no_option_for(tmp_path: Path, options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        export_official_checkpoints(small(**options), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_latent_code_models_without_an_official_counterpart(tmp_path: Path, pipeline_folder: Path) -> None:
    pipeline = DiffusionAutoencoderPipeline.from_pretrained(pipeline_folder)
    for scheduler in (VPDDIMScheduler(), None):
        pipeline.register_modules(latent_scheduler=scheduler)
        with pytest.raises(ValueError, match="^latent_scheduler"):
            export_official_checkpoints(pipeline, tmp_path / "out")
    pipeline.register_modules(latent_code_model=LatentCodeModel(12, 20, 3, 8, 24))
    with pytest.raises(ValueError, match="^latent_code_model .*time_embed_dim"):
        export_official_checkpoints(pipeline, tmp_path / "out")


def test_other_resolutions_of_attention_survive(tmp_path: Path) -> None:
    a = replace(MINIATURE, image_size=32, attention=(16,), encoder_multipliers=(1, 2))
    path = export_official_checkpoints(small(a), tmp_path / "out")["autoencoder"]
    report = convert_official_checkpoint(path, tmp_path / "back")
    assert report.configurations["decoder"]["sample_size"] == 32
    assert {name: tuple(tensor.shape) for name, tensor in of_group(state_dict(path), "model").items()} == (
        reference.autoencoder_shapes(a)
    )


def test_command_and_output_folders(pipeline_folder: Path, tmp_path: Path, capsys) -> None:
    words = ["export-official", str(pipeline_folder), str(tmp_path / "out")]
    assert main(words) == 0
    assert f"latent: {tmp_path / 'out' / 'latent.ckpt'}" in capsys.readouterr().out
    assert main(words) == 2
    assert main([*words, "--overwrite", "--json"]) == 0
    paths = json.loads(capsys.readouterr().out)
    assert set(paths) == {"autoencoder", "latent", "classifier"}
    assert all(Path(path).is_file() for path in paths.values())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_what_was_there(pipeline_folder: Path, tmp_path: Path, capsys, file_size_limit) -> None:
    words = ["export-official", str(pipeline_folder), str(tmp_path / "out")]
    assert main(words) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with file_size_limit(50_000):
        assert main([*words, "--overwrite"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["{pipeline}", "full"], "output"),
        (["{pipeline}", "full", "--overwrite"], "output"),
        (["{pipeline}", "{pipeline}", "--overwrite"], "output"),
        (["other", "out"], "latent_scale_shift"),
        (["{pipeline}"], "OUTPUT"),
    ],
)
def test_bad_input_ends_with_one_line(
    pipeline_folder: Path, tmp_path: Path, monkeypatch, capsys, words: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    small(decoder={"latent_scale_shift": True}).save_pretrained("other")
    Path("full").mkdir()
    Path("full", "thesis.tex").write_text("x")
    assert main(["export-official", *(word.replace("{pipeline}", str(pipeline_folder)) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert named in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "other"]
