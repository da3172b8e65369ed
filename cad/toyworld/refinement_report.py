"""reports/refinement.md, .csv and .png: what refinement keeps and varies over its strength (Fig. 10)."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cad.artifacts import write_atomic
from cad.prior.truth import MIN_IOU
from cad.report.markup import EMPTY, csv_text, markdown_table
from cad.toyworld.settings import ToyworldSettings

STYLE: Any = {"font.family": "STIXGeneral", "mathtext.fontset": "stix", "font.size": 10}
GREY, GRID = "#57606a", "#eaeef2"
COLORS = ("#0969da", "#bc4c00", "#1a7f37")  # of the families, in their order
RUN = "dvc exp run -S '+ablation=strength' evaluate@{entry}"
FIELDS = (
    "of", "name", "strength", "silhouette_iou", "iou_q25", "iou_q75", "share_below", "lpips", "lpips_2d",
    "lpips_refined", "n",
)  # fmt: skip


class Refined(NamedTuple):
    """One family at one strength (None: samples as they are): IoU's median and quartiles, LPIPS between draws."""

    family: str
    strength: float | None
    iou: float
    low: float
    high: float
    below: float  # share of refinements under MIN_IOU
    lpips: float
    pictures: int


class Generated(NamedTuple):
    """An entry of `evaluations`, and LPIPS between its seeds (3d, 2d) and between draws (refined); None: not run."""

    entry: str
    strength: float
    lpips: dict[str, float] | None


class Strip(NamedTuple):
    """Pictures of the figure: samples uint8 [N, H, W, 3], and by family refinements [N, S, H, W, 3], by strength."""

    unrefined: np.ndarray
    refined: dict[str, np.ndarray]


def write(
    rows: list[Refined],
    objects: list[Generated],
    untrained: list[tuple[str, str]],
    strip: Strip,
    settings: ToyworldSettings,
    digests: dict[str, str],
    reports: Path,
) -> None:
    """Write all three files; equal values give equal bytes. untrained: families and the command that trains them."""
    write_atomic(reports / "refinement.md", markdown(rows, objects, untrained, settings, digests).encode())
    write_atomic(reports / "refinement.csv", table(rows, objects, digests).encode())
    write_atomic(reports / "refinement.png", png(rows, strip, settings))


def sentence(row: Refined) -> str:
    """A row in one line of plain text."""
    strength = "" if row.strength is None else f", strength {row.strength:g}"
    return f"{row.family}{strength}: silhouette IoU {row.iou:.3f}, LPIPS between draws {row.lpips:.4f}"


def markdown(
    rows: list[Refined],
    objects: list[Generated],
    untrained: list[tuple[str, str]],
    settings: ToyworldSettings,
    digests: dict[str, str],
) -> str:
    """The page for reading: what was measured, the figure, a table of samples and one of generated objects."""
    chosen, check = settings.refinement, settings.check
    lines = [
        [
            row.family,
            EMPTY if row.strength is None else f"{row.strength:g}",
            f"{row.iou:.3f} [{row.low:.3f}, {row.high:.3f}]",
            f"{row.below:.1%}",
            f"{row.lpips:.4f}",
            str(row.pictures),
        ]
        for row in rows
    ]
    lines += [[family, f"not trained: {command}", *[EMPTY] * 4] for family, command in untrained]
    heads = ["refined by", "strength", "silhouette IoU", f"IoU below {MIN_IOU:g}", "LPIPS between draws", "n"]
    weights = ", ".join(f"{name} `{value[:12]}`" for name, value in digests.items())
    return "\n".join(
        [
            "# Refinement over its strength, on held-out instances (Fig. 10)",
            "",
            "Written by `cad toyworld refinement`.",
            "",
            f"**Samples.** Zero-1-to-3's first sample of {chosen.views} views, uniform on the sphere and not pruned, "
            f"of {chosen.instances} instances, refined {chosen.draws} times by each family at each strength: guidance "
            f"{check.refine_guidance:g}, {chosen.steps} steps in the whole walk, the {check.caption} caption with its "
            "view. The families differ in the control by depth alone (conditioning scale "
            f"{check.conditioning_scale:g}): model, prompts and noise are the same. DeepFloyd, the paper's other "
            "family, has no small counterpart; refinement without control stands for it.",
            "",
            "**Silhouette IoU** of a refinement with the sample that it was made from, median and quartiles: how much "
            "of shape and pose is kept. The row of samples that are not refined compares others of the same view with "
            f"the first. Beside it the share of refinements below {MIN_IOU:g}, where a sample counts as bad when it is "
            "compared with the true view.",
            "",
            "**LPIPS between draws** of one sample, mean over pairs and views: how much refinement varies.",
            "",
            "![Silhouette IoU and LPIPS over strength, and refined views](refinement.png)",
            "",
            markdown_table(heads, lines, 1),
            "## Generated objects",
            "",
            "LPIPS between seeds of the generator at equal pose, of entries that differ in their refinement alone (by "
            "the refiner without control unless the name says `controlnet`), and between the refined samples that each "
            "was trained on.",
            "",
            markdown_table(["entry", "strength", "3D branch", "2D branch", "refined"], map(_object, objects), 1),
            f"Weights: {weights}.",
            "",
        ]
    )  # fmt: skip


def _object(row: Generated) -> list[str]:
    if row.lpips is None:
        return [row.entry, f"{row.strength:g}", f"not run: `{RUN.format(entry=row.entry)}`", EMPTY, EMPTY]
    found = [f"{row.lpips[name]:.4f}" if name in row.lpips else EMPTY for name in ("3d", "2d", "refined")]
    return [row.entry, f"{row.strength:g}", *found]


def table(rows: list[Refined], objects: list[Generated], digests: dict[str, str]) -> str:
    """The same numbers as CSV with six digits; empty where there is none."""
    lines: list[list[object]] = []
    for row in rows:
        values = [_digits(value) for value in (row.iou, row.low, row.high, row.below, row.lpips)]
        strength = "" if row.strength is None else f"{row.strength:g}"
        lines.append(["samples", row.family, strength, *values, "", "", row.pictures])
    for entry in objects:
        found = entry.lpips or {}
        values = [_digits(found.get(name)) for name in ("3d", "2d", "refined")]
        lines.append(["objects", entry.entry, f"{entry.strength:g}", *[""] * 4, *values, ""])
    own = {"samples": list(digests.values()), "objects": [""] * len(digests)}  # a run's weights are in its lineage
    return csv_text([*FIELDS, *digests], [[*line, *own[str(line[0])]] for line in lines])


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def png(rows: list[Refined], strip: Strip, settings: ToyworldSettings) -> bytes:
    """Both measures over strength, and below them pictures: a row for each family, a column for each strength."""
    strengths = settings.refinement.strengths
    families = list(strip.refined)
    unrefined = next(row for row in rows if row.strength is None)
    side, height = 1.0, 2.7  # of a picture and of the curves, inches
    lines = len(strip.unrefined) * len(families)
    # A private rc context: matplotlib's state is global, and whatever ran before must not show in the bytes.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(side * (len(strengths) + 2.2), 7.0), height + side * lines), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[height, max(side * lines, 0.1)])  # an array of two
        curves, pictures = parts
        shape, variety = curves.subplots(1, 2)
        for family, color in zip(families, COLORS, strict=False):
            own = [row for row in rows if row.family == family]
            x = [row.strength for row in own]
            shape.fill_between(x, [row.low for row in own], [row.high for row in own], color=color, alpha=0.12, lw=0)
            shape.plot(x, [row.iou for row in own], color=color, marker="o", markersize=4, label=family)
            variety.plot(x, [row.lpips for row in own], color=color, marker="o", markersize=4, label=family)
        for axes, value in ((shape, unrefined.iou), (variety, unrefined.lpips)):
            axes.axhline(value, color=GREY, linewidth=1, linestyle="--", label="other samples, not refined")
        _plain(shape, "silhouette IoU with the sample")
        _plain(variety, "LPIPS between draws")
        shape.set_ylim(top=1.02)
        variety.set_ylim(bottom=0)
        variety.legend(frameon=False, fontsize=8)
        _draw_strip(pictures.subplots(1, 1), strip, [f"s = {strength:g}" for strength in strengths])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _plain(axes: Axes, title: str) -> None:
    axes.set_xlabel("noise strength")
    axes.set_ylabel(title)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_strip(axes: Axes, strip: Strip, columns: list[str]) -> None:
    """All pictures as one: the sample first, then its refinements; families of a sample under each other."""
    shape = strip.unrefined.shape[1:]
    height, width, _ = shape
    rows, labels = [], []
    for k, sample in enumerate(strip.unrefined):
        for j, (family, refined) in enumerate(strip.refined.items()):
            first = sample if j == 0 else np.full(shape, 255, np.uint8)
            rows.append(np.concatenate([first, *refined[k]], 1))
            labels.append(family)
    axes.axis("off")
    if not rows:
        return
    axes.imshow(np.concatenate(rows), interpolation="lanczos")
    for column, text in enumerate(["sample", *columns]):
        axes.text((column + 0.5) * width, -0.06 * height, text, ha="center", va="bottom", fontsize=9)
    for line, text in enumerate(labels):
        axes.text(-0.05 * width, (line + 0.5) * height, text, ha="right", va="center", fontsize=9)
