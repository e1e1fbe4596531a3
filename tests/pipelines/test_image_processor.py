"""Image preparation: modes, ranges, resizing, and every kind of bad input."""

import io
import logging

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from diffae_hub.images import pil_to_array
from diffae_hub.pipelines.image_processor import DiffusionAutoencoderImageProcessor

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.fixture
def processor() -> DiffusionAutoencoderImageProcessor:
    return DiffusionAutoencoderImageProcessor(sample_size=16, channels=3, downsampling_factor=4, fixed_size=False)


def test_all_inputs_mean_the_same(processor) -> None:
    expected = torch.from_numpy(PIXELS).permute(2, 0, 1)[None].float() / 127.5 - 1
    picture, tensor = Image.fromarray(PIXELS), expected / 2 + 0.5
    inputs = [picture, [picture], PIXELS, PIXELS[None], [PIXELS], PIXELS.astype(np.float64) / 255]
    inputs += [tensor, tensor[0], [tensor[0]], tensor.double(), torch.from_numpy(PIXELS).permute(2, 0, 1)]
    for given in inputs:
        batch = processor.preprocess(given)
        assert (batch.dtype, tuple(batch.shape)) == (torch.float32, (1, 3, 16, 16))
        torch.testing.assert_close(batch, expected, atol=1e-6, rtol=0)
    pair = processor.preprocess([PIXELS, PIXELS[::-1]])
    torch.testing.assert_close(pair[1], pair[0].flip(1))


def test_pil_modes() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    picture = Image.fromarray(red)
    half = picture.convert("RGBA")
    half.putalpha(128)
    np.testing.assert_allclose(pil_to_array(half)[0, 0], [1.0, 127 / 255, 127 / 255], atol=1 / 255)  # on white
    np.testing.assert_allclose(pil_to_array(picture.convert("P"))[0, 0], [1, 0, 0], atol=0.01)
    np.testing.assert_allclose(pil_to_array(picture.convert("CMYK"))[0, 0], [1, 0, 0], atol=0.01)
    np.testing.assert_allclose(pil_to_array(picture, channels=1)[0, 0], [0.299], atol=0.005)  # ITU-R 601 luma
    deep = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    np.testing.assert_allclose(pil_to_array(deep)[0, 0], [0.5] * 3, atol=1 / 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_every_mode_of_a_white_picture_is_white(mode: str) -> None:
    white = Image.new("RGBA", (4, 4), "white")
    steps = {"PA": ["P", "PA"], "RGBa": ["RGBa"]}.get(mode, ["RGB", mode])
    for step in steps:
        white = white.convert(step)
    assert white.mode == mode
    np.testing.assert_allclose(pil_to_array(white), np.ones((4, 4, 3)), atol=2 / 255)


def test_a_truncated_picture(processor) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.tile(PIXELS, (8, 8, 1))).save(buffer, format="PNG")
    data = buffer.getvalue()
    with pytest.raises(ValueError, match="image"):
        processor.preprocess(Image.open(io.BytesIO(data[: len(data) * 3 // 4])))  # opened, but not yet decoded


def test_deep_pictures() -> None:
    """16 bits are rounded as floats are; 32 bits are 16 if they can be: some versions of Pillow read those so."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = (values.astype(np.float64) / 257).round()
    for given in (values, values.astype(np.int32)):
        same = pil_to_array(Image.fromarray(given), channels=1)[..., 0]
        np.testing.assert_array_equal((same * 255).round(), expected)
    values = values.astype(np.int32)
    for odd in (65536, 2**31 - 1, -1):
        values[3, 5] = odd
        with pytest.raises(ValueError, match=str(odd)):
            pil_to_array(Image.fromarray(values))


def test_crop_takes_the_centre_and_stretch_takes_all(processor) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    picture = Image.fromarray(wide)
    assert processor.preprocess(picture).min() == 1.0
    stretched = processor.preprocess(picture, resize_mode="stretch")
    assert float(stretched.mean()) == pytest.approx(-1 / 3, abs=0.02)
    assert processor.preprocess(wide, resize_mode="crop").min() == 1.0
    assert processor.preprocess(wide).shape[-2:] == (16, 48)  # arrays are never resized unasked


def test_resizing_is_said_once(processor) -> None:
    diffusers.utils.logging.set_verbosity_warning()  # the command line, in another test, wants errors only
    records, handler = [], logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("diffusers.diffae_hub")
    logger.addHandler(handler)
    for _ in range(2):
        processor.preprocess(Image.new("RGB", (53, 21)))
    logger.removeHandler(handler)
    (record,) = records
    assert {"53x21", "16x16"} <= set(record.getMessage().rstrip(".").split())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "empty list"),
        ("photo.jpg", "str"),
        (torch.zeros(16, 16), r"\(16, 16\)"),
        (torch.zeros(0, 3, 16, 16), r"\(0, 3, 16, 16\)"),
        (torch.zeros(3, 18, 16), "18 x 16"),
        (torch.full((3, 16, 16), 200.0), r"\[0, 1\].*\[200, 200\]"),
        (torch.full((3, 16, 16), -1.0), r"\[0, 1\].*\[-1, -1\].*x / 2 \+ 0.5"),
        (torch.full((3, 16, 16), float("nan")), "nan"),
        (PIXELS.astype(np.int64), "int64"),
        (PIXELS.astype(str), "<U"),
        (torch.zeros(3, 16, 16, device="meta"), "meta"),
        (torch.zeros(3, 16, 16).to_sparse(), "sparse"),
        (PIXELS.transpose(2, 0, 1), r"\(3, 16, 16\)"),
        ([torch.zeros(3, 16, 16), torch.zeros(3, 32, 32)], "16.*32"),
        (Image.new("RGB", (0, 16)), r"\(0, 16\)"),
    ],
)
def test_bad_images(processor, given, named: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)^image.*{named}"):
        processor.preprocess(given)


def test_models_of_a_fixed_size() -> None:
    processor = DiffusionAutoencoderImageProcessor(sample_size=16, channels=3, downsampling_factor=4, fixed_size=True)
    with pytest.raises(ValueError, match="^image"):
        processor.preprocess(torch.zeros(3, 32, 32))
    assert processor.preprocess(torch.zeros(3, 32, 32), resize_mode="stretch").shape == (1, 3, 16, 16)


def test_other_channel_counts_take_tensors_only() -> None:
    processor = DiffusionAutoencoderImageProcessor(sample_size=16, channels=5, downsampling_factor=4, fixed_size=False)
    assert processor.preprocess(torch.zeros(5, 16, 16)).shape == (1, 5, 16, 16)
    with pytest.raises(ValueError, match="image.*5 channels"):
        processor.preprocess(Image.fromarray(PIXELS))
    with pytest.raises(ValueError, match="output_type.*5 channels"):
        processor.check_output_type("pil")
