"""Where the truth is known: does a view face where it should?

That needs no network, so no network can be fooled by what it scores.
"""

import numpy as np
import torch

from cad.camera import Poses

WITHIN_DEG = 30.0  # a retrieved azimuth counts as right up to here [ours]


def retrieved_azimuth_error(images: np.ndarray, true_views: np.ndarray, poses: Poses, frames: np.ndarray) -> np.ndarray:
    """Azimuth between each view and the true view that it resembles most, in degrees in [0, 180], [n].

    images: uint8 [n, H, W, 3] at the orbit frames `frames` [n]; true_views: uint8 [F, H, W, 3] at `poses`. Resemblance
    is the smallest mean squared pixel difference; of equal ones the first true view wins.
    """
    assert images.shape[1:] == true_views.shape[1:], (images.shape, true_views.shape)
    a, b = (torch.from_numpy(x.reshape(len(x), -1).astype(np.float64)) for x in (images, true_views))
    distance = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    turn = poses.azimuth[distance.argmin(1)] - poses.azimuth[torch.from_numpy(np.asarray(frames))]
    return np.abs(np.degrees(np.arctan2(np.sin(turn.numpy()), np.cos(turn.numpy()))))


def chance_within(poses: Poses) -> float:
    """Share of the orbit's frames within `WITHIN_DEG` of a frame: what a blind retrieval gets right."""
    turn = (poses.azimuth - poses.azimuth[0]).numpy()
    return float((np.abs(np.degrees(np.arctan2(np.sin(turn), np.cos(turn)))) <= WITHIN_DEG + 1e-9).mean())
