"""Reading image files that a user names: every way in which a file can be bad becomes one clear ValueError."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

# Pillow only warns between once and twice its limit; such a picture is refused here as well.
MAX_PIXELS = 100_000_000


def read_image(path: str | Path) -> Image.Image:
    """Reads and fully decodes an image file.

    Args:
        path: The file.

    Returns:
        The decoded picture, in the mode the file has.

    Raises:
        ValueError: If the path is missing or a folder, the file is not an image, is damaged or truncated, or has more
            than `MAX_PIXELS` pixels. The message names the file.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"image must be the path of an image file, but {path} does not exist")
    if path.is_dir():
        raise ValueError(f"image must be the path of an image file, but {path} is a folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                return image.copy()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"image must have at most {MAX_PIXELS:,} pixels, but {path} has more") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"image must be an image file, but the content of {path} is none that Pillow knows") from error
    except (OSError, SyntaxError, EOFError, ValueError) as error:  # SyntaxError: Pillow's word for a broken PNG chunk
        raise ValueError(f"image must be an intact image file, but {path} cannot be decoded: {error}") from error
