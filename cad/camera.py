"""Poses, intrinsics, rays and orbits, with shapes, axes and handedness stated once.

World: right-handed, Z up. Camera axes: OpenCV (right, down, forward). Angles are radians in functions and degrees in
files, settings and names that end in `_deg`. The camera looks at the origin from
radius * (sin polar cos azimuth, sin polar sin azimuth, cos polar); a growing azimuth moves it to its own right.
The reference view is at azimuth 180 deg (Appendix C), so an object's front faces -x.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def focal_length(fov_deg: float) -> float:
    """Focal length in units of the image side, for a pinhole camera of this full field of view (Appendix C)."""
    return 0.5 / math.tan(math.radians(fov_deg) / 2)


def near_far(radius: float, half_side: float) -> tuple[float, float]:
    """Distances that bracket the volume box [-half_side, half_side]^3 from any camera on the sphere."""
    reach = half_side * math.sqrt(3)
    return radius - reach, radius + reach


def camera_to_world(azimuth: Tensor, polar: Tensor, radius: float) -> Tensor:
    """Camera-to-world matrices [..., 4, 4] of cameras that look at the origin; columns right, down, forward, centre.

    azimuth, polar: [...] radians. Well defined at the poles too, where `right` follows the azimuth.
    """
    sin_a, cos_a, sin_p, cos_p = azimuth.sin(), azimuth.cos(), polar.sin(), polar.cos()
    zero, one = torch.zeros_like(sin_a), torch.ones_like(sin_a)
    outward = torch.stack([sin_p * cos_a, sin_p * sin_a, cos_p], -1)
    right = torch.stack([-sin_a, cos_a, zero], -1)
    down = torch.stack([cos_p * cos_a, cos_p * sin_a, -sin_p], -1)
    columns = torch.stack([right, down, -outward, radius * outward], -1)  # [..., 3, 4]
    bottom = torch.stack([zero, zero, zero, one], -1)[..., None, :]
    return torch.cat([columns, bottom], -2)


def pixel_centers(resolution: int) -> Tensor:
    """Pixel centres (x, y) of a square image in units of its side, [resolution^2, 2], row by row: (i + 0.5) / W."""
    steps = (torch.arange(resolution) + 0.5) / resolution
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)


def rays(cameras: Tensor, focal: float, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """World-space rays through image points: origins and unit directions, each [B, R, 3].

    cameras: [B, 4, 4] camera-to-world; focal: in image sides; pixels: [R, 2] or [B, R, 2], (x, y) in image sides.
    """
    pixels = pixels.to(cameras).expand(cameras.shape[0], -1, 2)
    local = torch.cat([(pixels - 0.5) / focal, torch.ones_like(pixels[..., :1])], -1)
    directions = torch.nn.functional.normalize(local @ cameras[:, :3, :3].transpose(1, 2), dim=-1)
    return cameras[:, None, :3, 3].expand_as(directions), directions


def pose_label(cameras: Tensor, focal: float) -> Tensor:
    """The absolute camera pose as the discriminator sees it (Sec. 4): flattened extrinsics and intrinsics, [B, 25]."""
    intrinsics = cameras.new_tensor([focal, 0, 0.5, 0, focal, 0.5, 0, 0, 1]).expand(cameras.shape[0], 9)
    return torch.cat([cameras.flatten(1), intrinsics], 1)


def relative_pose(
    azimuth: Tensor, polar: Tensor, reference_azimuth: Tensor | float, reference_polar: Tensor | float
) -> Tensor:
    """Zero-1-to-3's pose condition, target minus reference: [..., 4] = d_polar, sin d_azimuth, cos d_azimuth, 0.

    All angles in radians; the radius is shared, so its difference is 0.
    """
    turn = azimuth - reference_azimuth
    return torch.stack([polar - reference_polar, turn.sin(), turn.cos(), torch.zeros_like(turn)], -1)


@dataclass(frozen=True)
class Poses:
    """Viewing directions: azimuth and polar angle, each [M] float64, radians."""

    azimuth: Tensor
    polar: Tensor

    def __len__(self) -> int:
        return len(self.azimuth)

    def cameras(self, radius: float) -> Tensor:
        """Camera-to-world matrices [M, 4, 4], float32."""
        return camera_to_world(self.azimuth, self.polar, radius).float()


def sphere_poses(count: int, generator: torch.Generator) -> Poses:
    """Unique directions drawn uniformly on the sphere (Appendix C); pose i depends on the generator and i alone."""
    draws = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return Poses(azimuth=2 * math.pi * draws[:, 0], polar=torch.acos(1 - 2 * draws[:, 1]))


def orbit_poses(frames: int, polar: float, start: float) -> Poses:
    """A 360 deg orbit at one polar angle (Sec. 4): `frames` equal steps of azimuth from `start`, radians."""
    steps = torch.arange(frames, dtype=torch.float64) / frames
    return Poses(azimuth=start + 2 * math.pi * steps, polar=torch.full((frames,), polar, dtype=torch.float64))


def angle_between(a: Poses, b: Poses) -> Tensor:
    """Angle between viewing directions in radians, [len(a), len(b)]."""
    first, second = (camera_to_world(p.azimuth, p.polar, 1.0)[:, :3, 3] for p in (a, b))
    return torch.acos((first @ second.T).clamp(-1, 1))
