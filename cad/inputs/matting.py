"""Telling an object from its background: by alpha, by white, or by a matting network through rembg (optional)."""

import importlib.util
import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cad.config import InputSettings
from cad.errors import UserError
from cad.weights import table
from cad.weights.fetch import check_md5

Background = Literal["alpha", "white", "other"]
OTHER_REMEDY = "give a picture with transparency or on white"


def background_of(pixels: NDArray[np.uint8], settings: InputSettings, white_border: float) -> Background:
    """What a picture, uint8 [H, W, 4], shows its background by.

    "alpha" where any pixel is transparent; "white" where at least the share `white_border` of its outermost pixels is
    as white as `settings.white_threshold` in every channel; else "other", which takes a matting network.
    """
    if (pixels[..., 3] <= settings.alpha_threshold).any():
        return "alpha"
    white = np.all(pixels[..., :3] >= settings.white_threshold, axis=-1, keepdims=True)
    border = np.concatenate([white[0], white[-1], white[1:-1, 0], white[1:-1, -1]])
    return "white" if border.mean() >= white_border else "other"


def matting_weights(model: str, folder: Path) -> Path:
    """The file of a matting network in `folder`, in either of rembg's layouts.

    Raises UserError where rembg, its runtime or the file is missing: rembg itself would download the file unasked. One
    of another digest than the registry's, where it has one for the network, is refused too.
    """
    # Looked for, not imported: without onnxruntime rembg ends the process that imports it.
    if missing := [name for name in ("rembg", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"{missing[0]}: is not installed, so this background cannot be removed; "
            f"pip install 'cad[matting]', or {OTHER_REMEDY}"
        )
    name = f"{model}.onnx"
    for path in (folder / "models" / model / name, folder / name):
        if path.is_file():
            for listed in table.MODELS:
                if listed.files == (name,):
                    check_md5(listed, path)
            return path
    raise UserError(
        f"{folder / name}: is missing, so this background cannot be removed; "
        f"place it there (`cad weights list` says whence), or {OTHER_REMEDY}"
    )


def cut_out(pixels: NDArray[np.uint8], model: str, folder: Path) -> NDArray[np.uint8]:
    """A picture, uint8 [H, W, 4], with the alpha that rembg's network gives it; its colours stay as they are.

    Raises UserError as `matting_weights`, and for a file that is no such network.
    """
    folder = folder.expanduser()
    weights = matting_weights(model, folder)
    os.environ["U2NET_HOME"] = str(folder.resolve())
    os.environ["MODEL_CHECKSUM_DISABLED"] = "1"  # ours is done: some rembg would download instead
    import rembg
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    faults = (runtime.Fail, runtime.InvalidArgument, runtime.InvalidGraph, runtime.InvalidProtobuf, runtime.NoModel)
    try:
        session = rembg.new_session(model, providers=["CPUExecutionProvider"])  # the same mask on every machine
        mask = rembg.remove(Image.fromarray(pixels[..., :3]), session=session, only_mask=True)
    except faults as fault:
        said = str(fault).splitlines()[0][:200]
        raise UserError(f"{weights}: is no network of {model} ({said}); fetch it again, or {OTHER_REMEDY}") from None
    except ValueError:
        raise UserError(f"matting_model: rembg has no {model!r}; set it to u2net in experiments/inputs.yaml") from None
    return np.dstack([pixels[..., :3], np.asarray(mask.convert("L"))])
