"""Export of pipelines as official checkpoints, and the way there and back."""

import json
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
from diffae_hub.conversion.official_configuration import OFFICIAL_SCHEDULER, infer_autoencoder_configuration

from . import reference_network as reference
from .conftest import STATES
from .official_files import of_group
from .reference_network import MINIATURE


@pytest.fixture(scope="module")
def exported(pipeline_folder: Path, tmp_path_factory) -> dict[str, Path]:
    return export_official_checkpoints(pipeline_folder, tmp_path_factory.mktemp("exported") / "out")


def state_dict(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]  # our own files hold tensors and numbers only


def test_official_to_pipeline_and_back_is_equal_to_the_bit(exported, tmp_path: Path) -> None:
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
    others = {f"{name}_checkpoint": exported[name] for name in ("latent", "classifier")}
    convert_official_checkpoint(exported["autoencoder"], tmp_path / "back", **others)  # ours are read like theirs


def test_layout_of_lightning_and_shared_storage(exported) -> None:
    content = torch.load(exported["latent"], weights_only=True)
    assert (content["global_step"], content["epoch"]) == (0, 0)  # the official code prints the first
    state = content["state_dict"]
    assert state["conds_mean"].shape == (1, 12)
    distinct = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in state.values()}
    assert exported["latent"].stat().st_size < sum(distinct.values()) + 400 * len(state)
    names = {name.removeprefix("ema_").replace("linear_emb", "cond_layers.1") for name in state}
    assert len(distinct) == len(names)  # the two groups, and the layer that has two names, are stored once


def small(encoder: dict, decoder: dict, scheduler: dict) -> DiffusionAutoencoderPipeline:
    """A pipeline of untrained networks with the official options, but for those given."""
    encoder_config, decoder_config = infer_autoencoder_configuration(reference.autoencoder_shapes(MINIATURE))
    return DiffusionAutoencoderPipeline(
        SemanticEncoderModel(**encoder_config | encoder),
        ConditionedUNet2DModel(**decoder_config | decoder),
        VPDDIMScheduler(**OFFICIAL_SCHEDULER | scheduler),
    )


def test_a_pipeline_of_two_networks_in_half_precision(tmp_path: Path) -> None:
    pipeline = small({}, {}, {}).to(torch.float16)
    exported = export_official_checkpoints(pipeline, tmp_path / "out")
    assert list(exported) == ["autoencoder"]
    tensors = of_group(state_dict(exported["autoencoder"]), "model", torch.float32)
    assert torch.equal(tensors["out.2.weight"], pipeline.decoder.conv_out.weight.float())


@pytest.mark.parametrize(
    ("component", "options", "named"),
    [
        ("encoder", {"latent_head": "flatten"}, "encoder .*latent_head"),
        ("encoder", {"base_channels": 16}, "decoder .*base_channels"),
        ("decoder", {"patch_size": 2}, "decoder .*patch_size"),
        ("decoder", {"latent_scale_shift": True}, "decoder .*latent_scale_shift"),
        ("decoder", {"latent_mlp_layers": 2}, "decoder .*latent_mlp_layers"),
        ("decoder", {"num_attention_heads": 2}, "decoder .*num_attention_heads"),
        ("scheduler", {"prediction_type": "v_prediction"}, "scheduler .*prediction_type"),
        ("scheduler", {"noise_schedule": "shifted_cosine"}, "scheduler .*noise_schedule"),
        ("scheduler", {"timestep_spacing": "uniform"}, "scheduler .*timestep_spacing"),
    ],
)
def test_what_the_official_code_has_no_option_for(tmp_path: Path, component: str, options: dict, named: str) -> None:
    changed = {"encoder": {}, "decoder": {}, "scheduler": {}, component: options}
    with pytest.raises(ValueError, match=f"^{named}"):
        export_official_checkpoints(small(**changed), tmp_path / "out")
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


def test_command_and_output_folders(pipeline_folder: Path, tmp_path: Path, capsys, refusal) -> None:
    words = ["export-official", str(pipeline_folder), str(tmp_path / "out")]
    assert main(words) == 0
    assert f"latent: {tmp_path / 'out' / 'latent.ckpt'}" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for refused in (words, [*words[:2], str(tmp_path), "--overwrite"], [*words[:2], words[1], "--overwrite"]):
        assert "output" in refusal(*refused)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert (pipeline_folder / "model_index.json").is_file()
    assert main([*words, "--overwrite", "--json"]) == 0
    paths = json.loads(capsys.readouterr().out)
    assert set(paths) == {"autoencoder", "latent", "classifier"}
    assert all(Path(path).is_file() for path in paths.values())
