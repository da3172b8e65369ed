"""Cross-view error: does what one view shows lie where its own depth says, when seen from a neighbouring view?

A pixel is carried by its depth into the next view, and the two colours are compared. A wrong depth or a texture that
moves with the camera does not survive that; a diffuse object with the right depth does. No network judges.

The error alone can be made small by showing little: one picture on a plane that always faces the camera is carried to
nearly where it was. So it is judged as a share of what the same pixels differ by without the warp: what explains no
change has 1 or more, and what does not change at all has no such share. Views that hide much behind wrong depth are
compared at few pixels, which is why their share stands beside it.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool2d

from cad.camera import Poses, camera_to_world, focal_length, pixel_centers, rays
from cad.config import CameraSettings
from cad.evaluate.controls import Row

STILL_LEAST = 0.5  # grey levels: views that differ by less show no change to explain [ours]; true orbits have about 10
WHOLE = 1 - 1e-6  # an interpolated mask this high has only solid pixels below it


class View(NamedTuple):
    """One view: color [3, H, W] in grey levels, solid [H, W] bool, depth [H, W] along the ray, camera-to-world [4, 4].

    All but `solid` are float64; depth is in scene units and matters where the view is solid.
    """

    color: Tensor
    solid: Tensor
    depth: Tensor
    camera: Tensor


class CrossViewError(NamedTuple):
    """Mean absolute RGB difference in grey levels of 255, with the warp and at the same pixels without.

    pixels: how many were compared; share: of those that lie inside a silhouette, in (0, 1].
    """

    warp_error: float
    still_error: float
    pixels: int
    share: float

    @property
    def ratio(self) -> float | None:
        """The share of the change between the views that the depth does not explain; None without a change."""
        return self.warp_error / self.still_error if self.still_error >= STILL_LEAST else None


def cross_view_error(
    row: Row, poses: Poses, camera: CameraSettings, step_frames: int, tolerance: float
) -> CrossViewError | None:
    """The error from each frame to the one `step_frames` later around the orbit, over all pixels, frames and seeds.

    poses: all of the orbit's; tolerance in scene units, see `warp_differences`. None for a row without depth, without
    two such frames, or without a solid pixel that both show.
    """
    if row.depth is None:
        return None
    place = {frame: index for index, frame in enumerate(row.frames.tolist())}
    later = {k: place.get((frame + step_frames) % len(poses), k) for frame, k in place.items()}
    pairs = [(k, next_one) for k, next_one in later.items() if next_one != k]
    cameras = camera_to_world(poses.azimuth, poses.polar, camera.radius)[row.frames]
    focal = focal_length(camera.fov_deg)
    warped, still, pixels, candidates = 0.0, 0.0, 0, 0
    for images, silhouettes, depth in zip(row.images, row.silhouettes, row.depth, strict=True):
        views = [view(*parts) for parts in zip(images, silhouettes, depth, cameras, strict=True)]
        for k, next_one in pairs:
            moved, unmoved = warp_differences(views[k], views[next_one], focal, tolerance)
            warped, still, pixels = warped + float(moved.sum()), still + float(unmoved.sum()), pixels + len(moved)
            candidates += int(inner(views[k].solid).sum())
    return CrossViewError(warped / pixels, still / pixels, pixels, pixels / candidates) if pixels else None


def through_depth_of(row: Row, other: Row) -> tuple[Row, Row]:
    """Both rows with the depth of `row`, where both are solid: what is left to differ is how the colours turn.

    So a smoother depth, or one of another resolution, makes no difference between the two. They share seeds and frames.
    """
    both = row.silhouettes & other.silhouettes
    return row._replace(silhouettes=both), other._replace(silhouettes=both, depth=row.depth)


def inner(solid: Tensor) -> Tensor:
    """The pixels that are solid with their eight neighbours, bool [H, W]; beyond the image counts as solid."""
    return ~max_pool2d((~solid)[None].double(), 3, stride=1, padding=1)[0].bool()


def view(image: NDArray[np.uint8], silhouette: NDArray[np.bool_], depth: NDArray[np.floating], camera: Tensor) -> View:
    """A view from an image [H, W, 3] on white; what has no finite, positive depth is not solid."""
    known = np.isfinite(depth) & (depth > 0)
    return View(
        torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1),
        torch.from_numpy(silhouette & known),
        torch.from_numpy(np.where(known, depth, 0.0).astype(np.float64)),
        camera.double(),
    )


def warp_differences(source: View, target: View, focal: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """Absolute RGB difference of each pixel of `source` that `target` shows too, with and without the warp, each [n].

    A pixel counts where it and its eight neighbours are solid (a silhouette's edge has the background's colour in it),
    where the four pixels around its place in the target are, and where the target's depth there is that of the point
    within `tolerance`; else something hides it. focal in image sides; colours and depths are sampled bilinearly.
    """
    side = source.solid.shape[-1]
    pixels = inner(source.solid).flatten().nonzero()[:, 0]
    origins, directions = rays(source.camera[None], focal, pixel_centers(side)[pixels])
    points = (origins + source.depth.flatten()[pixels, None] * directions)[0]
    offset = points - target.camera[:3, 3]
    right, down, forward = (offset @ target.camera[:3, :3]).unbind(-1)
    grid = 2 * focal * torch.stack([right, down], -1) / forward[:, None]
    layers = torch.cat([target.color, target.depth[None], target.solid[None].double()])
    # Outside of the image zeros are sampled, which are not solid.
    found = grid_sample(layers[None], grid[None, None], mode="bilinear", padding_mode="zeros", align_corners=False)
    color, depth, solid = found[0, :, 0].split([3, 1, 1])
    seen = (forward > 0) & (solid[0] >= WHOLE) & ((depth[0] - offset.norm(dim=-1)).abs() <= tolerance)
    own = source.color.flatten(1)[:, pixels]
    unmoved = target.color.flatten(1)[:, pixels]
    return (own - color).abs().mean(0)[seen], (own - unmoved).abs().mean(0)[seen]
