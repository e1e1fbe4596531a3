"""Noto emoji with a column per attribute, taken from their names, for `diffae-hub encode` and `fit-attributes`.

    python model_cards/prepare_noto_emoji.py noto/train.parquet noto/test.parquet --output emoji

The files need the columns image, name, group, skin_tone and codepoints. Writes train.parquet, validation.parquet (a
twelfth of the training families) and test.parquet, and prints how many images have each attribute. A family is an emoji
with its variants in skin tone and hair; families are never split. Nothing is trained or chosen on the test families.
The column `subject` is what a name says besides attributes: "cook" of "woman cook dark skin tone".
"""

import argparse
import hashlib
import re
from pathlib import Path

from datasets import Dataset, Image, load_dataset

SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
IN_NAME = ("woman", "man", "red hair", "curly hair", "white hair", "blond hair", "bald", "beard")
ATTRIBUTES = (*(f"{tone} skin tone" for tone in SKIN_TONES), *IN_NAME, "face")
ATTRIBUTE_WORDS = re.compile(r"\b(person|" + "|".join(sorted(ATTRIBUTES[:-1], key=len, reverse=True)) + r")\b")
SKIN_OR_HAIR = re.compile("1f3f[b-f]|1f9b[0-3]")


def family(codepoints: str) -> str:
    """An emoji's code points, without those of skin and hair."""
    return "_".join(point for point in codepoints.split("_") if not SKIN_OR_HAIR.fullmatch(point))


def attributes(row: dict[str, str]) -> dict[str, int | str]:
    """The columns of one emoji."""
    has = {f"{tone} skin tone": row["skin_tone"] == tone for tone in SKIN_TONES}
    has |= {words: re.search(rf"\b{words}\b", row["name"]) is not None for words in IN_NAME}
    has["face"] = row["group"] == "Smileys & Emotion" and "face" in row["name"]
    subject = " ".join(ATTRIBUTE_WORDS.sub("", row["name"]).split())
    return {
        **{name: int(value) for name, value in has.items()},
        "family": family(row["codepoints"]),
        "subject": subject,
    }


def read(path: Path) -> Dataset:
    """Reads the rows of a file and adds their attributes; pictures stay as they are."""
    rows = load_dataset("parquet", data_files=str(path), split="train").cast_column("image", Image(decode=False))
    table = [attributes(row) for row in rows.remove_columns("image")]
    for name in table[0]:
        rows = rows.add_column(name, [row[name] for row in table])
    return rows


def main() -> None:
    """Writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    train = read(options.train)
    held_out = [int(hashlib.sha256(name.encode()).hexdigest(), 16) % 12 == 0 for name in train["family"]]
    parts = {
        "train": train.select([index for index, out in enumerate(held_out) if not out]),
        "validation": train.select([index for index, out in enumerate(held_out) if out]),
        "test": read(options.test),
    }
    for name, rows in parts.items():
        rows.cast_column("image", Image()).to_parquet(options.output / f"{name}.parquet")
        counts = ", ".join(f"{attribute} {sum(rows[attribute])}" for attribute in ATTRIBUTES)
        print(f"{name}: {len(rows)} images, {len(set(rows['family']))} families; {counts}")


if __name__ == "__main__":
    main()
