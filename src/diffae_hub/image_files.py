"""Reading image files that a user names: every way in which a file can be bad becomes one clear ValueError."""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

# Just below Pillow's own limit, between once and twice which it only warns: such a picture is refused here as well.
MAX_PIXELS = 89_000_000


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
    try:
        mode = path.stat().st_mode
    except OSError as error:  # a name that is too long, too
        raise ValueError(f"image must be the path of an image file, but {path} does not exist") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"image must be the path of an image file, but {path} is a folder")
    return _decoded(path, path)


def read_image_bytes(content: bytes, name: str) -> Image.Image:
    """Fully decodes an image file that is in memory, under the same limit as [`read_image`].

    Args:
        content: The file's bytes.
        name: What to call it in an error.

    Returns:
        The decoded picture, in the mode the file has.

    Raises:
        ValueError: As [`read_image`]; the message has the name.
    """
    return _decoded(io.BytesIO(content), name)


def _decoded(source: Path | io.BytesIO, name: str | Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                return image.copy()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"image must have at most {MAX_PIXELS:,} pixels, but {name} has more") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"image must be an image file, but the content of {name} is none that Pillow knows") from error
    except Exception as error:  # Pillow's decoders raise almost anything on bytes that are damaged
        raise ValueError(f"image must be an intact image file, but {name} cannot be decoded: {error}") from error
