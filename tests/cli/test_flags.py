"""Dataclasses as flags."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from diffae_hub.cli.flags import add_flags, from_arguments, option, with_hyphens


@dataclass
class Settings:
    model: str = option(dataclasses.MISSING, "the model", positional=True)
    output: Path = option(dataclasses.MISSING, "folder")
    num_images: int | None = option(None, "the first so many")
    mode: Literal["stochastic", "inversion"] = option("stochastic", "how")
    metrics: tuple[str, ...] = option(("psnr",), "which")
    flip: bool = option(False, "mirror")
    set: tuple[str, ...] = option((), "one", append=True)
    rate: float = option(0.5, "rate")


def parse(*argv: str) -> Settings:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, Settings)
    return from_arguments(Settings, parser.parse_args(with_hyphens(list(argv))))


def test_defaults_and_values() -> None:
    assert parse("m", "--output", "o") == Settings(model="m", output=Path("o"))
    line = (
        "a_b --output=x_y --num_images 2e3 --mode inversion --metrics ssim lpips --flip --set a=1 --set b=2 --rate 1e-3"
    )
    assert parse(*line.split()) == Settings(
        "a_b", Path("x_y"), 2000, "inversion", ("ssim", "lpips"), True, ("a=1", "b=2"), 1e-3
    )
    assert not parse("m", "--output", "o", "--no-flip").flip


@pytest.mark.parametrize("line", ["m --output o --num-images 1.5", "m --output o --mode other", "m --output="])
def test_values_that_are_none(line: str) -> None:
    with pytest.raises(argparse.ArgumentError):
        parse(*line.split())
