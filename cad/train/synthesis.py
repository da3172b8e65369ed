"""From planes to what the discriminators see: the 2D branch, and views or patches of the 3D branch (Fig. 3)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cad.camera import focal_length, near_far
from cad.config import CameraSettings, GeneratorSettings
from cad.models.generator import Generator
from cad.models.layers import computing_in
from cad.models.upsampler3d import PlaneUpsampler
from cad.render.image import render_patch, render_view
from cad.render.inference import Volume
from cad.render.reference import Sampling


@dataclass(frozen=True)
class Optics:
    """The camera of a generator: focal in image sides, raw and output resolution in pixels, where rays are sampled.

    precision: what the 2D upsampler's convolutions compute in.
    """

    focal: float
    raw_resolution: int
    resolution: int
    sampling: Sampling
    precision: str


class Branch2D(NamedTuple):
    """The 2D branch: image [B, 3, H, W] and raw rendering [B, 3, r, r] in [-1, 1]; opacity, depth [B, 1, r, r]."""

    image: Tensor
    raw: Tensor
    opacity: Tensor
    depth: Tensor


class View(NamedTuple):
    """Views on white: image [B, 3, H, W] in [-1, 1]; opacity and depth (scene units along the ray) [B, 1, r, r]."""

    image: Tensor
    opacity: Tensor
    depth: Tensor


def optics(settings: GeneratorSettings, camera: CameraSettings, precision: str) -> Optics:
    """The optics that a generator is trained with."""
    near, far = near_far(camera.radius, camera.half_side)
    sampling = Sampling(near, far, camera.half_side, settings.coarse_samples, settings.fine_samples)
    sides = settings.raw_resolution, settings.output_resolution
    return Optics(focal_length(camera.fov_deg), *sides, sampling, precision)


def branch_2d(
    generator: Generator,
    planes: Tensor | Volume,
    w: Tensor,
    cameras: Tensor,
    lens: Optics,
    jitter: torch.Generator | None,
) -> Branch2D:
    """Volume-render planes [B, 3, C, N, N] at the raw resolution and lift the image by 2D convolutions."""
    features, opacity, depth = render_view(
        planes, generator.decoder, cameras, lens.focal, lens.raw_resolution, lens.sampling, jitter
    )
    raw = features[:, :3] * 2 - 1
    with computing_in(lens.precision, w.device):
        image = generator.upsampler(features, raw, w)
    return Branch2D(image, raw, opacity, depth)


def lifted_planes(upsampler: PlaneUpsampler | None, planes: Tensor, w: Tensor) -> Tensor:
    """The 3D branch's planes [B, 3, C, kN, kN]; the planes themselves without an upsampler."""
    return planes if upsampler is None else upsampler(planes, w)


def patch_3d(
    generator: Generator,
    planes: Tensor,
    cameras: Tensor,
    places: Tensor,
    side: int,
    lens: Optics,
    jitter: torch.Generator | None,
) -> Tensor:
    """Volume-render crops of the virtual output image from lifted planes: [B, 3, side, side] in [-1, 1].

    places: [B, 2] first pixel (x, y) of each crop; rays go through the pixel centres that `crop` takes from the 2D
    branch at the same places.
    """
    features, _, _ = render_patch(
        planes, generator.decoder, cameras, lens.focal, places, side, lens.resolution, lens.sampling, jitter
    )
    return features[:, :3] * 2 - 1


def view_3d(generator: Generator, planes: Tensor | Volume, cameras: Tensor, lens: Optics) -> View:
    """Volume-render whole views of lifted planes at the output resolution, without jitter."""
    features, opacity, depth = render_view(
        planes, generator.decoder, cameras, lens.focal, lens.resolution, lens.sampling, None
    )
    return View(features[:, :3] * 2 - 1, opacity, depth)
