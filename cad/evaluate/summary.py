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
SPAN_LEAST = 5.0  # points of image score between the true and another object; with less, noise is divided [ours]
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

    Above 1 our frames are nearer to the input view than the true ones are, as copies of it would be: no better than 1.
    scored: metrics.json's `scorers`; one is left out without these two rows, or if the true object's score is not at
    least `SPAN_LEAST` above the other's: such a scorer cannot tell them apart.
    """
    found = {}
    for name, part in scored.items():
        image = {row: values["image"] for row, values in part["rows"].items()}
        if {"truth", "other"} <= set(image) and (span := image["truth"] - image["other"]) >= SPAN_LEAST:
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
    draws = diversity.draw_diversity(lpips, refined, settings.diversity_poses, settings.batch, device)
    if draws is not None:
        part["refined"] = round(draws, DECIMALS)
    return part


def consistency_summary(
    settings: EvaluateSettings, camera: CameraSettings, rows: dict[str, Row], poses: Poses
) -> dict[str, Any]:
    """metrics.json's cross-view errors: of the rows that have depth and, as `one_depth`, of ours through 3D's depth."""
    one_depth: dict[str, Row] = {}
    if {"3d", "2d"} <= set(rows):
        one_depth = dict(zip(("3d", "2d"), consistency.through_depth_of(rows["3d"], rows["2d"]), strict=True))
    return {
        "step_frames": settings.step_frames,
        "still_least": consistency.STILL_LEAST,
        "unit": "mean absolute RGB difference, grey levels of 255",
        "rows": cross_view_rows(settings, camera, rows, poses),
        "one_depth": cross_view_rows(settings, camera, one_depth, poses),
    }


def cross_view_rows(
    settings: EvaluateSettings, camera: CameraSettings, rows: dict[str, Row], poses: Poses
) -> dict[str, dict[str, float]]:
    """Per row the cross-view error; without `ratio` where the views hardly differ."""
    done: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        error = consistency.cross_view_error(row, poses, camera, settings.step_frames, settings.depth_tolerance)
        if error is None:
            continue
        numbers = {**error._asdict(), "ratio": error.ratio}
        done[name] = {key: round(value, DECIMALS) for key, value in numbers.items() if value is not None}
    return done


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
