"""Whole views and patches, through the renderer that `cad.render.choice` says; float64 is the reference's alone."""

from typing import TypeGuard

import torch
from torch import Tensor

from cad.camera import pixel_centers, rays
from cad.render import choice, fused, inference, reference
from cad.render.inference import Volume
from cad.render.reference import Decoder, Rendered, Sampling

POINTS_PER_CHUNK = 2**20  # without gradients, rays go through in chunks of this many samples to bound the memory [ours]


def render_view(
    planes: Tensor | Volume,
    decoder: Decoder,
    cameras: Tensor,
    focal: float,
    resolution: int,
    sampling: Sampling,
    jitter: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Full square views: features [B, F, r, r] on white, opacity [B, 1, r, r], depth [B, 1, r, r].

    planes: [B, 3, C, N, N]; cameras: [B, 4, 4] camera-to-world; focal in image sides; resolution r in pixels. Without
    gradients, planes that many views see may come as a volume (`cad.render.inference.prepare`) made with this decoder,
    [B] or one for all cameras. Raises ValueError for another decoder's, or where there are gradients.
    """
    field = planes.planes if isinstance(planes, Volume) else planes
    pixels = pixel_centers(resolution).to(field.device, _exact(field)).expand(cameras.shape[0], -1, 2)
    if not isinstance(planes, Volume):
        return _render(planes, decoder, cameras, focal, pixels, resolution, sampling, jitter)
    if torch.is_grad_enabled() or planes.decoder is not decoder:
        raise ValueError("volume: is rendered without gradients, and by the decoder that it is made with")
    if planes.packed is None:
        field = field.expand(len(cameras), -1, -1, -1, -1)
        return _render(field, decoder, cameras, focal, pixels, resolution, sampling, jitter)
    origins, directions = rays(cameras.to(pixels), focal, pixels)
    return _images(inference.render_rays(planes, origins, directions, sampling, jitter), resolution)


def render_patch(
    planes: Tensor,
    decoder: Decoder,
    cameras: Tensor,
    focal: float,
    corners: Tensor,
    size: int,
    resolution: int,
    sampling: Sampling,
    jitter: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Square patches of a virtual view of `resolution` pixels (Sec. 3.2): like `render_view`, but [B, *, size, size].

    corners: [B, 2] integer (x, y) of each patch's first pixel, in 0 .. resolution - size.
    """
    inside = pixel_centers(size).to(planes.device, _exact(planes)) * size  # (x, y) in pixels from the patch's corner
    pixels = (corners[:, None].to(inside) + inside) / resolution
    return _render(planes, decoder, cameras, focal, pixels, size, sampling, jitter)


def crop(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """The pixels [B, C, size, size] of images [B, C, H, W] that `render_patch` renders at the same corners."""
    patches = [image[:, y : y + size, x : x + size] for image, (x, y) in zip(images, corners.tolist(), strict=True)]
    return torch.stack(patches)


def _render(
    planes: Tensor,
    decoder: Decoder,
    cameras: Tensor,
    focal: float,
    pixels: Tensor,
    side: int,
    sampling: Sampling,
    jitter: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render the rays of pixels [B, side^2, 2] and lay them out as images."""
    origins, directions = rays(cameras.to(pixels), focal, pixels)
    chunk = origins.shape[1]
    if not torch.is_grad_enabled() and not (planes.is_cuda and jitter is None and _is_fused(decoder, planes)):
        chunk = max(1, POINTS_PER_CHUNK // (len(cameras) * (sampling.coarse + sampling.fine)))
    parts = [
        _render_rays(planes, decoder, o, d, sampling, jitter)
        for o, d in zip(origins.split(chunk, 1), directions.split(chunk, 1), strict=True)
    ]
    joined = parts[0] if len(parts) == 1 else Rendered(*(torch.cat(p, 1) for p in zip(*parts, strict=True)))
    return _images(joined, side)


def _images(rendered: Rendered, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rays of square images, [B, side^2, *] each, as [B, *, side, side]."""
    features, opacity, depth = (part.transpose(1, 2).unflatten(2, (side, side)) for part in rendered)
    return features, opacity, depth


def _render_rays(
    planes: Tensor,
    decoder: Decoder,
    origins: Tensor,
    directions: Tensor,
    sampling: Sampling,
    jitter: torch.Generator | None,
) -> Rendered:
    if _is_fused(decoder, planes):
        return fused.render_rays(planes, decoder, origins, directions, sampling, jitter)
    return reference.render_rays(planes, decoder, origins, directions, sampling, jitter)


def _is_fused(decoder: Decoder, planes: Tensor) -> TypeGuard[fused.FusedDecoder]:
    """Whether the fused renderer is chosen and takes both; on a GPU its memory needs no chunks, and its speed none."""
    return choice.renderer() == "fused" and isinstance(decoder, fused.FusedDecoder) and fused.can_render(planes)


def _exact(planes: Tensor) -> torch.dtype:
    """What rays are computed in: the planes' dtype, but never half precision."""
    return torch.promote_types(planes.dtype, torch.float32)
