"""The networks: arithmetic against plain torch, robustness. Their sizes are tests of the presets."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from diffae_hub import ConditionedUNet2DModel, LatentCodeModel, SemanticEncoderModel
from diffae_hub.models.layers import ConditionedResidualBlock, Float32GroupNorm

from ..conftest import TINY, make_tiny_pipeline, randomize


def test_the_paper_s_residual_block_in_float64() -> None:
    """Scale and shift from the code. What official networks have, the tests of the conversion measure."""
    options = {"norm_num_groups": 4, "norm_eps": 1e-5, "dropout": 0.0, "latent_scale_shift": True}
    block = randomize(ConditionedResidualBlock(8, 12, time_embed_dim=5, latent_dim=7, **options)).double()
    hidden, time, latent = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 8, 6, 6), (2, 5), (2, 7)))
    w = block.state_dict()

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return (x @ w[f"{name}.weight"].T + w[f"{name}.bias"])[:, :, None, None]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 4, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    h = F.conv2d(F.silu(norm("norm_1", hidden)), w["conv_1.weight"], w["conv_1.bias"], padding=1)
    time_scale, time_shift = linear("time_projection", time).chunk(2, dim=1)
    latent_scale, latent_shift = linear("latent_projection", latent).chunk(2, dim=1)
    h = (norm("norm_2", h) * (1 + time_scale) + time_shift) * (1 + latent_scale) + latent_shift
    h = F.conv2d(F.silu(h), w["conv_2.weight"], w["conv_2.bias"], padding=1)
    expected = F.conv2d(hidden, w["skip.weight"], w["skip.bias"]) + h
    actual = block(hidden, time, block.latent_projection(latent))
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


def test_group_norm_of_half_precision_is_computed_in_float32() -> None:
    norm = Float32GroupNorm(4, 8, eps=1e-5).to(torch.float16)
    hidden = 200.0 + torch.randn(2, 8, 8, 8)  # variance in float16 would be lost beside the squared mean
    torch.testing.assert_close(norm(hidden.half()), F.group_norm(hidden.half().float(), 4).half(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_half_precision_and_layerwise_casting_follow_float32(tiny_encoder, tiny_decoder, dtype, tolerance) -> None:
    images, timestep = torch.rand(2, 3, 16, 16) * 2 - 1, torch.tensor([999.0, 3.0])
    latent_code = tiny_encoder(images).latent_code
    expected = tiny_decoder(images, timestep, latent_code).sample
    half = copy.deepcopy(tiny_decoder).to(dtype)(
        images.to(dtype), timestep, tiny_encoder.to(dtype)(images.to(dtype)).latent_code
    )
    # diffusers stores the weights in one dtype and computes in another.
    tiny_decoder.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32)
    casted = tiny_decoder(images, timestep, latent_code)
    assert (half.sample.dtype, casted.sample.dtype) == (dtype, torch.float32)
    for output in (half, casted):
        assert (output.sample.float() - expected).norm() / expected.norm() < tolerance


def test_compile_without_graph_breaks() -> None:
    # backend="eager" runs the captured graph: what is tested is that one whole graph is captured.
    pipeline = make_tiny_pipeline(channel_multipliers=(1,), attention_resolutions=())
    encoder, decoder = pipeline.encoder, pipeline.decoder
    images, timestep = torch.rand(2, 3, 16, 16) * 2 - 1, torch.tensor([700.0, 10.0])

    def both(images: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        conditioning = decoder.prepare_latent(encoder(images).latent_code)
        return decoder(images, timestep, None, latent_conditioning=conditioning, return_dict=False)[0]

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    with torch.no_grad():  # then activations are in place; with gradients a training is compiled in its own test
        torch.testing.assert_close(compiled(images, timestep), both(images, timestep), atol=1e-5, rtol=1e-5)

    model = randomize(LatentCodeModel(6, hidden_dim=10, num_layers=3, time_sinusoid_dim=4, time_embed_dim=5))
    z, timestep = torch.randn(3, 6), torch.tensor([0, 40, 999])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(z, timestep).sample, model(z, timestep).sample)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_encoder, tiny_decoder) -> None:
    images, timestep = torch.rand(2, 3, 16, 16) * 2 - 1, torch.tensor([700.0, 10.0])

    def gradients() -> list[torch.Tensor]:
        for model in (tiny_encoder, tiny_decoder):
            model.zero_grad()
        tiny_decoder(images, timestep, tiny_encoder(images).latent_code).sample.square().mean().backward()
        return [p.grad.clone() for model in (tiny_encoder, tiny_decoder) for p in model.parameters()]

    expected = gradients()
    for model in (tiny_encoder, tiny_decoder):
        model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing
    for actual, reference in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(actual, reference)


@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (4, (24, 10))])
def test_any_channel_count_and_size(channels: int, size: tuple[int, int]) -> None:
    pipeline, images = make_tiny_pipeline(channels), torch.rand(2, channels, *size)
    latent_code = pipeline.encoder(images).latent_code
    assert latent_code.shape == (2, 8)
    assert pipeline.decoder(images, 10, latent_code).sample.shape == images.shape


def test_bad_configuration() -> None:
    both = {"sample_size": 15, "base_channels": 0, "layers_per_block": 65, "norm_num_groups": 3, "norm_eps": math.nan}
    both |= {"dropout": 1.0, "num_attention_heads": 3, "latent_dim": 2_000_000, "patch_size": 0}
    bad = [(model, *item) for item in both.items() for model in (SemanticEncoderModel, ConditionedUNet2DModel)]
    bad += [(SemanticEncoderModel, "channel_multipliers", value) for value in ((), (1, 0))]
    bad += [(SemanticEncoderModel, "attention_resolutions", (0,)), (SemanticEncoderModel, "latent_head", "mean")]
    bad += [(ConditionedUNet2DModel, "time_embed_dim", 0), (ConditionedUNet2DModel, "latent_mlp_layers", -1)]
    bad += [(ConditionedUNet2DModel, "latent_spatial_size", 4), (LatentCodeModel, "num_layers", 1)]
    bad += [(LatentCodeModel, "hidden_dim", 10_000_000), (LatentCodeModel, "time_sinusoid_dim", 0)]
    for model_class, argument, value in bad:
        options = {} if model_class is LatentCodeModel else TINY
        with pytest.raises(ValueError, match=argument):
            model_class(**{**options, argument: value})


def test_bad_shapes(tiny_encoder, tiny_decoder) -> None:
    image, code = torch.zeros(1, 3, 16, 16), torch.zeros(1, 8)
    for network in (tiny_encoder, lambda sample: tiny_decoder(sample, 1, code)):
        with pytest.raises(ValueError, match="sample"):
            network(torch.zeros(1, 3, 15, 16))
    with pytest.raises(ValueError, match="sample"):
        SemanticEncoderModel(**TINY, latent_head="flatten")(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="sample"):
        ConditionedUNet2DModel(**TINY, latent_spatial_size=8)(torch.zeros(1, 3, 32, 32), 1, code)
    for codes in (1, 3):
        with pytest.raises(ValueError, match="latent_code"):
            tiny_decoder(image.expand(2, -1, -1, -1), 1, torch.zeros(codes, 8))
    for timestep in (torch.zeros(3), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match="timestep"):
            tiny_decoder(image.expand(2, -1, -1, -1), timestep, code.expand(2, -1))


def test_encoder_gradient_is_zero_for_two_steps_then_not() -> None:
    """Zero-initialised layers: the first step moves the output layer, the second the blocks, the third the encoder."""
    torch.manual_seed(0)
    encoder, decoder = SemanticEncoderModel(**TINY), ConditionedUNet2DModel(**TINY, latent_scale_shift=True)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    norms = []
    for _ in range(3):
        optimizer.zero_grad()
        prediction = decoder(torch.randn_like(images), 1000, encoder(images).latent_code).sample
        (prediction + images).square().mean().backward()
        norms.append(max(float(p.grad.abs().max()) for p in encoder.parameters()))
        optimizer.step()
    assert norms[0] == norms[1] == 0.0
    assert norms[2] > 0.0


def test_patches_are_channels_of_a_smaller_image(rng: torch.Generator) -> None:
    """With `patch_size=2` a network is the one of four times the channels on the rearranged image."""
    image, code = torch.randn(2, 3, 16, 16, generator=rng), torch.randn(2, 6, generator=rng)
    corners = torch.cat([image[:, c : c + 1, i::2, j::2] for c in range(3) for i in (0, 1) for j in (0, 1)], dim=1)
    patched = TINY | {"patch_size": 2, "latent_dim": 6, "dropout": 0.0, "attention_resolutions": (4,)}
    plain = {**patched, "sample_size": 8, "patch_size": 1, "in_channels": 12}

    encoder, same_encoder = SemanticEncoderModel(**patched), SemanticEncoderModel(**plain)
    same_encoder.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(encoder(image).latent_code, same_encoder(corners).latent_code)

    decoder = ConditionedUNet2DModel(**patched, latent_spatial_size=4)
    same_decoder = ConditionedUNet2DModel(**plain, out_channels=12, latent_spatial_size=4)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    same_decoder.load_state_dict(decoder.state_dict())
    output, corners = decoder(image, 300.0, code).sample, same_decoder(corners, 300.0, code).sample
    for index in range(12):
        c, i, j = index // 4, index // 2 % 2, index % 2
        torch.testing.assert_close(output[:, c, i::2, j::2], corners[:, index])
