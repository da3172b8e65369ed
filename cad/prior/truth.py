"""What pruning should have decided, known in toyworld only: every sample against the true object (FACTS section 4)."""

import math

import numpy as np
import pandas
import torch

from cad.artifacts import PriorCache
from cad.camera import Poses, angle_between
from cad.config import CameraSettings, ToyworldSettings
from cad.prior.pictures import foreground
from cad.toyworld.world import instance, render_views

MIN_IOU = 0.8  # FACTS section 4 [ours]
MAX_ANGLE_DEG = 20.0  # FACTS section 4 [ours]
BANK = 200  # true views to compare with: about 14 deg apart, well under MAX_ANGLE_DEG
AT_ONCE = 16  # poses whose samples are compared in one product [ours]


def spiral_poses(count: int) -> Poses:
    """Directions spread evenly over the sphere by the golden-angle spiral."""
    k = torch.arange(count, dtype=torch.float64)
    return Poses(
        azimuth=torch.remainder(k * math.pi * (3 - math.sqrt(5)), 2 * math.pi),
        polar=torch.acos(1 - 2 * (k + 0.5) / count),
    )


def turns_to(targets: Poses, bank: Poses) -> np.ndarray:
    """Angles in degrees from each of P target poses to what `nearest` names: itself, then the bank's, [P, 1 + K]."""
    turns = angle_between(targets, bank).rad2deg().numpy()
    return np.concatenate([np.zeros((len(turns), 1)), turns], 1)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of masks, bool [..., H, W], broadcast against each other; two empty masks agree perfectly."""
    union = (a | b).sum((-2, -1))
    return np.where(union > 0, (a & b).sum((-2, -1)) / np.maximum(union, 1), 1.0)


def features(images: np.ndarray, silhouettes: np.ndarray) -> np.ndarray:
    """What views [..., H, W, 3] are compared by: grey levels, and 255 in the silhouette, float64 [..., 4 H W].

    Their squares and products are whole numbers, whose sums are exact in any order: equal views are equally far.
    """
    return np.concatenate([images, 255.0 * silhouettes[..., None]], -1).reshape(*images.shape[:-3], -1)


def distances(samples: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Squared L2 distances of samples [B, F] from views [K, F], each less the same: the sample's own square; [B, K]."""
    return np.einsum("kf,kf->k", views, views) - 2 * samples @ views.T


def nearest(samples: np.ndarray, targets: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Which view is at the smallest L2 distance from each sample: 0 its target, k + 1 the bank's k-th; ties: the first.

    samples: [P, N, F] of P poses; targets: [P, F]; bank: [K, F]. Returns [P, N].
    """
    own = np.stack([distances(some, target[None]) for some, target in zip(samples, targets, strict=True)])
    others = distances(samples.reshape(-1, samples.shape[-1]), bank).reshape(*samples.shape[:2], -1)
    return np.concatenate([own, others], -1).argmin(-1)


def measure_truth(
    prior: PriorCache, subject: ToyworldSettings, camera: CameraSettings, white_threshold: int
) -> pandas.DataFrame:
    """One row per (pose, sample): silhouette IoU with the true view, the angle to the nearest true pose, and whether
    the sample is truly bad.

    The nearest true pose is the most similar (silhouette and colour, L2) of the target itself and of `BANK` true views
    over the whole sphere. A view that looks the same from elsewhere counts as right, because the target comes first.
    """
    truth = instance(subject.family, subject.seed)
    true = render_views(truth, prior.poses, camera, prior.resolution)
    others = spiral_poses(BANK)
    bank = render_views(truth, others, camera, prior.resolution)
    bank_features = features(bank.images, bank.silhouettes)
    turns = turns_to(prior.poses, others)
    rows = []
    for some in np.split(np.arange(len(prior)), range(AT_ONCE, len(prior), AT_ONCE)):
        samples = np.stack([prior.read(i) for i in some])  # [P, N, H, W, 3]
        shapes = foreground(samples, white_threshold)
        overlap = intersection_over_union(shapes, true.silhouettes[some][:, None])
        targets = features(true.images[some], true.silhouettes[some])
        found = nearest(features(samples, shapes), targets, bank_features)
        for i, ious, angles in zip(some, overlap, np.take_along_axis(turns[some], found, 1), strict=True):
            for j, (iou, angle) in enumerate(zip(ious, angles, strict=True)):
                bad = bool(iou < MIN_IOU or angle > MAX_ANGLE_DEG)
                pose = prior.pose_ids[i]
                rows.append({"pose": pose, "sample": j, "iou": float(iou), "angle_deg": float(angle), "bad": bad})
    return pandas.DataFrame(rows)


def summarize_truth(truth: pandas.DataFrame, decisions: pandas.DataFrame) -> dict[str, float | int | None]:
    """Precision and recall of the rejections, and the share of truly bad samples before and after pruning.

    A pose is truly bad when any of its samples is: both checks of Sec. 3.3 ask for the worst sample. Precision is
    the share of rejected poses that are truly bad, recall the share of truly bad poses that are rejected; null where
    the denominator is zero. `bad_before` is of the first sample of every pose, `bad_after` of the chosen one of kept
    poses.
    """
    bad = truth.groupby("pose")["bad"].any().reindex(decisions["pose"]).to_numpy()
    rejected = ~decisions["kept"].to_numpy()
    by_sample = truth.set_index(["pose", "sample"])["bad"]
    kept = decisions[decisions["kept"]]
    first = [bool(by_sample[pose, 0]) for pose in decisions["pose"]]
    chosen = [bool(by_sample[pose, sample]) for pose, sample in zip(kept["pose"], kept["chosen"], strict=True)]
    hits = int((bad & rejected).sum())
    return {
        "bad_poses": int(bad.sum()),
        "bad_samples": int(truth["bad"].sum()),
        "precision": hits / int(rejected.sum()) if rejected.any() else None,
        "recall": hits / int(bad.sum()) if bad.any() else None,
        "bad_before": float(np.mean(first)),
        "bad_after": float(np.mean(chosen)),
        "mean_iou": float(truth["iou"].mean()),
        "median_angle_deg": float(truth["angle_deg"].median()),
    }
