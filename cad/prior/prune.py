"""Camera pose pruning, Sec. 3.3: which poses the prior draws consistently, and which of their samples to keep."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import Tensor

from cad.artifacts import (
    InputArtifact,
    PriorCache,
    read_parquet,
    write_image,
    write_json,
    write_parquet,
)
from cad.artifacts import contact_sheet as lay_out
from cad.config import CameraSettings, ModelPaths, ObjectSettings, PruneSettings
from cad.context import Context
from cad.errors import UserError
from cad.prior.clip import Clip
from cad.prior.pictures import foreground
from cad.prior.sheets import AMBER, GREEN, GREY, RED, Group, Row, draw_sheet
from cad.prior.truth import measure_truth, summarize_truth
from cad.progress import progress

KEPT, GEOMETRY, SIMILARITY, BOTH, UNPRUNED = "kept", "geometry", "similarity", "geometry and similarity", "not pruned"
COLUMNS = ("pose", "azimuth", "polar", "bad_pixels_max", "clip_min", "clip_max", "chosen", "kept", "reason")
SHOWN = 7  # rows of a group on the contact sheet
TRACKED = 100  # poses in the tracked table


@dataclass(frozen=True)
class Decision:
    """What became of one pose: the numbers compared with the thresholds, the sample chosen, and why."""

    bad_pixels_max: int
    clip_min: float
    clip_max: float
    chosen: int
    kept: bool
    reason: str


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Grow a mask, bool [H, W], by a square: all within `pixels` in x and in y [ours: no element is named]."""
    grown = torch.nn.functional.max_pool2d(
        torch.from_numpy(mask)[None, None].float(), kernel_size=2 * pixels + 1, stride=1, padding=pixels
    )
    return grown[0, 0].numpy() > 0


def count_bad_pixels(foregrounds: np.ndarray, dilation: int) -> np.ndarray:
    """Bad pixels of each of the N samples of one pose, [N] int, of their foregrounds, bool [N, H, W] (Sec. 3.3).

    The mask m is what all samples share, dilated; a sample's bad pixels are its foreground outside m.
    """
    shared = dilate(np.asarray(foregrounds.all(axis=0)), dilation)
    return (foregrounds & ~shared).sum(axis=(1, 2))


def decide(bad_pixels: np.ndarray, similarity: np.ndarray, settings: PruneSettings) -> Decision:
    """The decision on one pose from its samples' bad pixels [N] and CLIP cosines to the reference [N] (Eq. 11).

    Rejected when the worst sample has more than `max_bad_pixels` or is less similar than `min_clip_similarity`; the
    chosen sample is the most similar one. With pruning disabled every pose keeps its *first* sample, never the best.
    """
    worst, least = int(bad_pixels.max()), float(similarity.min())
    geometry, semantics = worst > settings.max_bad_pixels, least < settings.min_clip_similarity
    reason = {(False, False): KEPT, (True, False): GEOMETRY, (False, True): SIMILARITY, (True, True): BOTH}
    return Decision(
        bad_pixels_max=worst,
        clip_min=least,
        clip_max=float(similarity.max()),
        chosen=int(similarity.argmax()) if settings.enabled else 0,
        kept=not (geometry or semantics) if settings.enabled else True,
        reason=reason[geometry, semantics] if settings.enabled else UNPRUNED,
    )


def prune_prior(
    settings: PruneSettings,
    camera: CameraSettings,
    models: ModelPaths,
    input_dir: Path,
    prior_dir: Path,
    source: ObjectSettings,
    out: Path,
    context: Context,
) -> None:
    """Write decisions.parquet, summary.json and contact.png; in toyworld also truth.parquet and its summary.

    Raises UserError, with the extremes that were seen, when no pose is kept.
    """
    reference = InputArtifact.open(input_dir)
    prior = PriorCache.open(prior_dir)
    clip = Clip.load(models.clip, context.device)
    similarities = clip_similarities(clip, reference.image, prior, settings.batch)
    decisions = []
    for i in range(len(prior)):
        bad = count_bad_pixels(foreground(prior.read(i), settings.white_threshold), settings.dilation_px)
        decisions.append(decide(bad, similarities[i], settings))
    table = _table(prior, decisions)
    if not table["kept"].any():
        raise UserError(_nothing_kept(table))
    summary = summarize(table, prior.samples)
    if source.toyworld is not None:
        truth = measure_truth(prior, source.toyworld, camera, settings.white_threshold)
        write_parquet(out / "truth.parquet", truth)
        summary["truth"] = summarize_truth(truth, table)
    write_parquet(out / "decisions.parquet", table)
    sheet = contact_sheet(prior, table, reference.image)
    write_image(out / "contact.png", sheet)
    write_json(out / "summary.json", summary)
    context.tracker.image("prune/contact", sheet, step=0)
    _track_table(table, prior, context)


def clip_similarities(clip: Clip, reference: np.ndarray, prior: PriorCache, batch: int) -> np.ndarray:
    """Cosine between the CLIP embeddings of every sample and of the reference [H, W, 3], float64 [M, N] (Eq. 11)."""
    target = clip.images(reference[None])[0]
    found: list[Tensor] = []
    pairs = [(i, j) for i in range(len(prior)) for j in range(prior.samples)]
    with progress(len(pairs), "scoring views", 0) as bar:
        for start in range(0, len(pairs), batch):
            part = pairs[start : start + batch]
            found.append(clip.images(np.stack([prior.read(i)[j] for i, j in part])) @ target)
            bar.advance(len(part))
    return torch.cat(found).double().reshape(len(prior), prior.samples).numpy()


def summarize(table: pandas.DataFrame, samples: int) -> dict[str, object]:
    """Counts per reason, and the spread of the two compared numbers, which says where thresholds could lie."""
    quantiles = {
        column: {f"{q:.0%}": float(table[column].quantile(q)) for q in (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)}
        for column in ("bad_pixels_max", "clip_min")
    }
    return {
        "schema": 1,
        "poses": len(table),
        "samples": samples,
        "kept": int(table["kept"].sum()),
        "reasons": {str(reason): int(count) for reason, count in table["reason"].value_counts().items()},
        "quantiles": quantiles,
    }


def read_decisions(prune_dir: Path) -> pandas.DataFrame:
    """decisions.parquet, one row per pose; raises UserError when it is missing, broken or of another schema."""
    return read_parquet(prune_dir / "decisions.parquet", *COLUMNS)


def contact_sheet(prior: PriorCache, table: pandas.DataFrame, reference: np.ndarray) -> np.ndarray:
    """Kept and rejected poses with all their samples, like Fig. 12; the chosen sample has a green frame."""
    groups = []
    for reason, color in ((KEPT, GREEN), (UNPRUNED, GREEN), (GEOMETRY, RED), (SIMILARITY, AMBER), (BOTH, RED)):
        chosen = np.flatnonzero(table["reason"] == reason)
        if len(chosen) == 0 and reason in (UNPRUNED, BOTH):
            continue
        verdict = reason if reason in (KEPT, UNPRUNED) else f"rejected: {reason}"
        rows = [_row(prior, table, i, color) for i in _spread(chosen)]
        columns = [f"sample {j + 1}" for j in range(prior.samples)]
        groups.append(Group(f"{verdict} ({len(chosen)})", color, columns, rows))
    return draw_sheet(f"Pose pruning: {int(table['kept'].sum())} of {len(table)} poses kept", reference, groups)


def _track_table(table: pandas.DataFrame, prior: PriorCache, context: Context) -> None:
    shown = table.head(TRACKED)
    views = [lay_out(prior.read(i), columns=prior.samples, scale=1) for i in range(len(shown))]
    rows = [[*row, view] for row, view in zip(shown.to_numpy(dtype=object).tolist(), views, strict=True)]
    context.tracker.table("prune/decisions", [*COLUMNS, "samples"], rows)


def _row(prior: PriorCache, table: pandas.DataFrame, i: int, color: tuple[int, int, int]) -> Row:
    row = table.iloc[i]
    azimuth, polar = np.degrees([row["azimuth"], row["polar"]])
    label = f"az {azimuth:.0f}, polar {polar:.0f}\nbad {row['bad_pixels_max']} px\nCLIP {row['clip_min']:.3f}"
    frames = [color if not row["kept"] else GREY] * prior.samples
    if row["kept"]:
        frames[int(row["chosen"])] = GREEN
    return Row(label, prior.read(i), frames)


def _spread(positions: np.ndarray) -> list[int]:
    """At most SHOWN of the positions, evenly spread."""
    picks = np.linspace(0, len(positions) - 1, min(SHOWN, len(positions))).round().astype(int)
    return [int(positions[k]) for k in picks]


def _table(prior: PriorCache, decisions: list[Decision]) -> pandas.DataFrame:
    table = pandas.DataFrame([vars(decision) for decision in decisions])
    table.insert(0, "pose", prior.pose_ids)
    table.insert(1, "azimuth", prior.poses.azimuth.numpy())
    table.insert(2, "polar", prior.poses.polar.numpy())
    return table[list(COLUMNS)]


def _nothing_kept(table: pandas.DataFrame) -> str:
    return (
        f"params.yaml: prune: rejects all {len(table)} poses; raise prune.max_bad_pixels (smallest seen "
        f"{table['bad_pixels_max'].min()}) or lower prune.min_clip_similarity (largest seen "
        f"{table['clip_min'].max():.4f})"
    )
