"""Table 1: our rows and controls beside the paper's, every column under one scorer, ranks only within one scorer.

`metrics.json` files go in; `table1_forms` writes what comes out. With several objects the paper's layout is kept: a
block of means over the objects first, then a block for each object.
"""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cad.artifacts import read_json
from cad.errors import UserError
from cad.report import paper
from cad.report.markup import EMPTY, csv_records
from cad.report.measures import ROWS as LABELS

KINDS = ("image", "text")
ROWS = {  # metrics.json's rows: their label after (or instead of) the row's name, and what they are
    "3d": ("{name}", "ours"),
    "2d": ("{name}, 2D branch", "ours"),
    "truth": (LABELS["truth"], "truth"),
    "copied": (f"{LABELS['copied']}†", "control"),
    "other": (LABELS["other"], "control"),
    "untrained": (LABELS["untrained"], "control"),
}
SOURCES = ("paper", "ours", "truth", "control")
FIELDS = ("row", "source", "object", "scorer", "weights", *(f"{k}{f}" for k in KINDS for f in ("", "_std", "_rank")))
MEAN = "mean of "  # begins the `object` of a row of means
COPIED_NOTE = (
    "† The input image in place of every view. Its image score is 100 by construction, whatever the object is like "
    "from behind: an image score alone does not show that anything is 3D."
)


@dataclass(frozen=True)
class Cell:
    """One score: mean, std over seeds or objects (None for one), rank among the rows of its group (None without)."""

    value: float
    std: float | None
    rank: int | None


@dataclass(frozen=True)
class Line:
    """One row: its label, whose it is (one of SOURCES), its object, its cells by (scorer, kind)."""

    label: str
    source: str
    object: str
    cells: dict[tuple[str, str], Cell]


@dataclass(frozen=True)
class Table1:
    """The table: scorers (columns) with the digest of their weights, and the rows."""

    scorers: dict[str, str]
    lines: list[Line]


def build_table(rows: dict[str, Path]) -> Table1:
    """The table of the paper's rows and of these metrics files, one per row name; UserError for a missing one.

    Rows named `<method>, <object>` are one method on several objects, and are averaged.
    """
    scorers = {f"{name} (OpenAI)": "OpenAI" for name in paper.SCORERS}
    lines = [paper_line(method, numbers) for method, numbers in paper.TABLE1.items()]
    read = {name: read_json(path, "scorers", "object") for name, path in rows.items()}
    objects = list(dict.fromkeys(metrics["object"] for metrics in read.values()))
    ours: dict[str, list[Line]] = {name: [] for name in objects}
    beside: dict[str, dict[str, list[Line]]] = {name: {} for name in objects}  # once per object, if they are equal
    methods: dict[tuple[str, str], dict[str, Line]] = {}
    for name, metrics in read.items():
        subject = metrics["object"]
        method = name.removesuffix(f", {subject}")
        for key, line in measured_lines(name, rows[name], metrics, scorers):
            if line.source == "ours":
                ours[subject].append(line)
                if method != name:
                    methods.setdefault((method, key), {})[subject] = line
                continue
            beside[subject][key] = with_line(beside[subject].get(key, []), line, name)
    if len(objects) > 1:
        controls = {key for lines_of in beside.values() for key in lines_of}
        for key in (key for key in ROWS if key in controls):
            methods["", key] = {name: beside[name][key][0] for name in objects if key in beside[name]}
        lines += mean_lines(methods, objects)
    for name in objects:
        suffix = f" for {name}" if len(objects) > 1 else ""
        known_lines = (line for key in ROWS for line in beside[name].get(key, []))
        lines += [*ours[name], *(replace(line, label=f"{line.label}{suffix}") for line in known_lines)]
    return Table1(scorers, ranked(lines))


def with_line(known: list[Line], line: Line, name: str) -> list[Line]:
    """The lines of one control and object with another evaluation's: joined to one with equal scores, or beside them.

    They differ where evaluations of one object do: in the orbit, or in the architecture of an untrained generator.
    `name`: the row of ours that the line was evaluated with. Means over objects take the first.
    """
    for place, other in enumerate(known):
        if all(shown(cell) == shown(other.cells.get(column, cell)) for column, cell in line.cells.items()):
            joined = replace(other, cells={**line.cells, **other.cells})
            return [*known[:place], joined, *known[place + 1 :]]
    return [*known, replace(line, label=f"{line.label} (beside {name})") if known else line]


def shown(cell: Cell) -> float:
    """A score as the table shows it: what is closer is not told apart."""
    return round(cell.value, 2)


def mean_lines(methods: dict[tuple[str, str], dict[str, Line]], objects: list[str]) -> list[Line]:
    """A row of means for each method (and control) that was measured on all objects; others cannot be compared.

    Each object counts once, however many frames or seeds it has; the std (n - 1) is that of the objects' means.
    """
    done = []
    for (method, key), by_object in methods.items():
        if set(by_object) != set(objects):
            continue
        label, source = ROWS[key]
        found = [by_object[name] for name in objects]
        cells = {}
        for place in found[0].cells:
            if all(place in line.cells for line in found):
                values = [line.cells[place].value for line in found]
                cells[place] = Cell(statistics.fmean(values), statistics.stdev(values), None)
        if cells:
            name = f"{label.format(name=method)}, mean of {len(objects)}"
            done.append(Line(name, source, MEAN + ", ".join(objects), cells))
    return done


def paper_line(method: str, numbers: tuple[float, ...]) -> Line:
    """A row of the paper's Table 1."""
    places = [(f"{name} (OpenAI)", kind) for kind in KINDS for name in paper.SCORERS]
    cells = {place: Cell(number, None, None) for place, number in zip(places, numbers, strict=True)}
    return Line(f"{method} (paper)", "paper", "", cells)


def measured_lines(
    name: str, path: Path, metrics: dict[str, Any], scorers: dict[str, str]
) -> Iterator[tuple[str, Line]]:
    """The lines of one metrics file by their key; enters its scorers into `scorers`."""
    cells: dict[str, dict[tuple[str, str], Cell]] = {}
    try:
        for scorer, part in metrics["scorers"].items():
            column = column_name(scorer, part, scorers)
            for key, values in part["rows"].items():
                for kind in KINDS:
                    cell = Cell(float(values[kind]), values.get(f"{kind}_std"), None)
                    cells.setdefault(key, {})[column, kind] = cell
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no metrics file of this version ({error!r}); run `cad evaluate` again") from None
    for key, (label, source) in ROWS.items():
        if key in cells:
            yield key, Line(label.format(name=name), source, metrics["object"], cells[key])


def column_name(name: str, part: dict[str, Any], scorers: dict[str, str]) -> str:
    """The column of a scorer: the paper's where the weights are the paper's, otherwise its own; never a shared one."""
    same = paper.SAME_SCORER.get((part["kind"], part["model"].partition("@")[0], part["pretrained"]))
    if same is not None:
        return f"{same} (OpenAI)"
    if scorers.get(name, part["weights"]) != part["weights"]:  # one name for two sets of weights
        name = f"{name} [{part['weights'][:8]}]"
    scorers[name] = part["weights"]
    return name


def ranked(lines: list[Line]) -> list[Line]:
    """Rank every column within the paper's rows, the means, and the rows about one object; equal (rounded) ones tie."""
    done = []
    for line in lines:
        group = [other for other in lines if other.object == line.object]  # the paper's rows have no object
        cells = {}
        for place, cell in line.cells.items():
            values = [shown(other.cells[place]) for other in group if place in other.cells]
            better = sum(value > shown(cell) for value in values)
            cells[place] = replace(cell, rank=better + 1 if len(values) > 1 else None)
        done.append(replace(line, cells=cells))
    return done


def notes(table: Table1) -> list[str]:
    """What a reader must know to read the table."""
    own = [name for name in table.scorers if not name.endswith("(OpenAI)")]
    means = next((line.object for line in table.lines if line.object.startswith(MEAN)), None)
    among = "the rows measured here on one object"
    said = [
        "CLIP score, 100 x cosine, mean over the frames of an orbit (± std over seeds): against the reference view "
        "(image) and the prompt (text). ¹ ² ³: best, second and third of a column, separately among the paper's "
        f"rows{', among the means,' if means else ''} and among {among}. {EMPTY}: this scorer was not run on this row.",
        "Rows marked (paper) are the paper's own numbers on its own objects; nothing here re-ran them.",
    ]
    if means:
        names = means.removeprefix(MEAN).split(", ")
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        said.append(
            f"mean of {len(names)}: the mean over the objects {listed}, each of which counts once; ± in these rows is "
            f"the standard deviation (n - 1) of those {len(names)} means, not of seeds."
        )
    if own:
        said.append(
            f"{', '.join(own)}: not the paper's scorer. Its scores are another unit and cannot be compared with the "
            "OpenAI columns."
        )
    if any("†" in line.label for line in table.lines):
        said.append(COPIED_NOTE)
    return said


def from_csv(path: Path) -> Table1:
    """The table that `table1_forms.to_csv` wrote; UserError for a file that is missing, foreign or edited."""
    scorers: dict[str, str] = {}
    lines: dict[tuple[str, str, str], Line] = {}
    with csv_records(path, FIELDS) as records:
        for record in records:
            scorers[record["scorer"]] = record["weights"]
            place = record["row"], record["source"], record["object"]
            line = lines.setdefault(place, Line(*place, {}))
            if line.source not in SOURCES:
                raise ValueError(f"no row is of {line.source!r}")
            for kind in KINDS:
                value, std, rank = (record[f"{kind}{field}"] for field in ("", "_std", "_rank"))
                if value:
                    cell = Cell(float(value), float(std) if std else None, int(rank) if rank else None)
                    if not math.isfinite(cell.value) or (cell.rank is not None and cell.rank < 1):
                        raise ValueError(f"row {line.label!r} is not as it was written")
                    line.cells[record["scorer"], kind] = cell
    return Table1(scorers, list(lines.values()))
