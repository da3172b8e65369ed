"""Reading a user's picture, whatever its form: upright, 8 bit, with alpha."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cad.errors import UserError

MAX_PIXELS = 100_000_000  # [ours] more is no photograph of one object, and would fill the memory
REMEDY = "give a whole PNG, JPEG, WebP or TIFF file"
WIDE = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow's modes of 16-bit grey


def read_picture(path: Path, min_side: int) -> NDArray[np.uint8]:
    """A picture as uint8 [H, W, 4] (straight alpha), upright by its EXIF tag; colour profiles are not applied.

    CMYK, palettes, grey and 16 bit (the upper 8) are converted; transparency of any kind becomes alpha. UserError when
    missing, broken, animated, above MAX_PIXELS or with a side below `min_side` pixels.
    """
    try:
        with Image.open(path) as file:
            _check_header(path, file)
            pixels = _rgba(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; give the path of a PNG or JPEG picture") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; give the path of a PNG or JPEG picture") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: has more than {MAX_PIXELS // 10**6} million pixels; shrink it") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        # Pillow says SyntaxError and ValueError of broken PNG chunks, OSError of truncated data.
        reason = "no picture" if isinstance(error, UnidentifiedImageError) else str(error) or "unreadable"
        raise UserError(f"{path}: damaged or no picture ({reason}); {REMEDY}") from None
    height, width = pixels.shape[:2]
    if min(height, width) < min_side:
        raise UserError(f"{path}: is {width}x{height}, smaller than input.min_side {min_side}; give a larger picture")
    return pixels


def _check_header(path: Path, file: Image.Image) -> None:
    """Refuse by the header alone what should not be decoded."""
    if (frames := getattr(file, "n_frames", 1)) > 1:
        raise UserError(f"{path}: holds {frames} pictures (animated or of several pages); give one still picture")
    if file.width * file.height > MAX_PIXELS:
        said = f"is {file.width}x{file.height}, more than {MAX_PIXELS // 10**6} million pixels"
        raise UserError(f"{path}: {said}; shrink it")


def _rgba(picture: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W, 4] of a decoded picture in any of Pillow's modes; ValueError for numbers beyond 16 bit."""
    if picture.mode in WIDE:
        return _wide_gray(picture)
    if picture.mode == "F":
        raise ValueError("floating-point pixels")
    return np.asarray(picture.convert("RGBA"))  # palettes, masks of transparency and premultiplied alpha included


def _wide_gray(picture: Image.Image) -> NDArray[np.uint8]:
    """16-bit grey as its upper 8 bits, as Pillow itself reads 16-bit colour; a transparent grey level becomes alpha."""
    values = np.asarray(picture)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise ValueError("grey levels beyond 16 bit")
    levels = values.astype(np.uint16)
    clear = picture.info.get("transparency")
    alpha = np.where(levels == clear, 0, 255) if isinstance(clear, int) else np.full(levels.shape, 255)
    return np.dstack([*[levels >> 8] * 3, alpha]).astype(np.uint8)
