"""Table 1's protocol: each frame of the orbit against the reference view (image score) and the prompt (text score)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cad.artifacts import InputArtifact, Orbit, read_json, write_atomic, write_image, write_json
from cad.camera import Poses
from cad.config import CameraSettings, EvaluateSettings, ObjectSettings, OrbitSettings
from cad.context import Context
from cad.errors import UserError
from cad.evaluate import controls, truth
from cad.evaluate.controls import Row
from cad.evaluate.scorers import Scorer, load_scorer, score
from cad.progress import progress

DECIMALS = 6


def evaluate_orbit(
    settings: EvaluateSettings,
    camera: CameraSettings,
    source: ObjectSettings,
    input_dir: Path,
    orbit_dir: Path,
    stage2_dir: Path,
    out: Path,
    context: Context,
) -> None:
    """Score an orbit and its controls; write metrics.json (means, std over seeds) and views/frames.csv (every
    frame), and in toyworld views/truth.png, the true orbit as a strip.

    Raises UserError for an orbit or an input that is broken, and for a scorer whose weights are missing.
    """
    if not settings.scorers:
        raise UserError("evaluate.scorers: there is none; name at least one, e.g. a folder under data/weights")
    reference, orbit = InputArtifact.open(input_dir), Orbit.open(orbit_dir)
    scorers = [load_scorer(name, each, context.device) for name, each in settings.scorers.items()]
    rows = dict(collect_rows(settings, camera, source, reference, orbit, orbit_dir, stage2_dir, context))
    table = pd.concat([frame_table(name, row, orbit.poses) for name, row in rows.items()], ignore_index=True)
    with progress(len(scorers) * len(table), "scoring", 0) as bar:
        for scorer in scorers:
            scores = [clip_scores(scorer, row, reference, settings.batch, bar.advance) for row in rows.values()]
            for k, kind in enumerate(("image", "text")):
                table[f"{kind}: {scorer.name}"] = np.concatenate([each[k].ravel() for each in scores])
    if source.toyworld is not None:
        true = rows.get("truth") or controls.true_row(source, camera, orbit.poses, orbit.resolution)
        add_truth(table, rows, true, orbit.poses)
        strip = np.concatenate(list(true.images[0]), axis=1)  # for the overview figure
        write_image(out / "views" / "truth.png", strip)
    table = table.round(DECIMALS)
    write_atomic(out / "views" / "frames.csv", table.to_csv(index=False, lineterminator="\n").encode())
    metrics: dict[str, Any] = {
        "schema": 1,
        "object": context.object,
        "prompt": reference.prompt,
        "frames": len(orbit),
        "seeds": len(orbit.seeds),
        "scorers": {scorer.name: summary(scorer, settings, table) for scorer in scorers},
    }
    if source.toyworld is not None:
        metrics["truth"] = truth_summary(table, orbit.poses)
    write_json(out / "metrics.json", metrics)
    for scorer in scorers:
        for name, values in metrics["scorers"][scorer.name]["rows"].items():
            context.tracker.log({f"{scorer.name}/{name}/{kind}": values[kind] for kind in ("image", "text")}, 0)
    context.tracker.table("evaluate/frames", table)


def collect_rows(
    settings: EvaluateSettings,
    camera: CameraSettings,
    source: ObjectSettings,
    reference: InputArtifact,
    orbit: Orbit,
    orbit_dir: Path,
    stage2_dir: Path,
    context: Context,
) -> Iterator[tuple[str, Row]]:
    """Our branches, then (on request) the ceiling and the controls, by the names that metrics.json uses."""
    for branch in ("3d", "2d"):
        if branch in orbit.branches:
            yield branch, controls.orbit_row(orbit, branch)
    if not settings.controls:
        return
    side = orbit.resolution
    if source.toyworld is not None:
        yield "truth", controls.true_row(source, camera, orbit.poses, side)
    yield "copied", controls.copied_row(reference, len(orbit), side)
    if source.toyworld is not None:
        yield "other", controls.other_row(source, camera, orbit.poses, side)
    rendered_with = OrbitSettings(**read_json(orbit_dir / "render.json"))
    yield "untrained", controls.untrained_row(stage2_dir, rendered_with, camera, orbit.poses, context)


def frame_table(name: str, row: Row, poses: Poses) -> pd.DataFrame:
    """One line per view of a row: row, seed, frame, azimuth in degrees."""
    seeds, count = row.images.shape[:2]
    azimuth = np.degrees(poses.azimuth.numpy()[row.frames]) % 360
    return pd.DataFrame(
        {
            "row": name,
            "seed": np.repeat(np.arange(seeds), count),
            "frame": np.tile(row.frames, seeds),
            "azimuth_deg": np.tile(azimuth, seeds),
        }
    )


def clip_scores(
    scorer: Scorer, row: Row, reference: InputArtifact, batch: int, advance: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Image and text score of every view of a row, each [S, F] (100 x cosine)."""
    flat = row.images.reshape(-1, *row.images.shape[2:])
    parts = []
    for start in range(0, len(flat), batch):
        parts.append(scorer.images(flat[start : start + batch]))
        advance(len(parts[-1]))
    views = torch.cat(parts)
    shape = row.images.shape[:2]
    image = score(views, scorer.images(reference.image[None]))[:, 0]
    text = score(views, scorer.texts([reference.prompt]))[:, 0]
    return image.numpy().reshape(shape), text.numpy().reshape(shape)


def add_truth(table: pd.DataFrame, rows: dict[str, Row], true: Row, poses: Poses) -> None:
    """Add what the toyworld knows: the azimuth error of the nearest true view, and the silhouette's IoU."""
    errors, overlaps = [], []
    for row in rows.values():
        for images, silhouettes in zip(row.images, row.silhouettes, strict=True):
            errors.append(truth.retrieved_azimuth_error(images, true.images[0], poses, row.frames))
            overlaps.append(truth.silhouette_iou(silhouettes, true.silhouettes[0][row.frames]))
    table["azimuth_error_deg"] = np.concatenate(errors)
    table["silhouette_iou"] = np.concatenate(overlaps)


def summary(scorer: Scorer, settings: EvaluateSettings, table: pd.DataFrame) -> dict[str, Any]:
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
            **seed_statistics(part, "silhouette_iou", "silhouette_iou"),
        }
    return {
        "within_deg": truth.WITHIN_DEG,
        "chance": round(truth.chance_within(poses), DECIMALS),
        "rows": rows,
    }
