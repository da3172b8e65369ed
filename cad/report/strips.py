"""Strips of views: one orbit's frames side by side in one picture, as `cad evaluate` writes the true object's."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cad.artifacts import read_image
from cad.errors import UserError


def read_strip(path: Path, frames: int, side: int) -> NDArray[np.uint8]:
    """The views of a strip, uint8 [frames, side, side, 3]; UserError for a picture of another size."""
    picture = read_image(path)
    if picture.shape[:2] != (side, frames * side):
        found, wanted = (f"{width} x {height}" for height, width in (picture.shape[:2], (side, frames * side)))
        said = f"is {found} pixels, not the {wanted} of {frames} views"
        raise UserError(f"{path}: {said}; it is of another orbit: run `cad evaluate` again")
    return np.stack(np.split(picture, frames, axis=1))
