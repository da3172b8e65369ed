"""How well depth is estimated from one held-out view: Sec. 3.3's ControlNet follows it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from cad.prior.depth import DepthEstimator
from cad.prior.pictures import to_network
from cad.toyworld.dataset import Dataset
from cad.toyworld.depth import true_inverse_depth
from cad.toyworld.measures import bars
from cad.toyworld.measures.questions import CPU, batches, pictures, questions, truths
from cad.toyworld.measures.table import Measure
from cad.toyworld.settings import ToyworldSettings

FLAT = "one depth for each view"


def measure_depth(name: str, settings: ToyworldSettings, data: Dataset, weights: Path) -> list[Measure]:
    """Median absolute relative error of depth over the objects' pixels, after scale and shift, beside a flat estimate.

    The median over a view's pixels, then over the views far from the reference.
    """
    model = DepthEstimator.load(weights / name, CPU)
    asked = questions(settings.check, data)
    errors, flat = [], []
    for batch in batches(asked, settings.check.batch):
        subjects, views = torch.tensor(batch).T
        found = model.estimate(to_network(pictures(data, batch), CPU), data.images.shape[2])[:, 0].double().numpy()
        true = true_inverse_depth(data, subjects, views, settings.camera).double().numpy()
        shown = truths(data, batch, settings.camera).silhouettes
        errors += list(relative_errors(found, true, shown))
        flat += list(relative_errors(np.zeros_like(found), true, shown))
    title = "median absolute relative error of the object's depth, after scale and shift"
    return [Measure(name, title, float(np.median(errors)), float(np.median(flat)), FLAT, len(errors), bars.DEPTH)]


def relative_errors(found: np.ndarray, true: np.ndarray, shown: np.ndarray) -> Iterator[float]:
    """Median of |depth - true depth| / true depth over each view's pixels that show its object; none, no number.

    found, true: inverse depth [B, H, W], the first up to scale and shift; shown: bool [B, H, W].
    """
    for a, b, mask in zip(found, true, shown, strict=True):
        if mask.any():
            depth = 1 / aligned(a[mask], b[mask])
            yield float(np.median(np.abs(depth * b[mask] - 1)))


def aligned(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """`scale` x found + shift, [n], nearest to the true inverse depth in least squares, as MiDaS is evaluated.

    A scale below 0 would turn near into far: it counts as 0, which leaves the mean. Nothing lies beyond infinity.
    """
    spread = found - found.mean()
    variance = float((spread**2).mean())
    scale = max(float((spread * true).mean()) / variance, 0.0) if variance > 0 else 0.0
    return np.maximum(true.mean() + scale * spread, np.finfo(np.float32).eps)
