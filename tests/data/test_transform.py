"""Image files of every kind become tensors of the model's size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffae_hub.data.transform import ImageTransform

from .pictures import GRADIENT, grayscale_values, save, write_images


def test_grayscale(tmp_path: Path) -> None:
    row = save(tmp_path / "a.png", Image.fromarray(GRADIENT))
    one, three = (ImageTransform(8, channels)(row) for channels in (1, 3))
    assert one.shape == (1, 8, 8)
    assert one.dtype == torch.float32
    np.testing.assert_allclose(grayscale_values(one), GRADIENT, atol=1e-4)
    assert torch.equal(three, one.expand(3, 8, 8))


@pytest.mark.parametrize("crop", ["center", "random"])
def test_exif_rotation(tmp_path: Path, crop: str) -> None:
    """A broken EXIF block does not turn the image."""
    transform = ImageTransform(8, 1, crop=crop)
    for orientation, turns in ((3, 2), (6, -1), (8, 1)):
        exif = Image.Exif()
        exif[274] = orientation
        row = save(tmp_path / "a.png", Image.fromarray(GRADIENT), exif=exif)
        np.testing.assert_allclose(grayscale_values(transform(row)), np.rot90(GRADIENT, turns), atol=1e-4)
    plain = save(tmp_path / "plain.jpg", Image.fromarray(GRADIENT))
    for block in (b"garbagegarbage", b"MM\0*", b""):
        broken = save(tmp_path / "broken.jpg", Image.fromarray(GRADIENT), exif=b"Exif\0\0" + block)
        assert torch.equal(transform(broken), transform(plain))


@pytest.mark.parametrize("crop", ["center", "random"])
def test_images_that_cannot_be_used_are_named(tmp_path: Path, crop: str) -> None:
    deep = save(tmp_path / "deep.tiff", Image.fromarray(np.full((8, 8), 2**31 - 1, np.int32)))
    with pytest.raises(ValueError, match=r"deep\.tiff"):
        ImageTransform(8, crop=crop)(deep)
    # What Pillow raises is often no ValueError: an OverflowError here, as no picture is that large.
    write_images(tmp_path, "good.png")
    with pytest.raises(ValueError, match=r"good\.png"):
        ImageTransform(2**40, crop=crop)({"path": str(tmp_path / "good.png"), "bytes": None})


def test_d2c_crop(tmp_path: Path) -> None:
    """The crop has rows 57 .. 185 and columns 25 .. 153 of 218 x 178."""
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178), dtype=np.uint8)
    transform = ImageTransform(128, 1, crop="d2c")
    cropped = transform(save(tmp_path / "a.png", Image.fromarray(pixels)))
    np.testing.assert_allclose(grayscale_values(cropped), pixels[57:185, 25:153], atol=1e-4)
    with pytest.raises(ValueError, match=r"b\.png.*crop"):
        transform(save(tmp_path / "b.png", Image.fromarray(pixels[:-1])))


def test_center_and_random_crop(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 20), dtype=np.uint8)
    row = save(tmp_path / "a.png", Image.fromarray(pixels))
    center = ImageTransform(8, 1)(row)
    np.testing.assert_allclose(grayscale_values(center), pixels[:, 6:14], atol=1e-4)
    windows = {pixels[:, left : left + 8].tobytes(): left for left in range(13)}
    transform = ImageTransform(8, 1, crop="random", seed=3)
    lefts = [windows[grayscale_values(transform(row, (p,))).round().astype(np.uint8).tobytes()] for p in range(300)]
    assert set(lefts) == set(range(13))
    assert torch.equal(transform(row, (5,)), transform(row, (5,)))
    assert torch.equal(transform(row), center)


def test_flip_is_half_of_the_positions(tmp_path: Path) -> None:
    row = save(tmp_path / "a.png", Image.fromarray(GRADIENT))
    transform = ImageTransform(8, 1, horizontal_flip=True, seed=1)
    plain = transform(row)
    flipped = [torch.equal(transform(row, (position,)), plain.flip(-1)) for position in range(400)]
    kept = [torch.equal(transform(row, (position,)), plain) for position in range(400)]
    assert [not f for f in flipped] == kept
    assert abs(sum(flipped) - 200) < 4 * 10  # four deviations
