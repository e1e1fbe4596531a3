"""Interpolation, editing, variations and new images, against formulas written out."""

import math

import diffusers
import pytest
import torch

from diffae_hub import AttributeClassifier, DiffusionAutoencoderPipeline, LatentCodeModel, VPDDIMScheduler
from diffae_hub.pipelines.interpolation import slerp

from ..conftest import randomize, seeded

OPTIONS = {"num_inference_steps": 3, "output_type": "latent"}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=seeded())


@pytest.fixture
def with_classifier(tiny_pipeline) -> DiffusionAutoencoderPipeline:
    torch.manual_seed(0)
    classifier = randomize(AttributeClassifier(8, num_attributes=3, attribute_names=["a", "b", "c"]))
    classifier.latent_mean.copy_(torch.randn(8))
    classifier.latent_std.copy_(torch.rand(8) + 0.5)
    tiny_pipeline.attribute_classifier = classifier
    return tiny_pipeline


# ---- interpolation ---------------------------------------------------------------------------------------------------


def test_slerp_keeps_angle_and_norm_and_is_linear_where_there_is_no_arc() -> None:
    fraction = torch.tensor([0.0, 0.25, 0.6, 1.0])
    start, end = torch.tensor([1.0, 0.0]).expand(4, 2), torch.tensor([math.cos(2.0), math.sin(2.0)]).expand(4, 2)
    expected = torch.stack([torch.cos(2.0 * fraction), torch.sin(2.0 * fraction)], dim=1)
    torch.testing.assert_close(slerp(start, end, fraction), expected, atol=1e-6, rtol=0)
    start = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    result = slerp(start, torch.tensor([[3.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]), 0.25)
    assert torch.isfinite(result).all()
    torch.testing.assert_close(result[:2], torch.tensor([[1.5, 0.0], [0.5, 0.0]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("how", ["slerp", "lerp"])
def test_a_path_meets_its_images(tiny_pipeline, images, how: str) -> None:
    """Each image is the reconstruction of its own code and noise; halfway, the formula."""
    output = tiny_pipeline.interpolate(
        list(images[:3]), num_frames=5, latent_interpolation=how, noise_interpolation=how, **OPTIONS
    )
    own = tiny_pipeline(images[:3], mode="inversion", **OPTIONS)
    torch.testing.assert_close(output.images[[0, 2, 4]], own.images, atol=1e-4, rtol=1e-4)
    for tensor, ends in ((output.latent_code, own.latent_code), (output.noise, own.noise)):
        middle = ends[:2].double().mean(dim=0)
        if how == "slerp":  # halfway on the arc: the mean, divided by cos(w / 2)
            cosine = torch.nn.functional.cosine_similarity(*ends[:2].double().flatten(1), dim=0)
            middle = middle / torch.cos(torch.arccos(cosine) / 2)
        torch.testing.assert_close(tensor[1].double(), middle, atol=1e-4, rtol=1e-4)


def test_a_grid_has_its_images_at_the_corners(tiny_pipeline, images) -> None:
    output = tiny_pipeline.interpolate(list(images), num_frames=3, layout="grid", **OPTIONS)
    own = tiny_pipeline(images, mode="inversion", **OPTIONS)
    assert output.images.shape == (9, 3, 16, 16)
    torch.testing.assert_close(output.images[[0, 2, 6, 8]], own.images, atol=1e-4, rtol=1e-4)
    upper = slerp(own.latent_code[:1], own.latent_code[1:2], 0.5)
    torch.testing.assert_close(output.latent_code[1:2], upper, atol=1e-5, rtol=1e-5)


def test_stochastic_frames_share_one_noise_and_batches_change_nothing(tiny_pipeline, images, monkeypatch) -> None:
    def run() -> torch.Tensor:
        options = OPTIONS | {"mode": "stochastic", "generator": seeded(5)}
        return tiny_pipeline.interpolate(list(images[:2]), num_frames=5, **options)

    whole = run()
    assert torch.equal(whole.noise[0], whole.noise[4])
    monkeypatch.setattr("diffae_hub.pipelines.manipulation.BATCH_SIZE", 2)
    torch.testing.assert_close(run().images, whole.images, atol=1e-5, rtol=1e-5)
    seen = []
    tiny_pipeline.interpolate(
        list(images[:2]), 5, callback_on_step_end=lambda *given: seen.append(len(given[3]["sample"])), **OPTIONS
    )
    assert seen == [2] * 6 + [1] * 3  # three steps of each batch of frames


def test_bad_interpolation(tiny_pipeline, images) -> None:
    for named, bad in (
        ("num_frames", {"num_frames": 2}),
        ("num_frames", {"num_frames": 100_000}),
        ("images", {"num_frames": 100, "layout": "grid"}),
        ("latent_interpolation", {"latent_interpolation": "jump"}),
        ("noise_interpolation", {"noise_interpolation": "jump"}),
        ("layout", {"layout": "star"}),
        ("mode", {"mode": "magic"}),
        ("images", {"images": torch.zeros(3, 16, 16)}),
        ("generator", {"generator": [seeded()] * 3}),
        ("num_frames", {"images": torch.zeros(4, 3, 16, 16), "num_frames": 65, "layout": "grid"}),
    ):
        with pytest.raises(ValueError, match=f"^{named}"):
            tiny_pipeline.interpolate(**{"images": list(images[:3]), **bad})


# ---- editing ---------------------------------------------------------------------------------------------------------


def test_edit_is_the_official_formula(with_classifier, images) -> None:
    """z' = denormalise(normalise(z) + sum of a sqrt(d) w / |w|), in float64."""
    pipeline, classifier = with_classifier, with_classifier.attribute_classifier
    output = pipeline.edit(images[:2], {"a": [-0.5, 0.0, 0.5], "c": 0.25}, **OPTIONS)
    z = pipeline.encode(images[:2]).double()
    weight = classifier.linear.weight.detach().double()
    unit = weight / weight.norm(dim=1, keepdim=True)
    mean, std = classifier.latent_mean.double(), classifier.latent_std.double()
    steps = [math.sqrt(8) * (a * unit[0] + 0.25 * unit[2]) for a in (-0.5, 0.0, 0.5)]
    expected = [((code - mean) / std + step) * std + mean for code in z for step in steps]
    torch.testing.assert_close(output.latent_code.double(), torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert output.images.shape == (6, 3, 16, 16)
    assert torch.equal(output.noise[0], output.noise[2])
    torch.testing.assert_close(output.noise[:1], pipeline.invert(images[:1], num_inference_steps=3), atol=1e-4, rtol=0)


def test_kept_attributes_keep_their_logits(with_classifier, images) -> None:
    pipeline, classifier = with_classifier, with_classifier.attribute_classifier
    before = classifier(pipeline.encode(images[:1])).logits
    for edits, keep in (({"a": 1.0}, ["b", "c", "b"]), (torch.randn(8, generator=seeded(3)), ["b", "c"])):
        output = pipeline.edit(images[:1], edits, keep=keep, mode="stochastic", generator=seeded(), **OPTIONS)
        after = classifier(output.latent_code).logits
        torch.testing.assert_close(after[:, 1:], before[:, 1:], atol=1e-4, rtol=1e-4)
        if isinstance(edits, dict):
            assert after[0, 0] > before[0, 0]
            move = (output.latent_code - pipeline.encode(images[:1])) / classifier.latent_std
            assert float(move.norm()) == pytest.approx(math.sqrt(8), rel=1e-4)


def test_a_direction_is_added_to_the_code(tiny_pipeline, images) -> None:
    direction = torch.randn(8, generator=seeded(1))
    output = tiny_pipeline.edit(images[:1], direction, strength=[0, 2.0], **OPTIONS)
    z = tiny_pipeline.encode(images[:1])
    torch.testing.assert_close(output.latent_code, torch.cat([z, z + 2 * direction]), atol=1e-5, rtol=1e-5)
    from_array = tiny_pipeline.edit(images[:1], direction.numpy(), strength=[0, 2.0], **OPTIONS)
    torch.testing.assert_close(from_array.latent_code, output.latent_code)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"edits": {"smile": 1.0}}, r"attribute.*'a', 'b', 'c'.*smile"),
        ({"edits": {}}, "edits"),
        ({"edits": {"a": float("nan")}}, "strength"),
        ({"edits": {"a": [0, 1], "b": [0, 1, 2]}}, "strength"),
        ({"edits": {"a": [0.1] * 4097}}, "strength"),
        ({"edits": torch.zeros(9)}, "edits.*9"),
        ({"edits": {"a": 1.0}, "keep": ["a"]}, "keep"),
        ({"edits": {"a": 1.0}, "keep": "bc"}, "keep"),
        ({"edits": {"a": 1.0}, "strength": 2.0}, "strength"),
        ({"edits": ["a"]}, "edits"),
        ({"edits": {"a": 1.0}, "mode": "magic"}, "mode"),
    ],
)
def test_bad_edits_fail_before_any_work(with_classifier, images, arguments: dict, named: str) -> None:
    worked = []
    with_classifier.encoder.register_forward_hook(lambda *_: worked.append(1))
    with pytest.raises(ValueError, match=named):
        with_classifier.edit(images[0], **arguments)
    with_classifier.attribute_classifier = None
    with pytest.raises(ValueError, match="attribute_classifier"):
        with_classifier.edit(images[0], {"a": 1.0})
    assert not worked


# ---- variations and new images ---------------------------------------------------------------------------------------


def test_variations_share_the_code_and_their_spread_is_the_deviation(tiny_pipeline, images) -> None:
    output = tiny_pipeline.variations(images[0], 5, generator=seeded(2), num_inference_steps=3, output_type="pt")
    code = tiny_pipeline.encode(images[0])
    noise = torch.randn(5, 3, 16, 16, generator=seeded(2))
    decoded = tiny_pipeline.decode(code.repeat(5, 1), noise=noise, num_inference_steps=3, output_type="pt").images
    torch.testing.assert_close(output.images, decoded)
    expected = ((decoded - decoded.mean(dim=0)) ** 2).mean(dim=0).sqrt()
    torch.testing.assert_close(output.spread, expected, atol=1e-5, rtol=1e-4)
    for arguments, named in (({"num_images": 0}, "num_images"), ({"generator": [seeded()]}, "generator")):
        with pytest.raises(ValueError, match=f"^{named}"):
            tiny_pipeline.variations(images[0], **arguments)
    with pytest.raises(ValueError, match="^image"):
        tiny_pipeline.variations(images)


@pytest.fixture
def generative(tiny_pipeline) -> DiffusionAutoencoderPipeline:
    torch.manual_seed(0)
    model = randomize(LatentCodeModel(8, hidden_dim=16, num_layers=3, time_sinusoid_dim=8, time_embed_dim=12))
    model.latent_mean.copy_(torch.randn(8))
    model.latent_std.copy_(torch.rand(8) + 0.5)
    tiny_pipeline.latent_code_model = model
    tiny_pipeline.latent_scheduler = VPDDIMScheduler(
        noise_schedule="constant_beta", prediction_type="epsilon", timestep_spacing="leading"
    )
    return tiny_pipeline


def test_codes_follow_the_official_rule(generative) -> None:
    """DDIM on constant beta 0.008, indices 0, s, 2s ..., written out in float64; codes are denormalised after it."""
    seen = []
    output = generative.sample(
        3, generator=seeded(5), num_inference_steps=2, latent_num_inference_steps=20, output_type="latent",
        callback_on_step_end=lambda pipe, step, timestep, tensors: seen.append((step, tensors["sample"].shape)),
    )  # fmt: skip
    assert seen == [(0, (3, 3, 16, 16)), (1, (3, 3, 16, 16))]
    model = generative.latent_code_model.double()
    generator = seeded(5)
    code = torch.randn(3, 8, generator=generator).double()
    for index in reversed(range(0, 1000, 50)):
        alpha_bar = (1 - 0.008) ** (index + 1)
        before = (1 - 0.008) ** (index - 50 + 1) if index else 1.0
        noise = model(code, float(index)).sample
        clean = (code - math.sqrt(1 - alpha_bar) * noise) / math.sqrt(alpha_bar)
        code = math.sqrt(before) * clean + math.sqrt(1 - before) * noise
    expected = code * model.latent_std + model.latent_mean
    torch.testing.assert_close(output.latent_code.double(), expected, atol=1e-3, rtol=1e-3)
    noise = torch.randn(3, 3, 16, 16, generator=generator)  # the images' noise comes after the codes'
    torch.testing.assert_close(output.noise, noise)
    options = {"num_inference_steps": 2, "output_type": "latent"}
    decoded = generative.decode(output.latent_code.numpy(), noise=noise, **options).images
    torch.testing.assert_close(output.images, decoded)


def test_one_generator_per_image_and_bad_sampling(generative) -> None:
    def images(seeds: list[int]) -> torch.Tensor:
        options = {"num_inference_steps": 2, "latent_num_inference_steps": 2, "output_type": "pt"}
        return generative.sample(len(seeds), generator=[seeded(seed) for seed in seeds], **options).images

    torch.testing.assert_close(images([2])[0], images([1, 2])[1], atol=1e-4, rtol=0)
    for scheduler in (diffusers.DDPMScheduler, diffusers.EulerAncestralDiscreteScheduler):  # they draw noise
        generative.scheduler = scheduler.from_config(generative.scheduler.config)
        assert torch.equal(images([1, 2]), images([1, 2]))
    for named, bad in (
        ("generator", {"generator": (seeded(),)}),
        ("num_images", {"num_images": 0}),
        ("generator", {"num_images": 2, "generator": [torch.Generator()]}),
        ("latent_num_inference_steps", {"latent_num_inference_steps": 60}),
    ):
        with pytest.raises(ValueError, match=f"^{named}"):
            generative.sample(**bad)
    generative.latent_code_model = None
    with pytest.raises(ValueError, match="latent_code_model"):
        generative.sample()
