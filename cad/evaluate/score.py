"""Table 1's protocol: each frame of the orbit against the reference view (image score) and the prompt (text score).

Beside it stand measures that different fakes fail: where the truth is known, the azimuth and the silhouette (`truth`)
and the distance to true views (`distribution`); always the diversity and the cross-view error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cad.artifacts import InputArtifact, Orbit, PriorCache, write_atomic, write_image, write_json
from cad.camera import Poses
from cad.config import CameraSettings, EvaluateSettings, ModelPaths, ObjectSettings
from cad.context import Advance, Context, Do
from cad.errors import UserError
from cad.evaluate import controls, distribution, truth
from cad.evaluate.controls import Row
from cad.evaluate.scorers import Scorer, load_scorer, score
from cad.evaluate.summary import (
    DECIMALS,
    SPAN_LEAST,
    consistency_summary,
    distribution_summary,
    diversity_summary,
    flattened,
    relative_image,
    scorer_summary,
    truth_summary,
)
from cad.progress import progress
from cad.train.perceptual import load_lpips


class Batch(NamedTuple):
    """Views of one row that one scorer embeds at once: `first` and following of the row's seeds and frames."""

    scorer: str
    row: str
    first: int


@dataclass
class Plan:
    """What the batches of one evaluation have in common; views: uint8 [S, F, H, W, 3] by row."""

    settings: EvaluateSettings
    views: dict[str, np.ndarray]
    scorers: list[Scorer] | None  # as they are loaded in this process; another one loads its own

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "scorers": None}

    def batches(self) -> list[Batch]:
        """Every batch, scorer by scorer and row by row."""
        counts = {row: views.shape[0] * views.shape[1] for row, views in self.views.items()}
        size = self.settings.batch
        return [
            Batch(scorer, row, first)
            for scorer in self.settings.scorers
            for row, count in counts.items()
            for first in range(0, count, size)
        ]


def evaluate_orbit(
    settings: EvaluateSettings,
    camera: CameraSettings,
    models: ModelPaths,
    source: ObjectSettings,
    input_dir: Path,
    refine_dir: Path,
    orbit_dir: Path,
    stage2_dir: Path,
    out: Path,
    context: Context,
) -> None:
    """Score an orbit and its controls; write metrics.json (means, std over seeds) and views/frames.csv (every
    frame), and in toyworld views/truth.png, the true orbit as a strip.

    A row is left out of a measure that cannot be taken of it. Raises UserError for an orbit, an input or refined
    samples that are broken, and for a scorer or LPIPS whose weights are missing.
    """
    reference, orbit, refined = InputArtifact.open(input_dir), Orbit.open(orbit_dir), PriorCache.open(refine_dir)
    check_settings(settings, orbit)
    scorers = load_scorers(settings, context.device)
    lpips = load_lpips(Path(models.lpips), context.device)
    rows = dict(controls.collect_rows(settings, camera, source, reference, orbit, stage2_dir, context))
    table = pd.concat([frame_table(name, row, orbit.poses) for name, row in rows.items()], ignore_index=True)
    embedded = embed_rows(Plan(settings, {name: row.images for name, row in rows.items()}, scorers), context)
    for scorer, views in zip(scorers, embedded, strict=True):
        add_scores(table, scorer, views, reference)
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
        "scorers": {scorer.name: scorer_summary(scorer, settings, table) for scorer in scorers},
        "diversity": diversity_summary(settings, rows, refined, lpips, context.device),
        "consistency": consistency_summary(settings, camera, rows, orbit.poses),
    }
    if source.toyworld is not None:
        metrics["truth"] = truth_summary(table, orbit.poses)
        metrics["relative_image"] = relative_image(metrics["scorers"])
        metrics["relative_span_least"] = SPAN_LEAST
        between = controls.true_row(source, camera, distribution.between_frames(orbit.poses), orbit.resolution)
        true_views = embed(scorers[0], between.images, settings.batch)[0]
        metrics["distribution"] = distribution_summary(scorers[0].name, embedded[0], true_views)
    write_json(out / "metrics.json", metrics)
    context.tracker.log(flattened(metrics), 0)
    context.tracker.table("evaluate/frames", table)


def load_scorers(settings: EvaluateSettings, device: torch.device) -> list[Scorer]:
    """All scorers of the settings, in their order."""
    return [load_scorer(name, each, device) for name, each in settings.scorers.items()]


def embed_rows(plan: Plan, context: Context) -> list[dict[str, Tensor]]:
    """Each scorer's unit embeddings [S, F, D] of every row."""
    batches, found = plan.batches(), dict[Batch, Tensor]()
    views = sum(each.shape[0] * each.shape[1] for each in plan.views.values())
    with progress(len(plan.settings.scorers) * views, "scoring", 0) as bar:

        def take(piece: int, embeddings: Tensor) -> None:
            found[batches[piece]] = embeddings

        context.engine.run(begin_scoring, plan, range(len(batches)), take, bar.advance, context)

    def whole(scorer: str, row: str) -> Tensor:
        parts = [found[batch] for batch in batches if (batch.scorer, batch.row) == (scorer, row)]
        return torch.cat(parts).unflatten(0, plan.views[row].shape[:2])

    return [{row: whole(name, row) for row in plan.views} for name in plan.settings.scorers]


def begin_scoring(plan: Plan, context: Context) -> Do:
    """Load the scorers; returns what embeds one batch, [n, D], by its place in the plan's batches."""
    loaded = plan.scorers or load_scorers(plan.settings, context.device)
    scorers: Mapping[str, Scorer] = dict(zip(plan.settings.scorers, loaded, strict=True))
    batches = plan.batches()

    def do(piece: int, advance: Advance) -> Tensor:
        name, row, first = batches[piece]
        views = plan.views[row]
        flat = views.reshape(-1, *views.shape[2:])[first : first + plan.settings.batch]
        embeddings = scorers[name].images(flat)
        advance(len(flat))
        return embeddings

    return do


def check_settings(settings: EvaluateSettings, orbit: Orbit) -> None:
    """UserError for settings with which this orbit cannot be scored."""
    if not settings.scorers:
        raise UserError("evaluate.scorers: there is none; name at least one, e.g. a folder under data/weights")
    if settings.step_frames >= len(orbit) > 1:
        raise UserError(
            f"evaluate.step_frames: {settings.step_frames} is a whole turn or more of an orbit of {len(orbit)} frames; "
            "make it smaller"
        )


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


def embed(scorer: Scorer, images: np.ndarray, batch: int) -> Tensor:
    """Unit embeddings [S, F, D] of views uint8 [S, F, H, W, 3], `batch` at a time."""
    flat = images.reshape(-1, *images.shape[2:])
    parts = [scorer.images(flat[start : start + batch]) for start in range(0, len(flat), batch)]
    return torch.cat(parts).unflatten(0, images.shape[:2])


def add_scores(table: pd.DataFrame, scorer: Scorer, views: dict[str, Tensor], reference: InputArtifact) -> None:
    """Add a scorer's image and text score of every view (100 x cosine); views: unit embeddings [S, F, D] by row.

    Raises UserError for a score that is not finite: a mean would leave such views out, as if they did not count.
    """
    flat = torch.cat([each.flatten(0, 1) for each in views.values()])
    against = {"image": scorer.images(reference.image[None]), "text": scorer.texts([reference.prompt])}
    for kind, each in against.items():
        scores = score(flat, each)[:, 0]
        if not scores.isfinite().all():
            row = table["row"].iloc[int((~scores.isfinite()).nonzero()[0])]
            said = f"its {kind} scores of row {row} are not finite; its weights are broken: get them again"
            raise UserError(f"evaluate.scorers.{scorer.name}: {said}")
        table[f"{kind}: {scorer.name}"] = scores.numpy()


def add_truth(table: pd.DataFrame, rows: dict[str, Row], true: Row, poses: Poses) -> None:
    """Add what the toyworld knows: the azimuth error of the nearest true view, and the silhouette's IoU."""
    # Imported here: the toyworld compiles its renderer, and a photograph's evaluation does not need it.
    from cad.prior.truth import intersection_over_union

    errors, overlaps = [], []
    for row in rows.values():
        for images, silhouettes in zip(row.images, row.silhouettes, strict=True):
            errors.append(truth.retrieved_azimuth_error(images, true.images[0], poses, row.frames))
            overlaps.append(intersection_over_union(silhouettes, true.silhouettes[0][row.frames]))
    table["azimuth_error_deg"] = np.concatenate(errors)
    table["silhouette_iou"] = np.concatenate(overlaps)
