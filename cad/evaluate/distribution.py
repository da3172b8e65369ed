"""KID-style distance to true renders: are the views of an object together like true views of the true object?

Features are the scorer's image embeddings of length 1, times the square root of their dimension d, so that the kernel
of KID, (x.y / d + 1)^3, is (cosine + 1)^3. KID itself has Inception's features, so its numbers are another unit.

The estimate is the unbiased one of two sets of independent draws. Evenly spaced frames are no such draws: they fill the
circle better, so the same object comes out slightly below 0. The row of the true object shows that floor.
"""

import math

from torch import Tensor

from cad.camera import Poses

UNIT = 1000.0  # the distance is given times this, as is customary for KID


def features(embeddings: Tensor) -> Tensor:
    """Embeddings of length 1, [n, d], as the kernel's features: float64, of length sqrt(d)."""
    return embeddings.double() * math.sqrt(embeddings.shape[-1])


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """KID's polynomial kernel (x.y / d + 1)^3 of features [n, d] and [m, d]: [n, m]."""
    return (a @ b.T / a.shape[-1] + 1) ** 3


def squared_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy between features [n, d] and [m, d]; n, m >= 2."""
    within = sum(_mean_of_pairs(kernel(each, each)) for each in (a, b))
    return float(within - 2 * kernel(a, b).mean())


def _mean_of_pairs(values: Tensor) -> Tensor:
    """Mean of a square matrix without its diagonal: nothing is compared with itself."""
    n = len(values)
    return (values.sum() - values.diagonal().sum()) / (n * (n - 1))


def kid(views: Tensor, true_views: Tensor) -> float | None:
    """Distance of unit embeddings [S, F, d] to those of true views [m, d], times `UNIT`: the mean over the S seeds.

    Seed by seed, since each is one object, as the truth is; and so rows with more seeds gain nothing from their number.
    Rows with fewer frames are compared with the same true views. None with fewer than two views to compare.
    """
    if min(views.shape[1], len(true_views)) < 2:
        return None
    true = features(true_views)
    return UNIT * sum(squared_mmd(features(each), true) for each in views) / len(views)


def between_frames(poses: Poses) -> Poses:
    """The orbit's poses moved on by half a frame step: views of the same object that are no frame of the orbit."""
    return Poses(poses.azimuth + math.pi / len(poses), poses.polar)
