"""The object input: the picture and prompt from which everything is made, in the form that the stages read.

image.png   uint8 RGB [H, W, 3], the object on white
mask.png    uint8 [H, W], 255 where the object is
input.json  {schema, object, prompt, reference_azimuth_deg, reference_polar_deg, source, files: {name: sha256}}
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cad.artifacts.files import check_digest, check_schema, digest, read_json, write_json
from cad.artifacts.images import read_image, write_image
from cad.errors import UserError

SCHEMA = 1


@dataclass(frozen=True)
class InputArtifact:
    """One object's input: image uint8 [H, W, 3] on white, mask bool [H, W], prompt and reference pose in radians."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    prompt: str
    object: str
    reference_azimuth: float
    reference_polar: float

    @staticmethod
    def write(
        folder: Path,
        image: NDArray[np.uint8],
        mask: NDArray[np.bool_],
        prompt: str,
        object: str,
        reference_azimuth_deg: float,
        reference_polar_deg: float,
        source: str,
    ) -> None:
        """Write an input; `source` is the digest of the picture it was made from."""
        folder = Path(folder)
        write_image(folder / "image.png", image)
        write_image(folder / "mask.png", mask.astype(np.uint8) * 255)
        content = {
            "schema": SCHEMA,
            "object": object,
            "prompt": prompt,
            "reference_azimuth_deg": reference_azimuth_deg,
            "reference_polar_deg": reference_polar_deg,
            "source": source,
            "files": {name: digest(folder / name) for name in ("image.png", "mask.png")},
        }
        write_json(folder / "input.json", content)

    @staticmethod
    def open(folder: Path) -> "InputArtifact":
        """Open an input and check all of it; UserError names the file and the fault."""
        folder = Path(folder)
        path = folder / "input.json"
        keys = ("schema", "object", "prompt", "reference_azimuth_deg", "reference_polar_deg", "files")
        content = read_json(path, *keys)
        check_schema(path, content, SCHEMA)
        for key in ("object", "prompt"):
            if not isinstance(content[key], str) or not content[key].strip():
                raise UserError(f"{path}: '{key}' is empty or no text; run the input stage again")
        angles = [_radians(path, key, content[key]) for key in ("reference_azimuth_deg", "reference_polar_deg")]
        image, mask = (_picture(folder / name, content["files"]) for name in ("image.png", "mask.png"))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
            found = f"{image.dtype} {image.shape}"
            raise UserError(f"{folder / 'image.png'}: {found}, not square 8-bit RGB; run the input stage again")
        if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
            found = f"{mask.dtype} {mask.shape}"
            raise UserError(f"{folder / 'mask.png'}: {found}, not 8 bit of the image's size; run the input stage again")
        return InputArtifact(image, mask > 127, content["prompt"], content["object"], *angles)


def _picture(path: Path, digests: Any) -> NDArray[Any]:
    check_digest(path, digests.get(path.name) if isinstance(digests, dict) else None)
    return read_image(path)


def _radians(path: Path, key: str, degrees: Any) -> float:
    if isinstance(degrees, bool) or not isinstance(degrees, int | float):
        raise UserError(f"{path}: '{key}' is {degrees!r}, not a number of degrees; run the input stage again")
    return math.radians(degrees)
