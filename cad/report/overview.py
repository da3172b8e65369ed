"""The overview figure of one run: input, prior samples, pruning, refinement, and the orbits of three seeds.

Drawn from artefact files alone. Every column of the upper block is one pose, so a reader follows a pose from the raw
sample to the decision on it and to what refinement made of it; every column of the lower block is one azimuth.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cad.artifacts import InputArtifact, Orbit, PriorCache, read_parquet
from cad.report.canvas import GAP, GREEN, GREY, HEAD, MARGIN, RED, Page, Strip, plain_strip, png
from cad.report.strips import read_strip

SEEDS = 3
DECISION = ("pose", "azimuth", "polar", "chosen", "kept", "reason")  # what is read of decisions.parquet
# Lengths in inches.
CELL, LEFT, LABEL = 0.84, 1.62, 0.24
BLOCK_GAP, TOP, BOTTOM = 0.34, 0.1, 0.08


@dataclass(frozen=True)
class RunFolders:
    """The folders that a figure and a page about one evaluation read."""

    input: Path
    prior: Path
    prune: Path
    refine: Path
    orbit: Path
    evaluate: Path


@dataclass(frozen=True)
class Extent:
    """How much of a run a figure shows."""

    poses: int  # columns of the prior
    rejected: int  # of which rejected by pruning, where so many were
    samples: int  # rows of raw samples
    draws: int  # rows of refinements
    azimuths: int  # columns of the orbit


@dataclass(frozen=True)
class Picked:
    """What a figure shows of a run: column heads and strips of the prior and of the orbit."""

    reference: InputArtifact
    kept: str  # how many poses pruning kept, in words
    prior: tuple[list[str], list[Strip]]
    orbit: tuple[list[str], list[Strip]]

    @property
    def with_truth(self) -> bool:
        """Whether the true object is known, and shown."""
        return self.orbit[1][-1].label == "truth"


WHOLE = Extent(poses=8, rejected=3, samples=2, draws=2, azimuths=8)


def overview_png(folders: RunFolders) -> bytes:
    """The figure of one run as a PNG; equal files give equal bytes. UserError names a folder that is broken."""
    picked = pick(folders, WHOLE)
    return png(lambda: compose(picked))


def pick(folders: RunFolders, extent: Extent) -> Picked:
    """Read what a figure shows of a run; UserError names a folder that is broken."""
    reference = InputArtifact.open(folders.input)
    decisions = read_parquet(folders.prune / "decisions.parquet", *DECISION)
    prior = pose_strips(PriorCache.open(folders.prior), decisions, PriorCache.open(folders.refine), extent)
    orbit = orbit_strips(Orbit.open(folders.orbit), folders.evaluate / "views" / "truth.png", extent.azimuths)
    return Picked(reference, f"{int(decisions['kept'].sum())} of {len(decisions)} kept", prior, orbit)


def shown_poses(decisions: pd.DataFrame, extent: Extent) -> list[int]:
    """Positions of the poses to show: evenly spread over the azimuth, kept ones and some rejected, by azimuth."""
    order = decisions.sort_values(["azimuth", "pose"]).index.to_numpy()
    kept = [i for i in order if decisions["kept"][i]]
    rejected = [i for i in order if not decisions["kept"][i]]
    fewest = max(extent.rejected, extent.poses - len(kept))
    some_rejected = spread(rejected, min(fewest, len(rejected)))
    chosen = set(some_rejected) | set(spread(kept, min(extent.poses - len(some_rejected), len(kept))))
    return [int(i) for i in order if i in chosen]


def spread(items: list[Any], count: int) -> list[Any]:
    """`count` items at even distances."""
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def pose_strips(
    prior: PriorCache, decisions: pd.DataFrame, refined: PriorCache, extent: Extent
) -> tuple[list[str], list[Strip]]:
    """Raw samples, decisions on them, and refinements, a pose per column."""
    place = {pose: i for i, pose in enumerate(prior.pose_ids)}
    refined_place = {pose: i for i, pose in enumerate(refined.pose_ids)}
    rows: list[Any] = list(decisions.loc[shown_poses(decisions, extent), list(DECISION)].itertuples())
    heads = [f"{degrees(row.azimuth)}°, {np.degrees(row.polar):.0f}°" for row in rows]
    samples = [prior.read(place[row.pose]) for row in rows]
    shown = range(min(extent.samples, prior.samples))
    strips = [plain_strip("sample", [each[n] for each in samples]) for n in shown]
    chosen = [each[row.chosen] for each, row in zip(samples, rows, strict=True)]
    colors: list[str | None] = [GREEN if row.kept else RED for row in rows]
    strips.append(Strip("pruned", list(chosen), colors, ["" if row.kept else row.reason for row in rows]))
    for draw in range(min(extent.draws, refined.samples)):
        found = [refined_place.get(row.pose) for row in rows]
        strips.append(plain_strip("refined", [refined.read(i)[draw] if i is not None else None for i in found]))
    return heads, strips


def orbit_strips(orbit: Orbit, truth: Path, count: int) -> tuple[list[str], list[Strip]]:
    """The best branch's orbit of up to three seeds and, where it is known, the true object; `count` azimuths."""
    branch = "3d" if "3d" in orbit.branches else orbit.branches[-1]
    frames = [k * len(orbit) // count for k in range(count)]
    heads = [f"{degrees(orbit.azimuth[k])}°" for k in frames]
    strips = []
    for seed in orbit.seeds[:SEEDS]:
        strips.append(plain_strip(f"seed {seed}", [orbit.frame(branch, seed, k) for k in frames]))
    if truth.is_file():
        strips.append(plain_strip("truth", list(read_strip(truth, len(orbit), orbit.resolution)[frames])))
    return heads, strips


def degrees(radians: float) -> int:
    """An azimuth in whole degrees in [0, 360)."""
    return round(float(np.degrees(radians))) % 360


def compose(picked: Picked) -> Figure:
    """Lay both blocks out on one page, the prior's above the orbit's."""
    reference, pitch = picked.reference, CELL + GAP
    heights = [HEAD + len(strips) * pitch for _, strips in (picked.prior, picked.orbit)]
    width = LEFT + LABEL + WHOLE.azimuths * pitch + MARGIN
    lower = TOP + heights[0] + BLOCK_GAP
    page = Page(width, lower + heights[1] + BOTTOM)
    page.block(LEFT + LABEL, TOP, CELL, *picked.prior)
    page.block(LEFT + LABEL, lower, CELL, *picked.orbit)

    side = LEFT - 0.34
    page.image(0.1, TOP + HEAD, side, reference.image, None)
    prompt = textwrap.fill(f"“{reference.prompt}”", 24)
    y = page.text(0.1, TOP + HEAD + side + 0.08, "Input", weight="bold", size=10)
    y = page.text(0.1, y, prompt, style="italic")
    said = "Columns: poses of the prior\n(azimuth, polar angle).\nPruning: " + picked.kept
    said += ".\nGreen: the chosen sample;\nred: rejected, and why."
    page.text(0.1, y + 0.12, said, color=GREY, size=8)
    y = page.text(0.1, lower + HEAD, "Generated objects", weight="bold", size=10)
    seeds = sum(strip.label.startswith("seed") for strip in picked.orbit[1])
    polar = np.degrees(reference.reference_polar)
    said = f"One generator, {seeds} seeds:\nits 3D branch along the\nevaluation orbit. Columns:\n"
    said += f"azimuth; polar angle {polar:.0f}°."
    if picked.with_truth:
        said += "\nLast row: the true object,\nof which the method saw\nthe input view only."
    page.text(0.1, y + 0.04, said, color=GREY, size=8)
    page.rule(TOP + heights[0] + BLOCK_GAP / 2 - 0.02)
    return page.figure
