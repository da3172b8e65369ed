"""reports/pruning.md, .csv and .png: pruning on held-out instances beside keeping everything and keeping at random."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas
from matplotlib.figure import Figure

from cad.artifacts import write_atomic
from cad.config import PriorSettings
from cad.prior.truth import MAX_ANGLE_DEG, MIN_IOU
from cad.toyworld.settings import PruningSettings
from cad.toyworld.thresholds import Estimate, Measured, Thresholds, at_ends, count, keep, rates
from cad.toyworld.world import families

RATES = ("share", "precision", "recall", "precision_gain", "recall_gain")
STYLE: Any = {"font.family": "STIXGeneral", "mathtext.fontset": "stix", "font.size": 10}
BLUE, ORANGE, GREEN, GREY, LIGHT = "#0969da", "#bc4c00", "#1a7f37", "#57606a", "#b6bec7"


def write(
    measured: dict[str, list[Measured]],
    held_out: pandas.DataFrame,
    chosen: Thresholds,
    settings: PruningSettings,
    prior: PriorSettings,
    digests: dict[str, str],
    reports: Path,
) -> None:
    """Write all three files; equal tables give equal bytes. held_out: the poses' scores, for the figure's curves."""
    write_atomic(reports / "pruning.md", markdown(measured, chosen, settings, prior, digests).encode())
    write_atomic(reports / "pruning.csv", table(measured, digests).encode())
    write_atomic(reports / "pruning.png", png(measured["held-out"], held_out, settings))


def markdown(
    measured: dict[str, list[Measured]],
    chosen: Thresholds,
    settings: PruningSettings,
    prior: PriorSettings,
    digests: dict[str, str],
) -> str:
    """The page for reading: the definitions, the choice, and a table of each split."""
    instances = settings.instances * len(families())
    poses = instances * settings.poses
    lines = [
        "# Pruning, on held-out instances",
        "",
        "Written by `cad toyworld pruning`.",
        "",
        f"**Views.** Zero-1-to-3 draws {prior.samples} samples at each of {settings.poses} poses, uniform on the "
        f"sphere, around {instances} training and {instances} held-out instances ({settings.instances} of each of "
        f"{len(families())} families): {poses} poses of each kind. It takes {prior.steps} steps, guidance "
        f"{prior.guidance:g}, eta {prior.eta:g}, as the main job does.",
        "",
        f"**Good.** A sample is bad when its silhouette's IoU with the true view is below {MIN_IOU:g}, or when the "
        f"nearest true pose is more than {MAX_ANGLE_DEG:g} deg away. A pose counts as a good view when the sample that "
        "pruning would pass on, the one most like the reference by CLIP, is not bad. Precision is the share of kept "
        "poses that are good views; recall is the share of good views that are kept. Keeping all has a recall of 1. "
        "Its row `first sample` is the main job without pruning, which takes the first sample of each pose.",
        "",
        "**Random.** A random choice of as many poses has, in expectation, the precision of keeping all, and the share "
        "kept as its recall. The two gains compare each row with a random choice of its own share.",
        "",
        f"**Intervals.** 95 %, of {settings.draws} bootstrap samples of instances, poses staying with their instance; "
        "the gains are paired within a sample. They hold for the thresholds as they are: the choice is not repeated.",
        "",
        "**Choice.** Of all pairs of candidates that keep at least "
        f"{settings.min_recall:.0%} of the good views of the training instances, the one with the highest precision on "
        "them; each check alone is given its own threshold by the same rule. Chosen: "
        f"`max_bad_pixels: {chosen.max_bad_pixels}`, `min_clip_similarity: {chosen.min_clip_similarity}`.",
        *_ends(measured["held-out"], settings),
        "",
        "![Precision over recall of good views on the held-out instances](pruning.png)",
    ]
    titles = {"held-out": "Held-out instances", "train": "Training instances, which chose the thresholds"}
    for split, title in titles.items():
        lines += ["", f"## {title}", ""]
        lines += [
            "| way to prune | bad pixels at most | CLIP at least | kept | precision | recall | precision over random "
            "| recall over random |",
            "|---|---|---|---|---|---|---|---|",
            *(_line(row) for row in measured[split]),
        ]
    weights = ", ".join(f"{name} `{value[:12]}`" for name, value in digests.items())
    return "\n".join([*lines, "", f"Weights: {weights}.", ""])


def _ends(rows: list[Measured], settings: PruningSettings) -> list[str]:
    """A paragraph, if any, that names the chosen values at an end of their candidates."""
    remarks = [
        f"{row.name}, {remark}"
        for row in rows
        if compares(row)
        for remark in at_ends(row.thresholds, settings.max_bad_pixels, settings.min_clip_similarity)
    ]
    return ["", f"**At an end.** A value beyond might be chosen: {'; '.join(remarks)}."] if remarks else []


def _line(row: Measured) -> str:
    most, least = ("" if limit is None else f"{limit:g}" for limit in row.thresholds)
    gains = [_cell(row.precision_gain, "+.3f"), _cell(row.recall_gain, "+.3f")] if compares(row) else ["", ""]
    numbers = [f"{row.kept} of {row.poses}", _cell(row.precision, ".3f"), _cell(row.recall, ".3f"), *gains]
    return f"| {' | '.join([row.name, most, least, *numbers])} |"


def compares(row: Measured) -> bool:
    """Whether the row is a way to prune, and not a control."""
    return row.thresholds != Thresholds(None, None)


def _cell(found: Estimate, form: str) -> str:
    if math.isnan(found.value):
        return "undefined"
    if found.low == found.high == found.value:
        return f"{found.value:{form}}"
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def table(measured: dict[str, list[Measured]], digests: dict[str, str]) -> str:
    """The same numbers as CSV with six digits; empty where a threshold is not set or a value is undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    bounds = [f"{name}{part}" for name in RATES for part in ("", "_low", "_high")]
    writer.writerow(
        ["split", "way", "max_bad_pixels", "min_clip_similarity", "poses", "kept", "good", *bounds, *digests]
    )
    for split, rows in measured.items():
        for row in rows:
            limits = ["" if limit is None else limit for limit in row.thresholds]
            values = ["" if math.isnan(value) else f"{value:.6f}" for name in RATES for value in getattr(row, name)]
            writer.writerow([split, row.name, *limits, row.poses, row.kept, row.good, *values, *digests.values()])
    return text.getvalue()


def png(rows: list[Measured], held_out: pandas.DataFrame, settings: PruningSettings) -> bytes:
    """Precision over recall as thresholds vary, the chosen point and the controls; equal tables give equal bytes."""
    # A private rc context: matplotlib's state is global, and whatever ran before must not show in the bytes.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.6), layout="constrained")
        axes = figure.add_subplot()
        by_name = {row.name: row for row in rows}
        base, both = by_name["keep all"], by_name["both checks"]
        pairs = [Thresholds(m, s) for m in settings.max_bad_pixels for s in settings.min_clip_similarity]
        axes.plot(*curve(held_out, pairs), ".", color=LIGHT, markersize=4, label="both checks, any thresholds")
        geometry = [Thresholds(int(n), None) for n in np.unique(held_out["bad_pixels_max"])]
        axes.plot(*curve(held_out, geometry), color=BLUE, linewidth=1.4, label="geometry only")
        similar = [Thresholds(None, float(s)) for s in np.unique(held_out["clip_min"])]
        axes.plot(*curve(held_out, similar), color=ORANGE, linewidth=1.4, label="CLIP only")
        axes.axhline(base.precision.value, color=GREY, linewidth=1, linestyle="--", label="random, any share")
        marks = [
            ("both checks", "*", GREEN, "both checks, as chosen"),
            ("random, same share as both", "o", GREY, "random, same share"),
            ("keep all", "s", GREY, "keep all"),
        ]
        for name, shape, color, label in marks:
            x, y = by_name[name].recall, by_name[name].precision
            axes.errorbar(
                x.value, y.value, xerr=_reach(x), yerr=_reach(y), fmt=shape, color=color, capsize=2, elinewidth=1,
                markersize=11 if shape == "*" else 5, label=label, zorder=3,
            )  # fmt: skip
        axes.set_xlabel("recall of good views")
        axes.set_ylabel("precision of good views")
        axes.set_title(
            f"Pruning on {held_out['subject'].nunique()} held-out instances, {both.poses} poses", fontsize=10
        )
        axes.set_xlim(0, 1.02)
        axes.set_ylim(min(base.precision.value, base.precision.low) - 0.05, 1.02)
        axes.grid(color="#eaeef2", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def curve(poses: pandas.DataFrame, pairs: list[Thresholds]) -> tuple[list[float], list[float]]:
    """Recall and precision of each pair of thresholds that keeps a pose, in the order of recall, strictest first."""
    subjects, good = poses["subject"].tolist(), poses["good"].to_numpy()
    found = [rates(count(subjects, keep(poses, pair), good).sum(0)) for pair in pairs]
    points = [(float(r.recall), float(r.precision)) for r in found if np.isfinite([r.recall, r.precision]).all()]
    points.sort(key=lambda point: (point[0], -point[1]))  # as a threshold gets looser: bad poses lower the precision
    return [x for x, _ in points], [y for _, y in points]


def _reach(found: Estimate) -> list[list[float]]:
    """Lengths of an error bar, below and above."""
    ends = [max(found.value - found.low, 0.0), max(found.high - found.value, 0.0)]
    return [[0.0 if math.isnan(end) else end] for end in ends]
