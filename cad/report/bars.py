"""The bars that a convincing result has to clear, with what was measured; a bar that is missed is reported as such.

All thresholds stand here, and so does the choice of measures by which a control can be told from a good object.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from cad.artifacts import write_atomic
from cad.report.markup import EMPTY, csv_records, csv_text, markdown_escape, markdown_table
from cad.report.measures import MEASURES, ROWS, Column, Measured, number, read_measures

# The paper has none of these bars: all are [ours].
AZIMUTH_SHARE = 0.8  # of an orbit's frames; chance is about 0.18, and an object that is right from all sides but a
# quarter of the way round still misses it
RELATIVE_IMAGE = 0.7  # of the way from another object's image score to the true object's
DIVERSITY_SHARE = 0.5  # of the LPIPS between the refined samples, which is all the variety that a generator was shown
EXPLAINED = 1.0  # warp / still: carried pixels must differ less than unmoved ones
SHARE_LEAST = 0.5  # of the pixels inside the outlines: an error over fewer says little of the object; true orbits: 0.96

# What can tell a control from a good object. A measure is here if a good object must win on it, and only then:
# losing to a control on any other measure means nothing.
TELLS = {
    # One picture for all views: the wrong side from nearly everywhere, one outline, no variety of views, and no change
    # between views that a depth could explain.
    "copied": ("azimuth", "silhouette", "kid", "warp"),
    # Another family's true orbit: a perfect object, but not this one.
    "other": ("image", "text", "azimuth", "silhouette", "kid"),
    # The same networks, fresh: no object, no sides.
    "untrained": ("image", "text", "azimuth", "silhouette", "kid"),
}
# Why the others cannot tell.
BLIND = {
    ("copied", "image"): "100 by construction",
    ("copied", "text"): "one good view of what the prompt names fits it as well as the true orbit does",
    ("copied", "lpips"): "0 by construction; the bar of half the refined samples' LPIPS asks more",
    ("copied", "one_depth"): "asked of our two branches only",
    ("copied", "relative"): "the image score in another unit",
    ("other", "lpips"): "one object has no seeds, so it cannot be measured",
    ("other", "warp"): "a true orbit is consistent, whatever it shows",
    ("other", "one_depth"): "asked of our two branches only",
    ("other", "relative"): "0 by definition; the image score says the same",
    ("untrained", "lpips"): "rendered with one seed only; noise would differ as well",
    ("untrained", "warp"): "a blob is consistent with itself, and a blank has nothing to compare",
    ("untrained", "one_depth"): "asked of our two branches only",
    ("untrained", "relative"): "the image score in another unit",
}
FIELDS = ("name", "object", "bar", "measure", "value", "relation", "needed", "met")
MET = {True: "yes", False: "no", None: "not measured"}
STYLES = {True: "green", False: "bold red", None: "yellow"}


@dataclass(frozen=True)
class Bar:
    """One bar for one metrics file: what was measured, and what it must be (None: was not measured)."""

    title: str
    measure: str
    value: float | None
    relation: str  # ">=", ">" or "<"
    needed: float | None

    @property
    def met(self) -> bool | None:
        """Whether it is cleared; None if one side was not measured, which is not cleared either."""
        if self.value is None or self.needed is None:
            return None
        return {
            ">=": self.value >= self.needed, ">": self.value > self.needed, "<": self.value < self.needed,
        }[self.relation]  # fmt: skip

    @property
    def said(self) -> str:
        """Both numbers as text."""
        value, needed = (EMPTY if each is None else number(self.measure, each) for each in (self.value, self.needed))
        return f"{value} ({self.relation.replace('>=', '≥')} {needed})"


def bars(measured: Measured) -> Iterator[Bar]:
    """All bars of one metrics file, in the order in which they are shown."""

    def value(column: Column, row: str) -> float | None:
        cell = measured.value(column, row)
        if cell is None or (cell.warp is not None and row in ("3d", "2d") and cell.warp.share < SHARE_LEAST):
            return None
        return cell.value

    azimuth = measured.value(("azimuth", ""), "3d")
    yield Bar("Azimuth retrieval, 3D", "azimuth", azimuth.value if azimuth else None, ">=", AZIMUTH_SHARE)
    yield Bar("Azimuth retrieval, 3D, worst seed", "azimuth", azimuth.beside if azimuth else None, ">=", AZIMUTH_SHARE)
    for column in columns(measured, "relative"):
        title = f"Relative image score, 3D{by(column)}"
        yield Bar(title, "relative", value(column, "3d"), ">=", RELATIVE_IMAGE)
    for column in columns(measured, "lpips"):
        seeds = measured.value(column, "3d")
        refined = None if seeds is None or seeds.beside is None else DIVERSITY_SHARE * seeds.beside
        title = f"LPIPS between seeds, 3D: {DIVERSITY_SHARE:g} x the refined samples'"
        yield Bar(title, "lpips", seeds.value if seeds else None, ">=", refined)
    yield Bar("Warp / still, 3D", "warp", value(("warp", ""), "3d"), "<", EXPLAINED)
    for key, title in (("warp", "each its own depth"), ("one_depth", "both through 3D's depth")):
        flat = value((key, ""), "2d")
        needed = flat if flat is not None and math.isfinite(flat) else None  # a blank 2D branch is no measure
        yield Bar(f"Warp / still: 3D below 2D, {title}", key, value((key, ""), "3d"), "<", needed)
    for control, keys in TELLS.items():
        for key in keys:
            for column in columns(measured, key):
                title = f"3D beats {ROWS[control].lower()}: {measured.title(key)}{by(column)}"
                relation = ">" if MEASURES[key].higher else "<"
                yield Bar(title, key, value(column, "3d"), relation, value(column, control))


def columns(measured: Measured, key: str) -> list[Column]:
    """All columns of a measure; an empty one where nothing measured it, so that its bar is not left out."""
    return [column for column in measured.columns if column[0] == key] or [(key, "")]


def by(column: Column) -> str:
    """Which scorer a score is by; other measures have one column only."""
    return f" ({column[1]})" if column[0] in ("image", "text", "relative") and column[1] else ""


@dataclass(frozen=True)
class Judged:
    """The bars of one row of the report."""

    name: str
    object: str
    bars: list[Bar]

    @property
    def summary(self) -> str:
        """How many bars are cleared, and which are not."""
        missed = [f"{bar.title} ({MET[bar.met]})" for bar in self.bars if not bar.met]
        said = f"{self.name}: {len(self.bars) - len(missed)} of {len(self.bars)} bars met"
        return said + (f"; missed: {'; '.join(missed)}." if missed else ".")


def judge(measured: list[Measured]) -> list[Judged]:
    """The bars of every row of the report."""
    return [Judged(each.name, each.object, list(bars(each))) for each in measured]


def titles(judged: list[Judged]) -> dict[str, str]:
    """A short head for each row of the report: its object, where no other row is about that one."""
    objects = [each.object for each in judged]
    return {each.name: each.object if objects.count(each.object) == 1 else each.name for each in judged}


def lines(judged: list[Judged]) -> list[tuple[str, list[Bar | None]]]:
    """A line for each bar of any row: the row's own bar, or None where its scorers differ."""
    found = {each.name: {bar.title: bar for bar in each.bars} for each in judged}
    order = dict.fromkeys(bar.title for each in judged for bar in each.bars)
    return [(title, [own.get(title) for own in found.values()]) for title in order]


def notes() -> list[str]:
    """What cannot tell a control from a good object, and why."""
    out = [
        "In brackets what is needed; a bar that was not measured is not met, nor one of a warp over less than "
        f"{SHARE_LEAST:.0%} of the pixels. ∞: the views do not change. What cannot tell a control, and why:"
    ]
    for control in TELLS:
        said = [f"{MEASURES[key].title} ({why})" for (which, key), why in BLIND.items() if which == control]
        out.append(f"{ROWS[control]}: {'; '.join(said)}.")
    return out


def markdown(judged: list[Judged]) -> str:
    """The bars as a table, one pair of columns per row of the report, with a summary and what cannot tell."""
    heads = ["Bar"] + [text for name in titles(judged).values() for text in (markdown_escape(name), "met")]
    table = []
    for title, each in lines(judged):
        texts = [[bar.said, MET[bar.met]] if bar else [EMPTY, EMPTY] for bar in each]
        shown = [[said, met if met == "yes" else f"**{met}**"] for said, met in texts]
        table.append(
            [
                markdown_escape(title),
                *(markdown_escape(said) if k == 0 else said for pair in shown for k, said in enumerate(pair)),
            ]
        )
    out = [markdown_table(heads, table, 1), *(f"{markdown_escape(each.summary)}\n" for each in judged)]
    first, *rest = notes()
    return "\n".join([*out, f"{first}\n", *(f"- {markdown_escape(note)}" for note in rest), ""])


def to_csv(judged: list[Judged]) -> str:
    """A line for each bar and row of the report; it can be read back."""
    return csv_text(
        FIELDS,
        (
            [each.name, each.object, bar.title, bar.measure, bar.value, bar.relation, bar.needed, MET[bar.met]]
            for each in judged
            for bar in each.bars
        ),
    )


def from_csv(path: Path) -> list[Judged]:
    """The bars that `to_csv` wrote; UserError for a file that is missing, foreign or edited into another form."""
    found: dict[tuple[str, str], list[Bar]] = {}
    with csv_records(path, FIELDS) as records:
        for record in records:
            value, needed = (float(record[key]) if record[key] else None for key in ("value", "needed"))
            bar = Bar(record["bar"], record["measure"], value, record["relation"], needed)
            if bar.measure not in MEASURES or MET[bar.met] != record["met"]:
                raise ValueError(f"bar {bar.title!r} is not as it was written")
            found.setdefault((record["name"], record["object"]), []).append(bar)
    return [Judged(name, subject, own) for (name, subject), own in found.items()]


def bars_files(judged: list[Judged]) -> dict[str, bytes]:
    """The two files of the bars, by name."""
    return {"bars.md": markdown(judged).encode(), "bars.csv": to_csv(judged).encode()}


def write_bars(rows: dict[str, Path], reports: Path) -> list[Judged]:
    """Write bars.md and bars.csv from metrics files; UserError for a missing one, not for a bar that is missed."""
    judged = judge(read_measures(rows))
    for name, content in bars_files(judged).items():
        write_atomic(reports / name, content)
    return judged


def show_bars(judged: list[Judged], console: Console) -> None:
    """Print the bars: met in green, missed in red, not measured in yellow."""
    grid = Grid(title="Bars", title_justify="left", box=SIMPLE_HEAD)
    grid.add_column("Bar")
    for name in titles(judged).values():
        grid.add_column(Text(name), justify="right", no_wrap=True)
        grid.add_column("met", no_wrap=True)
    for title, each in lines(judged):
        texts: list[Text] = []
        for bar in each:
            met = bar.met if bar else None
            texts += [Text(bar.said if bar else EMPTY), Text(MET[met] if bar else EMPTY, style=STYLES[met])]
        grid.add_row(Text(title), *texts)
    console.print(grid)
    for each_row in judged:
        console.print(Text(each_row.summary, style="bold"))
    for note in notes():
        console.print(Text(note, style="dim"))
