"""From where a sample shows its object: the most similar true view, and whether it is on the right side."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cad.camera import Poses, camera_to_world
from cad.config import CameraSettings
from cad.errors import UserError
from cad.prior.truth import (
    BANK,
    MAX_ANGLE_DEG,
    MIN_IOU,
    distances,
    features,
    intersection_over_union,
    nearest,
    spiral_poses,
    turns_to,
)
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures.questions import Question, Truth, asked_poses, pictures
from cad.toyworld.world import render_views

X, Y = 0, 1  # the object faces -x, and its left is at -y


class Found(NamedTuple):
    """Of each sample: the direction [Q, 3] of the most similar true view, and whether it is bad, [Q] bool."""

    directions: np.ndarray
    bad: np.ndarray


def directions(poses: Poses) -> np.ndarray:
    """Unit vectors from the object to the cameras, float64 [M, 3]."""
    return camera_to_world(poses.azimuth, poses.polar, 1.0)[:, :3, 3].numpy()


def find_poses(
    samples: np.ndarray,
    shapes: np.ndarray,
    data: Dataset,
    asked: Sequence[Question],
    truth: Truth,
    camera: CameraSettings,
) -> Found:
    """Look every sample up among `BANK` true views of its object, spread over the sphere.

    samples: uint8 [Q, H, W, 3]; shapes: their foreground, bool [Q, H, W]. The direction found does not know the target.
    Bad is what `cad.prior.truth` calls bad: the silhouette's IoU, and the angle between the target and the most similar
    of the target's true view and the bank.
    """
    others = spiral_poses(BANK)
    places, true = directions(others), pictures(data, asked)
    turns = turns_to(asked_poses(data, asked), others)
    found = np.empty((len(asked), 3))
    bad = intersection_over_union(shapes, truth.silhouettes) < MIN_IOU
    for subject in sorted({q.subject for q in asked}):
        own = [k for k, q in enumerate(asked) if q.subject == subject]
        views = render_views(data.instances[subject], others, camera, data.images.shape[2])
        bank = features(views.images, views.silhouettes)
        wanted = features(samples[own], shapes[own])
        found[own] = places[distances(wanted, bank).argmin(1)]
        seen = nearest(wanted[:, None], features(true[own], truth.silhouettes[own]), bank)
        bad[own] |= np.take_along_axis(turns[own], seen, 1)[:, 0] > MAX_ANGLE_DEG
    return Found(found, bad)


def right_side(found: np.ndarray, wanted: np.ndarray, axis: int, margin: float) -> np.ndarray:
    """Whether directions found lie on the side of those wanted, along one axis: bool [n].

    found, wanted: [Q, 3]. Only wanted directions farther than `margin` from the plane between the sides are counted
    (UserError if there is none); a direction in the plane is on neither side.
    """
    clear = np.abs(wanted[:, axis]) > margin
    if not clear.any():
        raise UserError(f"check.side_margin: no view lies farther than {margin:g} to a side; lower it")
    return np.sign(found[clear, axis]) == np.sign(wanted[clear, axis])
