"""The overview figure: input, prior samples, pruning, refinement, and the orbits of three seeds, in aligned columns.

Drawn from artefact files alone. Every column of the upper block is one pose, so a reader follows a pose from the raw
sample to the decision on it and to what refinement made of it; every column of the lower block is one azimuth.
"""

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cad.artifacts import InputArtifact, Orbit, PriorCache, read_image, read_parquet, write_atomic

COLUMNS = 8
REJECTED_COLUMNS = 3  # of the upper block, where so many poses were rejected
SEEDS = 3
DPI = 200
DECISION = ("pose", "azimuth", "polar", "chosen", "kept", "reason")  # what is read of decisions.parquet
# Lengths in inches.
CELL, GAP, LEFT, LABEL, RIGHT = 0.84, 0.05, 1.62, 0.24, 0.06
HEAD, BLOCK_GAP, TOP, BOTTOM = 0.2, 0.34, 0.1, 0.08
GREEN, RED, GREY = "#1a7f37", "#c62828", "#6e7781"
STYLE: Any = {"font.family": "STIXGeneral", "mathtext.fontset": "stix", "font.size": 9}


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
class Strip:
    """One row of the figure: a label, and per column an image (None: nothing to show), a frame colour and a caption."""

    label: str
    images: list[NDArray[np.uint8] | None]
    colors: list[str | None]
    captions: list[str]


def draw_overview(folders: RunFolders, out: Path) -> None:
    """Draw the figure of one run into a PNG file; UserError names a folder that is broken."""
    write_atomic(out, overview_png(folders))


def overview_png(folders: RunFolders) -> bytes:
    """The figure of one run as a PNG; equal files give equal bytes. UserError names a folder that is broken."""
    reference = InputArtifact.open(folders.input)
    decisions = read_parquet(folders.prune / "decisions.parquet", *DECISION)
    upper_heads, upper = pose_strips(PriorCache.open(folders.prior), decisions, PriorCache.open(folders.refine))
    lower_heads, lower = orbit_strips(Orbit.open(folders.orbit), folders.evaluate / "views" / "truth.png")
    about_prior = f"{int(decisions['kept'].sum())} of {len(decisions)} kept"
    # A private rc context: matplotlib's state is global, and whatever ran before must not show in the bytes.
    with matplotlib.rc_context(STYLE):
        figure = compose(reference, about_prior, (upper_heads, upper), (lower_heads, lower))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def shown_poses(decisions: pd.DataFrame) -> list[int]:
    """Positions of the poses to show: evenly spread over the azimuth, kept ones and some rejected, by azimuth."""
    order = decisions.sort_values(["azimuth", "pose"]).index.to_numpy()
    kept = [i for i in order if decisions["kept"][i]]
    rejected = [i for i in order if not decisions["kept"][i]]
    fewest = max(REJECTED_COLUMNS, COLUMNS - len(kept))
    some_rejected = spread(rejected, min(fewest, len(rejected)))
    chosen = set(some_rejected) | set(spread(kept, min(COLUMNS - len(some_rejected), len(kept))))
    return [int(i) for i in order if i in chosen]


def spread(items: list[Any], count: int) -> list[Any]:
    """`count` items at even distances."""
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def pose_strips(prior: PriorCache, decisions: pd.DataFrame, refined: PriorCache) -> tuple[list[str], list[Strip]]:
    """The upper block: raw samples, decisions on them, and refinements, a pose per column."""
    place = {pose: i for i, pose in enumerate(prior.pose_ids)}
    refined_place = {pose: i for i, pose in enumerate(refined.pose_ids)}
    rows: list[Any] = list(decisions.loc[shown_poses(decisions), list(DECISION)].itertuples())
    heads = [f"{degrees(row.azimuth)}°, {np.degrees(row.polar):.0f}°" for row in rows]
    samples = [prior.read(place[row.pose]) for row in rows]
    plain: list[str | None] = [None] * len(rows)
    blank = [""] * len(rows)
    strips = [Strip("sample", [each[0] for each in samples], plain, blank)]
    if prior.samples > 1:
        strips.append(Strip("sample", [each[1] for each in samples], plain, blank))
    chosen = [each[row.chosen] for each, row in zip(samples, rows, strict=True)]
    colors: list[str | None] = [GREEN if row.kept else RED for row in rows]
    strips.append(Strip("pruned", list(chosen), colors, ["" if row.kept else row.reason for row in rows]))
    for draw in range(min(2, refined.samples)):
        found = [refined_place.get(row.pose) for row in rows]
        images = [refined.read(i)[draw] if i is not None else None for i in found]
        strips.append(Strip("refined", images, plain, blank))
    return heads, strips


def orbit_strips(orbit: Orbit, truth: Path) -> tuple[list[str], list[Strip]]:
    """The lower block: the best branch's orbit of up to three seeds and, where it is known, the true object."""
    branch = "3d" if "3d" in orbit.branches else orbit.branches[-1]
    frames = [k * len(orbit) // COLUMNS for k in range(COLUMNS)]
    heads = [f"{degrees(orbit.azimuth[k])}°" for k in frames]
    plain: list[str | None] = [None] * COLUMNS
    blank = [""] * COLUMNS
    strips = []
    for seed in orbit.seeds[:SEEDS]:
        strips.append(Strip(f"seed {seed}", [orbit.frame(branch, seed, k) for k in frames], plain, blank))
    if truth.is_file():
        views = np.split(read_image(truth), len(orbit), axis=1)
        strips.append(Strip("truth", [views[k] for k in frames], plain, blank))
    return heads, strips


def degrees(radians: float) -> int:
    """An azimuth in whole degrees in [0, 360)."""
    return round(float(np.degrees(radians))) % 360


def compose(
    reference: InputArtifact, kept: str, upper: tuple[list[str], list[Strip]], lower: tuple[list[str], list[Strip]]
) -> Figure:
    """Lay both blocks out on one page."""
    heights = [HEAD + len(strips) * (CELL + GAP) for _, strips in (upper, lower)]
    width = LEFT + LABEL + COLUMNS * (CELL + GAP) + RIGHT
    height = TOP + heights[0] + BLOCK_GAP + heights[1] + BOTTOM
    page = Page(width, height)
    page.block(TOP, *upper)
    page.block(TOP + heights[0] + BLOCK_GAP, *lower)

    side = LEFT - 0.34
    page.image(0.1, TOP + HEAD, side, reference.image, None)
    prompt = textwrap.fill(f"“{reference.prompt}”", 24)
    y = page.text(0.1, TOP + HEAD + side + 0.08, "Input", weight="bold", size=10)
    y = page.text(0.1, y, prompt, style="italic")
    page.text(
        0.1,
        y + 0.12,
        f"Columns: poses of the prior\n(azimuth, polar angle).\nPruning: {kept}.\n"
        "Green: the chosen sample;\nred: rejected, and why.",
        color=GREY,
        size=8,
    )
    start = TOP + heights[0] + BLOCK_GAP + HEAD
    y = page.text(0.1, start, "Generated objects", weight="bold", size=10)
    seeds = sum(strip.label.startswith("seed") for strip in lower[1])
    polar = np.degrees(reference.reference_polar)
    said = f"One generator, {seeds} seeds:\nits 3D branch along the\nevaluation orbit. Columns:\n"
    said += f"azimuth; polar angle {polar:.0f}°."
    if any(strip.label == "truth" for strip in lower[1]):
        said += "\nLast row: the true object,\nof which the method saw\nthe input view only."
    page.text(0.1, y + 0.04, said, color=GREY, size=8)
    page.rule(TOP + heights[0] + BLOCK_GAP / 2 - 0.02)
    return page.figure


class Page:
    """A white figure addressed in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def axes(self, x: float, y: float, w: float, h: float) -> Axes:
        """Empty axes of w x h inches."""
        place = (x / self.width, 1 - (y + h) / self.height, w / self.width, h / self.height)
        axes = self.figure.add_axes(place)
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def image(self, x: float, y: float, side: float, image: NDArray[np.uint8], color: str | None) -> Axes:
        """A square image with a thin grey frame, or a thick coloured one."""
        axes = self.axes(x, y, side, side)
        axes.imshow(image, interpolation="bicubic", aspect="auto")
        for spine in axes.spines.values():
            spine.set_color(color or "#d0d7de")
            spine.set_linewidth(1.6 if color else 0.5)
        return axes

    def text(self, x: float, y: float, text: str, **style: Any) -> float:
        """Text with its top left corner at (x, y); returns the y below it."""
        size = float(style.get("size", 9))
        self.figure.text(
            x / self.width, 1 - y / self.height, text, va="top", ha="left", linespacing=1.25, **{**style, "size": size}
        )
        return y + (text.count("\n") + 1) * size * 1.3 / 72 + 0.03

    def rule(self, y: float) -> None:
        """A thin line across the page."""
        ends = [0.1 / self.width, 1 - RIGHT / self.width]
        self.figure.add_artist(Line2D(ends, [1 - y / self.height] * 2, color="#d0d7de", linewidth=0.8))

    def block(self, top: float, heads: list[str], strips: list[Strip]) -> None:
        """A row per strip, a column per head."""
        for column, head in enumerate(heads):
            x = LEFT + LABEL + column * (CELL + GAP) + CELL / 2
            y = 1 - (top + HEAD - 0.05) / self.height
            self.figure.text(x / self.width, y, head, va="bottom", ha="center", size=8)
        for label, first, count in runs([strip.label for strip in strips]):
            y = top + HEAD + first * (CELL + GAP) + (count * (CELL + GAP) - GAP) / 2
            x = LEFT + LABEL - 0.08
            self.figure.text(x / self.width, 1 - y / self.height, label, va="center", ha="right", rotation=90, size=9)
        for row, strip in enumerate(strips):
            y = top + HEAD + row * (CELL + GAP)
            for column, image in enumerate(strip.images):
                x = LEFT + LABEL + column * (CELL + GAP)
                self.cell(x, y, image, strip.colors[column], strip.captions[column])

    def cell(self, x: float, y: float, image: NDArray[np.uint8] | None, color: str | None, caption: str) -> None:
        """One image; faded under a caption that says why it was rejected; a dash where there is none."""
        if image is None:
            axes = self.axes(x, y, CELL, CELL)
            axes.text(0.5, 0.5, "\N{EN DASH}", ha="center", va="center", color=GREY, transform=axes.transAxes)
            for spine in axes.spines.values():
                spine.set_color("#eaeef2")
                spine.set_linewidth(0.5)
            return
        if caption:
            image = np.round(255 - (255 - image.astype(float)) * 0.45).astype(np.uint8)
        axes = self.image(x, y, CELL, image, color)
        if caption:
            said = caption.replace(" and ", "\nand ")
            box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.0}
            style: Any = {"size": 8, "color": RED, "linespacing": 1.05, "bbox": box}
            axes.text(0.5, 0.06, said, ha="center", va="bottom", transform=axes.transAxes, **style)


def runs(labels: list[str]) -> list[tuple[str, int, int]]:
    """Consecutive equal labels as (label, first position, count)."""
    found: list[tuple[str, int, int]] = []
    for i, label in enumerate(labels):
        if found and found[-1][0] == label:
            found[-1] = (label, found[-1][1], found[-1][2] + 1)
        else:
            found.append((label, i, 1))
    return found
