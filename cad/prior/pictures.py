"""Between pictures in files (uint8, white 255, channels last) and in networks ([-1, 1], channels first)."""

import numpy as np
import torch
from torch import Tensor

from cad.errors import UserError


def to_network(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]: 255 (white) is exactly 1."""
    pixels = torch.tensor(images).permute(0, 3, 1, 2)  # a copy: pictures read from files are not writable
    return pixels.float().div(127.5).sub(1).contiguous().to(device)


def to_picture(images: Tensor) -> np.ndarray:
    """Float [B, 3, H, W], clamped to [-1, 1], to the nearest uint8 [B, H, W, 3]."""
    pixels = images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def resize(images: Tensor, side: int) -> Tensor:
    """Images [B, 3, H, H] in [-1, 1] at another side, pixels: bicubic with antialiasing, nothing if of that side."""
    if images.shape[-1] == side:
        return images
    resized = torch.nn.functional.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
    return resized.clamp(-1, 1)


def foreground(images: np.ndarray, white_threshold: int) -> np.ndarray:
    """Where a picture on white shows the object: any channel below the threshold; uint8 [..., H, W, 3] to bool."""
    return np.asarray((images < white_threshold).any(-1))


def check_resolution(found: int, wanted: int, model: str) -> None:
    """Refuse an input of another side than the model's, pixels; `model` is what the settings call it."""
    if found != wanted:
        raise UserError(
            f"params.yaml: input.resolution: {found} does not fit {model}, which works at {wanted}; set {wanted}"
        )
