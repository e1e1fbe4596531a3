"""Draws the app's example pictures, which therefore are nobody's: python examples/app/draw_pictures.py"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIZE = 512  # drawn large, then made small: smooth edges
FOLDER = Path(__file__).parent / "pictures"


def gradient(top: str, bottom: str, height: int = SIZE) -> Image.Image:
    colours = Image.new("RGB", (1, 2))
    colours.paste(top, (0, 0, 1, 1))
    colours.paste(bottom, (0, 1, 1, 2))
    return colours.resize((SIZE, height), Image.Resampling.BILINEAR)


def boat() -> Image.Image:
    picture = gradient("#6fa8dc", "#e8d9c0")
    picture.paste(gradient("#2f5d7c", "#123246", 200), (0, 312))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(90, 310), (430, 310), (370, 390), (140, 390)], fill="#8c2f23")
    draw.rectangle((250, 90, 260, 310), fill="#4a3020")
    draw.polygon([(268, 95), (268, 285), (405, 285)], fill="#f7f3e8")
    draw.polygon([(242, 130), (242, 285), (140, 285)], fill="#d9d0bb")
    return picture


def car() -> Image.Image:
    picture = gradient("#a9c4d6", "#dfe5e6")
    picture.paste(gradient("#6d6d6d", "#4b4b4b", 160), (0, 352))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(140, 260), (195, 180), (340, 180), (410, 260)], fill="#2c3e57")
    draw.rounded_rectangle((50, 250, 465, 360), 36, fill="#c8372d")
    draw.rectangle((262, 185, 272, 260), fill="#c8372d")
    for x in (150, 370):
        draw.ellipse((x - 48, 312, x + 48, 408), fill="#1c1c1c")
        draw.ellipse((x - 22, 338, x + 22, 382), fill="#b5b5b5")
    return picture


def balloon() -> Image.Image:
    picture = gradient("#3f7fc1", "#cfe3ee")
    picture.paste(gradient("#6f9a56", "#3d6332", 90), (0, 422))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(165, 250), (347, 250), (285, 370), (227, 370)], fill="#d98324")
    for inset, colour in ((0, "#e6a23c"), (45, "#c0392b"), (85, "#e6a23c")):
        draw.ellipse((130 + inset, 50, 382 - inset, 302), fill=colour)
    draw.rectangle((230, 385, 282, 425), fill="#6b4a2b")
    return picture


def face() -> Image.Image:
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((36, 36, 476, 476), fill="#f6c542")
    for x in (178, 334):
        draw.ellipse((x - 30, 170, x + 30, 250), fill="#5b3a1e")
    draw.chord((140, 230, 372, 420), 15, 165, fill="#5b3a1e")
    return picture


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for drawn in (boat, car, balloon, face):
        small = drawn().filter(ImageFilter.GaussianBlur(2)).resize((128, 128), Image.Resampling.LANCZOS)
        small.save(FOLDER / f"{drawn.__name__}.png", optimize=True)
