"""Resizing and blurring of images on white, [B, C, H, W] in [-1, 1]."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

WHITE = 1.0  # the background of every image (Sec. 3.2 renders on white, the inputs lie on white)


def downsample(images: Tensor, resolution: int) -> Tensor:
    """Antialiased bilinear reduction to [B, C, resolution, resolution]: real images as the raw rendering sees them."""
    if images.shape[-1] == resolution:
        return images
    return interpolate(images, size=(resolution, resolution), mode="bilinear", align_corners=False, antialias=True)


def enlarge_to(images: Tensor, resolution: int) -> Tensor:
    """Bilinear enlargement to [B, C, resolution, resolution]: how the discriminator gets the raw image."""
    if images.shape[-1] == resolution:
        return images
    return interpolate(images, size=(resolution, resolution), mode="bilinear", align_corners=False)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur by a Gaussian of `sigma` pixels, white beyond the border; sigma 0 gives the images themselves.

    Two products with banded matrices instead of convolutions: exact for every sigma, no cut-off radius to choose.
    """
    if sigma == 0:
        return images
    across = _gaussian_matrix(images.shape[-1], sigma).to(images)
    down = _gaussian_matrix(images.shape[-2], sigma).to(images)
    return down @ (images - WHITE) @ across + WHITE


def _gaussian_matrix(size: int, sigma: float) -> Tensor:
    """Symmetric [size, size] weights between pixels, normalised over the endless line."""
    reach = size + int(8 * sigma) + 1
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    weights = weights / weights.sum()
    positions = torch.arange(size)
    return weights[(positions[:, None] - positions[None]) + reach]
