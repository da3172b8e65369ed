"""The polar angle by silhouettes: how much of each of them no body explains that all of them allow.

One-2-3-45's search with another error [ours], for pictures whose details differ from view to view. The cameras of
views all around an object follow from a supposed polar angle; where it is right, the visual hull of all silhouettes
fills each of them. This is the silhouette coherence of Hernandez, Schmitt and Cipolla (PAMI 2007), with which they
calibrate turntables.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from cad.camera import camera_to_world, focal_length
from cad.config import CameraSettings, ElevationSettings
from cad.inputs.polar import Estimate, try_angles


class Ball(NamedTuple):
    """Cell centres [n, 3] of the ball that every camera sees whole, and the cells' side, in scene units."""

    cells: Tensor
    side: float


def ring_offsets(ring_deg: Sequence[float]) -> Tensor:
    """(d_polar, d_azimuth) of views around the object in radians, [n, 2] float64; the polar angle stays."""
    turns = torch.tensor(ring_deg, dtype=torch.float64)
    return torch.stack([torch.zeros_like(turns), turns], -1).deg2rad()


def visible_ball(cells: int, camera: CameraSettings) -> Ball:
    """The ball about the origin that fits the field of view, in a grid of `cells` along its diameter."""
    reach = camera.radius * math.sin(math.radians(camera.fov_deg) / 2)
    steps = ((torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 - 1) * reach
    grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    return Ball(grid[grid.norm(dim=-1) <= reach], 2 * reach / cells)


def search_outlines(
    masks: np.ndarray, ring_deg: Sequence[float], settings: ElevationSettings, camera: CameraSettings
) -> Estimate:
    """The polar angle whose hull leaves least of the silhouettes, bool [n, S, S], at these azimuths [n] uncovered.

    Undetermined are an empty silhouette, one that fills its frame, silhouettes that contradict each other at every
    angle, and those that agree at every angle, as a ball's.
    """
    basis = f"{len(masks)} silhouettes"
    if not masks.any((1, 2)).all():
        return Estimate(None, "a view shows no object", basis, {})
    if masks.all((1, 2)).any():
        return Estimate(None, "a view shows no background", basis, {})
    ball, shown = visible_ball(settings.hull_cells, camera), torch.from_numpy(np.ascontiguousarray(masks))
    best, coarse, errors = try_angles(lambda polar: uncovered(shown, polar, ring_deg, ball, camera))
    if errors[best] > settings.max_uncovered:
        why = f"even at {best} deg no body explains {errors[best]:.0%} of the silhouettes"
    elif max(coarse.values()) - min(coarse.values()) < settings.min_gap:
        why = "the silhouettes fit every angle"
    else:
        said = f"{basis} of which {errors[best]:.1%} contradicts the others"
        return Estimate(float(best), "", said, errors)
    return Estimate(None, why, basis, errors)


def uncovered(masks: Tensor, polar_deg: float, ring_deg: Sequence[float], ball: Ball, camera: CameraSettings) -> float:
    """The share of a silhouette, in the mean over views, that the visual hull of all of them does not fill.

    masks: [n, S, S] bool at azimuths ring_deg [n] and one supposed polar angle.
    """
    side, focal = masks.shape[-1], focal_length(camera.fov_deg)
    offsets = ring_offsets(ring_deg)
    cameras = camera_to_world(offsets[:, 1], torch.full_like(offsets[:, 1], math.radians(polar_deg)), camera.radius)
    local = (ball.cells - cameras[:, None, :3, 3]) @ cameras[:, :3, :3]  # the transpose's rows are the camera's axes
    pixels = ((focal * local[..., :2] / local[..., 2:] + 0.5) * side).floor().long().clamp(0, side - 1)
    position = pixels[..., 1] * side + pixels[..., 0]
    hull = masks.flatten(1).gather(1, position).all(0)
    filled = torch.zeros(len(masks), side * side)
    filled.scatter_(1, position[:, hull], 1.0)
    # A cell is wider than a pixel: it fills those that its shadow reaches, seen from the distance of the centre.
    reach = max(1, round(ball.side / 2 * focal / camera.radius * side))
    filled = max_pool2d(filled.view(len(masks), 1, side, side), 2 * reach + 1, 1, reach)[:, 0]
    return float(((masks & (filled == 0)).sum((1, 2)) / masks.sum((1, 2))).mean())


def agreed(draws: np.ndarray) -> np.ndarray:
    """What at least half of the draws show, bool [n, S, S] of bool [draws, n, S, S]."""
    return np.asarray(draws.mean(0) >= 0.5)
