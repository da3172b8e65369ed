"""The object's picture and prompt, brought to the form that Zero-1-to-3 was trained on (Sec. 4)."""

from pathlib import Path

import numpy as np
from PIL import Image

from cad.artifacts import InputArtifact, digest
from cad.config import CameraSettings, InputSettings, ObjectSettings
from cad.context import Context
from cad.errors import UserError
from cad.inputs.picture import read_picture


def prepare_input(
    settings: InputSettings, source: ObjectSettings, camera: CameraSettings, out: Path, context: Context
) -> None:
    """Write the InputArtifact: the picture on white, the mask, the prompt and the reference pose.

    Raises UserError for a missing, truncated or tiny picture, one without object or background, and an empty prompt.
    """
    prompt = read_prompt(Path(source.prompt))
    path = Path(source.image)
    picture, shown = frame_picture(path, read_picture(path, settings.min_side), settings, source.framed)
    InputArtifact.write(
        out,
        image=picture,
        mask=shown,
        prompt=prompt,
        object=context.object,
        reference_azimuth_deg=camera.reference_azimuth_deg,
        reference_polar_deg=source.reference_polar_deg,
        source=digest(path),
    )
    context.tracker.image("input", picture, step=0)


def frame_picture(
    path: Path, pixels: np.ndarray, settings: InputSettings, framed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A picture, uint8 [H, W, 4], as Zero-1-to-3 takes it: on white [R, R, 3] uint8, and its mask [R, R] bool.

    Raises UserError, which names `path`, where no object or no background is left.
    """
    color, alpha = matte(pixels, settings.alpha_threshold, settings.white_threshold)
    mask = alpha > settings.alpha_threshold
    if not mask.any():
        raise UserError(f"{path}: shows no object: every pixel is transparent or white; give another picture")
    if mask.all():
        raise UserError(f"{path}: has no background; give a picture with transparency or on white")
    if framed:
        if color.shape[0] != color.shape[1]:
            raise UserError(f"{path}: is not square, which a framed picture must be; crop it or set framed: false")
        picture, opacity = resize(color, alpha, settings.resolution, settings.resolution)
    else:
        picture, opacity = recenter(color, alpha, mask, settings.resolution, settings.object_fraction)
    shown = opacity > settings.alpha_threshold
    if not shown.any():
        raise UserError(
            f"{path}: the object is so thin that nothing of it is left at input.resolution {settings.resolution}; "
            "crop the picture closer to it"
        )
    return picture, shown


def read_prompt(path: Path) -> str:
    """The text of a prompt file on one line; UserError when it is missing, empty or no UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as fault:
        raise UserError(f"{path}: no such prompt file; write the object's description into it") from fault
    except (OSError, UnicodeDecodeError) as fault:
        raise UserError(f"{path}: cannot be read as UTF-8 text; write the object's description into it") from fault
    words = " ".join(text.split())
    if not words:
        raise UserError(f"{path}: the prompt is empty; write the object's description into it")
    return words


def matte(pixels: np.ndarray, alpha_threshold: int, white_threshold: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour [H, W, 3] and opacity [H, W] (uint8) of a picture [H, W, 4].

    Its own alpha where any pixel is at or below the threshold; otherwise whatever is not white, i.e. has a channel
    below `white_threshold`.
    """
    color, alpha = pixels[..., :3], pixels[..., 3]
    if (alpha <= alpha_threshold).any():
        return color, alpha
    return color, np.where((color < white_threshold).any(-1), 255, 0).astype(np.uint8)


def composite(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour over white: uint8 [H, W, 3], opacity uint8 [H, W]."""
    share = alpha[..., None].astype(np.float64) / 255
    return np.round(color * share + 255 * (1 - share)).astype(np.uint8)


def resize(color: np.ndarray, alpha: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Lanczos resampling, as Zero-1-to-3's demo does, over white, so that hidden colours do not bleed in.

    Returns the picture on white [height, width, 3] and its opacity [height, width]; the same size is not resampled.
    """
    flat = composite(color, alpha)
    if alpha.shape == (height, width):
        return flat, alpha
    small = Image.fromarray(flat).resize((width, height), Image.Resampling.LANCZOS)
    cover = Image.fromarray(alpha).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(small), np.asarray(cover)


def recenter(
    color: np.ndarray, alpha: np.ndarray, mask: np.ndarray, resolution: int, fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Crop to the mask's bounding box, shrink (never enlarge) to `fraction` of the frame, centre on white.

    Zero-1-to-3 puts the object into 200 of 256 pixels. Returns the picture on white [resolution, resolution, 3] and
    its opacity.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = alpha[box].shape
    scale = min(1.0, round(resolution * fraction) / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    small, cover = resize(color[box], alpha[box], width, height)
    top, left = (resolution - height) // 2, (resolution - width) // 2
    frame = np.full((resolution, resolution, 3), 255, np.uint8)
    opacity = np.zeros((resolution, resolution), np.uint8)
    frame[top : top + height, left : left + width] = small
    opacity[top : top + height, left : left + width] = cover
    return frame, opacity
