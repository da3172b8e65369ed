"""The parts of metrics.json, from the scored frames and from the measures; all numbers are rounded here.

A row is left out of a part that cannot be measured of it: an absent number, never a zero in its place.
"""

from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from cad.artifacts import PriorCache
from cad.camera import Poses
from cad.config import CameraSettings, EvaluateSettings
from cad.evaluate import consistency, distribution, diversity, truth
from cad.evaluate.controls import Row
from cad.evaluate.scorers import Scorer

DECIMALS = 6
PARTS = ("truth", "distribution", "diversity", "consistency")  # those that have rows, beside the scorers


def scorer_summary(scorer: Scorer, settings: EvaluateSettings, table: pd.DataFrame) -> dict[str, Any]:
    """One scorer's part of metrics.json: what it is, and per row the mean over frames and the std over seeds."""
    chosen = settings.scorers[scorer.name]
    return {
        "kind": chosen.kind,
        "model": str(chosen.model),
        "pretrained": chosen.pretrained,
        "weights": scorer.weights_digest,
        "preprocessing": scorer.preprocessing,
        "rows": {
            name: {
                **seed_statistics(part, f"image: {scorer.name}", "image"),
                **seed_statistics(part, f"text: {scorer.name}", "text"),
                "views": len(part),
            }
            for name, part in table.groupby("row", sort=False)
        },
    }


def seed_statistics(part: pd.DataFrame, column: str, name: str) -> dict[str, float]:
    """Mean of a column over frames and seeds and, with two seeds or more, the std of the seeds' means (n - 1)."""
    means = part.groupby("seed")[column].mean()
    values = {name: round(float(means.mean()), DECIMALS)}
    if len(means) > 1:
        values[f"{name}_std"] = round(float(means.std(ddof=1)), DECIMALS)
    return values


def truth_summary(table: pd.DataFrame, poses: Poses) -> dict[str, Any]:
    """metrics.json's part on the known truth: per row the share of right azimuths and the mean silhouette IoU."""
    rows = {}
    for name, part in table.groupby("row", sort=False):
        right = part.assign(right=(part["azimuth_error_deg"] <= truth.WITHIN_DEG).astype(float))
        rows[name] = {
            **seed_statistics(right, "right", "azimuth_right"),
            "azimuth_right_seeds": [round(float(share), DECIMALS) for share in right.groupby("seed")["right"].mean()],
            **seed_statistics(part, "silhouette_iou", "silhouette_iou"),
        }
    return {
        "within_deg": truth.WITHIN_DEG,
        "chance": round(truth.chance_within(poses), DECIMALS),
        "rows": rows,
    }


def relative_image(scored: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Per scorer, where our image scores lie between the other object's (0) and the true object's (1).

    scored: metrics.json's `scorers`; empty without these two rows, or where they do not differ.
    """
    found = {}
    for name, part in scored.items():
        image = {row: values["image"] for row, values in part["rows"].items()}
        if "truth" in image and "other" in image and image["truth"] != image["other"]:
            span = image["truth"] - image["other"]
            ours = [row for row in ("3d", "2d") if row in image]
            found[name] = {row: round((image[row] - image["other"]) / span, DECIMALS) for row in ours}
    return found


def distribution_summary(name: str, views: dict[str, Tensor], true_views: Tensor) -> dict[str, Any]:
    """metrics.json's distances to the true views, on the features of the scorer `name`."""
    found = {row: distribution.kid(each, true_views) for row, each in views.items()}
    rows = {row: {"kid": round(value, DECIMALS)} for row, value in found.items() if value is not None}
    return {"features": name, "unit": f"KID x {distribution.UNIT:.0f}", "rows": rows}


def diversity_summary(
    settings: EvaluateSettings, rows: dict[str, Row], refined: PriorCache, lpips: nn.Module, device: torch.device
) -> dict[str, Any]:
    """metrics.json's distances between seeds at equal pose and, as `refined`, between draws of the refined samples."""
    found = {
        name: diversity.seed_diversity(lpips, row.images, settings.diversity_interval, settings.batch, device)
        for name, row in rows.items()
    }
    part: dict[str, Any] = {"distance": diversity.DISTANCE}
    part["rows"] = {name: {"lpips": round(value, DECIMALS)} for name, value in found.items() if value is not None}
    if part["rows"] and "copied" in rows:
        part["rows"]["copied"] = {"lpips": 0.0}  # the reference is the same under every seed
    draws = diversity.draw_diversity(lpips, refined, settings.diversity_poses, settings.batch, device)
    if draws is not None:
        part["refined"] = round(draws, DECIMALS)
    return part


def consistency_summary(
    settings: EvaluateSettings, camera: CameraSettings, rows: dict[str, Row], poses: Poses
) -> dict[str, Any]:
    """metrics.json's cross-view errors of the rows that have depth."""
    step, tolerance = settings.step_frames, settings.depth_tolerance
    found = {name: consistency.cross_view_error(row, poses, camera, step, tolerance) for name, row in rows.items()}
    return {
        "step_frames": step,
        "unit": "mean absolute RGB difference, grey levels of 255",
        "rows": {
            name: {
                "warp_error": round(error.warp_error, DECIMALS),
                "still_error": round(error.still_error, DECIMALS),
                "pixels": error.pixels,
            }
            for name, error in found.items()
            if error is not None
        },
    }


def flattened(metrics: dict[str, Any]) -> dict[str, float]:
    """The rows' numbers as `<scorer or part>/<row>/<measure>`, for the tracker."""
    parts = metrics["scorers"] | {name: part for name, part in metrics.items() if name in PARTS}
    return {
        f"{part}/{row}/{measure}": float(value)
        for part, content in parts.items()
        for row, values in content["rows"].items()
        for measure, value in values.items()
        if isinstance(value, int | float)
    }
