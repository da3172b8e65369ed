"""`cad object imagine`: the model that is asked for, its picture in a file, and what to record of it."""

from pathlib import Path
from typing import Any

import torch

from cad.artifacts import digest, write_image
from cad.config import Params
from cad.context import prepare_device
from cad.errors import UserError
from cad.inputs.imagine import imagine
from cad.inputs.settings import BringSettings
from cad.prior.latent_diffusion import LatentDiffusion


def draw(text: str, seed: int, model: str | None, params: Params, settings: BringSettings, out: Path) -> dict[str, Any]:
    """Write a picture of `text` to `out`, and return its origin as source.json records it.

    Raises UserError for an empty text, and for a model that is missing or of another layout.
    """
    words = " ".join(text.split())
    if not words:
        raise UserError("TEXT: is empty; say what to draw")
    source = model or settings.image_model or params.models.refiner
    device = prepare_device(params.runtime.device, params.runtime.threads)
    drawn = imagine(
        LatentDiffusion.load(source, device, torch.float32), words, seed, settings.image_steps, settings.image_guidance
    )
    write_image(out, drawn)
    return {
        "kind": "text-to-image",
        "text": words,
        "seed": seed,
        "steps": settings.image_steps,
        "guidance": settings.image_guidance,
        "model": source,
        "weights": digest(Path(source)) if Path(source).is_dir() else None,
        "device": device.type,
    }
