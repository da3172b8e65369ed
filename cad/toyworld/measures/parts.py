"""Which primitive of an object each pixel shows, and how far parts' colours are from each other in two pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from cad.camera import Poses, focal_length, pixel_centers, rays
from cad.config import CameraSettings
from cad.toyworld import sdf
from cad.toyworld.measures.colors import ciede2000, to_lab


def part_ids(scene: np.ndarray, depth: np.ndarray, poses: Poses, camera: CameraSettings) -> np.ndarray:
    """The primitive at every pixel's centre, -1 where there is none: int64 [M, H, W].

    scene: [P, sdf.WIDTH]; depth: [M, H, W] along the ray, inf where it meets nothing (`render_views`). The point that
    a ray hits belongs to the primitive it is nearest to, as in the renderer.
    """
    count, side = depth.shape[:2]
    origins, directions = rays(poses.cameras(camera.radius).double(), focal_length(camera.fov_deg), pixel_centers(side))
    along = torch.from_numpy(depth.reshape(count, -1, 1)).double()
    hit = along.isfinite()
    points = origins + torch.where(hit, along, 0) * directions
    parts = _nearest_parts(scene, points.reshape(-1, 3).numpy()).reshape(count, -1, 1)
    return np.where(hit.numpy(), parts, -1).reshape(depth.shape)


@njit(cache=True)
def _nearest_parts(scene: np.ndarray, points: np.ndarray) -> np.ndarray:
    found = np.empty(len(points), np.int64)
    for k in range(len(points)):
        found[k] = sdf.nearest(scene, points[k, 0], points[k, 1], points[k, 2])[1]
    return found


def visible(parts: np.ndarray, min_pixels: int) -> list[int]:
    """Ids of the parts that cover at least `min_pixels` pixels of one view, ascending; parts: int [H, W]."""
    found, counts = np.unique(parts[parts >= 0], return_counts=True)
    return [int(part) for part, count in zip(found, counts, strict=True) if count >= min_pixels]


def part_colors(image: np.ndarray, parts: np.ndarray, wanted: Sequence[int], shown: np.ndarray) -> np.ndarray:
    """Mean sRGB colour of the pixels of each wanted part where `shown`, float64 [P, 3] in 0 to 255.

    image: uint8 [H, W, 3]; parts: int [H, W]; shown: bool [H, W]. A part of which nothing is shown has the colour that
    is seen there, the background's white: a missing part is no part of the right colour.
    """
    colors = np.full((len(wanted), 3), 255.0)
    for k, part in enumerate(wanted):
        mask = (parts == part) & shown
        if mask.any():
            colors[k] = image[mask].mean(0)
    return colors


def color_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """CIEDE2000 between sRGB colours in 0 to 255, [P, 3] each, to [P]."""
    return ciede2000(to_lab(a), to_lab(b))
