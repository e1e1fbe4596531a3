"""Small pictures, as files and encoded, and how to tell them apart."""

import io
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

GRADIENT = np.add.outer(np.arange(8) * 16, np.arange(8) * 8).astype(np.uint8)  # 0 .. 168, row and column differ
BAD = {"bytes": b"damaged", "path": None}


def save(path: Path, image: Image.Image, **options: object) -> dict:
    image.save(path, **options)
    return {"path": str(path), "bytes": None}


def write_images(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GRADIENT).save(folder / name)
    return str(folder)


def encoded(image: np.ndarray = GRADIENT) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(images: list[dict], column: str = "image") -> datasets.Dataset:
    """Makes a table of images, with the row number as label."""
    features = datasets.Features({column: datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({column: images, "label": range(len(images))}, features=features)


def grayscale_values(tensor: torch.Tensor) -> np.ndarray:
    """Converts (1, H, W) in [-1, 1] back to (H, W) in 0 .. 255."""
    return (tensor[0].double().numpy() + 1) * 127.5
