"""The four model classes read and write safetensors only, and only complete files."""

from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file, save_file

from diffae_hub import AttributeClassifier, ConditionedUNet2DModel, LatentCodeModel, SemanticEncoderModel

from ..conftest import TINY

MODELS = {
    SemanticEncoderModel: TINY | {"latent_head": "flatten"},
    ConditionedUNet2DModel: TINY | {"latent_spatial_size": 8},
    LatentCodeModel: {"latent_dim": 8, "hidden_dim": 16, "num_layers": 2, "time_sinusoid_dim": 8, "time_embed_dim": 12},
    AttributeClassifier: {"latent_dim": 8, "num_attributes": 3},
}
WEIGHTS = "diffusion_pytorch_model.safetensors"

each_class = pytest.mark.parametrize("model_class", MODELS)


def assert_equal(model: ModelMixin, other: ModelMixin) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


@each_class
def test_pickles_are_neither_written_nor_read(model_class, tmp_path: Path) -> None:
    model = model_class(**MODELS[model_class])
    with pytest.raises(ValueError, match="safe_serialization"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.iterdir())
    ModelMixin.save_pretrained(model, tmp_path, safe_serialization=False)
    assert (tmp_path / "diffusion_pytorch_model.bin").is_file()
    for options in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError, match="safetensors"):
            model_class.from_pretrained(tmp_path, **options)


@each_class
def test_round_trip_in_shards_and_variants(model_class, tmp_path: Path) -> None:
    model = model_class(**MODELS[model_class])
    model.save_pretrained(tmp_path, variant="ema", max_shard_size=100)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded, info = model_class.from_pretrained(tmp_path, variant="ema", output_loading_info=True)
    assert info["missing_keys"] == info["unexpected_keys"] == []
    assert_equal(model, loaded)
    for key, value in MODELS[model_class].items():
        assert loaded.config[key] == (list(value) if isinstance(value, tuple) else value)
    model.save_pretrained(tmp_path)
    model.half().save_pretrained(tmp_path, variant="fp16")
    assert_equal(model, model_class.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16))
    assert model_class.from_pretrained(tmp_path).dtype == torch.float32
    with pytest.raises(OSError, match="bf16"):
        model_class.from_pretrained(tmp_path, variant="bf16")


@each_class
def test_missing_and_extra_tensors_are_named(model_class, tmp_path: Path) -> None:
    model_class(**MODELS[model_class]).save_pretrained(tmp_path)
    intact = load_file(tmp_path / WEIGHTS)
    lacking = sorted(intact)[1]
    for key, tensors in (
        (lacking, {name: tensor for name, tensor in intact.items() if name != lacking}),
        ("another.weight", intact | {"another.weight": torch.zeros(1)}),
    ):
        save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
        for low_cpu_mem_usage in (True, False):
            with pytest.raises(ValueError, match=key) as caught:
                model_class.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
            assert str(tmp_path) in str(caught.value)
