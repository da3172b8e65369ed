"""What a training looks like so far: fixed latents seen from four sides, through every branch."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cad.camera import camera_to_world
from cad.config import CameraSettings
from cad.models.generator import Generator
from cad.models.upsampler3d import PlaneUpsampler
from cad.render.inference import prepare
from cad.seeding import generator as seeded
from cad.train.synthesis import Optics, branch_2d, lifted_planes, view_3d

SEEDS, SIDES = 4, 4


@torch.no_grad()
def draw_preview(
    generator: Generator, upsampler: PlaneUpsampler | None, camera: CameraSettings, lens: Optics, polar: float
) -> np.ndarray:
    """A row per latent, a column per azimuth (front, +90, +180, +270 deg); blocks: raw, 2D and, if it exists, 3D.

    polar: in radians. Returns uint8 [H, W, 3]. Draws nothing from the training's random streams.
    """
    device = next(generator.parameters()).device
    azimuth = math.radians(camera.reference_azimuth_deg) + torch.arange(SIDES) * (2 * math.pi / SIDES)
    cameras = camera_to_world(azimuth, torch.full_like(azimuth, polar), camera.radius).to(device)
    z_dim = generator.mapping.z_dim
    rows = []
    for seed in range(SEEDS):
        w = generator.mapping(latent(seed, z_dim).to(device), 1.0)
        planes = generator.planes(w)
        volume = prepare(planes, generator.decoder)
        views = branch_2d(generator, volume, w.expand(SIDES, -1), cameras, lens, None)
        blocks = [interpolate(views.raw, (lens.resolution, lens.resolution), mode="nearest"), views.image]
        if upsampler is not None:
            lifted = prepare(lifted_planes(upsampler, planes, w), generator.decoder)
            blocks.append(view_3d(generator, lifted, cameras, lens).image)
        rows.append(torch.cat([side_by_side(block) for block in blocks], -1))
    return to_uint8(torch.cat(rows, -2)[None])[0]


def latent(seed: int, z_dim: int) -> Tensor:
    """z of a numbered object, [1, z_dim]: the same for previews, orbits and every stage."""
    return torch.randn(1, z_dim, generator=seeded("latent", seed))


def side_by_side(images: Tensor) -> Tensor:
    """[n, 3, r, r] -> one strip [3, r, n * r]."""
    return torch.cat(list(images), -1)


def to_uint8(images: Tensor) -> np.ndarray:
    """[B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
