"""Table 1: our rows and controls beside the paper's, every column under one scorer, ranks only within one scorer.

`metrics.json` files go in; Markdown, CSV and LaTeX come out, byte for byte the same for the same files. The CSV holds
everything, so the table can be shown again from it.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from cad.artifacts import read_json, write_atomic
from cad.errors import UserError
from cad.report import paper

KINDS = ("image", "text")
ROWS = {  # metrics.json's rows: their label after (or instead of) the row's name, and what they are
    "3d": ("{name}", "ours"),
    "2d": ("{name}, 2D branch", "ours"),
    "truth": ("True object (ceiling)", "ceiling"),
    "copied": ("Reference copied†", "control"),
    "other": ("Another object", "control"),
    "untrained": ("Untrained generator", "control"),
}
FIELDS = ("row", "source", "object", "scorer", "weights", *(f"{k}{f}" for k in KINDS for f in ("", "_std", "_rank")))
EMPTY = "—"
SHOWN_RANKS = 3
COPIED_NOTE = (
    "† The input image in place of every view. Its image score is 100 by construction, whatever the object is like "
    "from behind: an image score alone does not show that anything is 3D."
)


@dataclass(frozen=True)
class Cell:
    """One score: mean, std over seeds (None for one seed), rank among the rows of its group (None without)."""

    value: float
    std: float | None
    rank: int | None


@dataclass(frozen=True)
class Line:
    """One row: its label, whose it is (paper, ours, ceiling, control), its object, its cells by (scorer, kind)."""

    label: str
    source: str
    object: str
    cells: dict[tuple[str, str], Cell]


@dataclass(frozen=True)
class Table1:
    """The table: scorers (columns) with the digest of their weights, and the rows."""

    scorers: dict[str, str]
    lines: list[Line]


def write_table1(rows: dict[str, Path], reports: Path) -> Table1:
    """Write table1.md, table1.csv and table1.tex from metrics files, one per row name; UserError for a missing one."""
    table = build_table(rows)
    for name, content in table_files(table).items():
        write_atomic(reports / name, content)
    return table


def table_files(table: Table1) -> dict[str, bytes]:
    """The three files of the table, by name."""
    forms = {"md": markdown, "csv": to_csv, "tex": latex}
    return {f"table1.{suffix}": form(table).encode() for suffix, form in forms.items()}


def build_table(rows: dict[str, Path]) -> Table1:
    """The table of the paper's rows and of these metrics files."""
    scorers = {f"{name} (OpenAI)": "OpenAI" for name in paper.SCORERS}
    lines = [paper_line(method, numbers) for method, numbers in paper.TABLE1.items()]
    read = {name: read_json(path, "scorers", "object") for name, path in rows.items()}
    several = len({metrics["object"] for metrics in read.values()}) > 1
    ours: list[Line] = []
    beside: dict[tuple[str, str], Line] = {}  # the ceiling and the controls: once per object, not once per row of ours
    for name, metrics in read.items():
        for key, line in measured_lines(name, rows[name], metrics, scorers):
            if line.source == "ours":
                ours.append(line)
                continue
            place = (metrics["object"], key)
            known = beside.get(place, line)
            label = f"{line.label}: {metrics['object']}" if several else line.label
            beside[place] = replace(line, label=label, cells={**line.cells, **known.cells})
    return Table1(scorers, ranked(lines + ours + list(beside.values())))


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
        for shown, part in metrics["scorers"].items():
            column = column_name(shown, part, scorers)
            for key, values in part["rows"].items():
                for kind in KINDS:
                    cell = Cell(float(values[kind]), values.get(f"{kind}_std"), None)
                    cells.setdefault(key, {})[column, kind] = cell
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no metrics file of this version ({error!r}); run `cad evaluate` again") from None
    for key, (label, source) in ROWS.items():
        if key in cells:
            yield key, Line(label.format(name=name), source, metrics["object"], cells[key])


def column_name(shown: str, part: dict[str, Any], scorers: dict[str, str]) -> str:
    """The column of a scorer: the paper's where the weights are the paper's, otherwise its own; never a shared one."""
    same = paper.SAME_SCORER.get((part["kind"], part["model"], part["pretrained"]))
    if same is not None:
        return f"{same} (OpenAI)"
    if scorers.get(shown, part["weights"]) != part["weights"]:  # one name for two sets of weights
        shown = f"{shown} [{part['weights'][:8]}]"
    scorers[shown] = part["weights"]
    return shown


def ranked(lines: list[Line]) -> list[Line]:
    """Rank every column within the paper's rows, and within the rows about one object; equal (rounded) scores tie."""
    done = []
    for line in lines:
        group = [other for other in lines if other.object == line.object]  # the paper's rows have no object
        cells = {}
        for place, cell in line.cells.items():
            values = [round(other.cells[place].value, 2) for other in group if place in other.cells]
            better = sum(value > round(cell.value, 2) for value in values)
            cells[place] = replace(cell, rank=better + 1 if len(values) > 1 else None)
        done.append(replace(line, cells=cells))
    return done


def notes(table: Table1) -> list[str]:
    """What a reader must know to read the table."""
    own = [name for name in table.scorers if not name.endswith("(OpenAI)")]
    said = [
        "CLIP score, 100 x cosine, mean over the frames of an orbit (± std over seeds): against the reference view "
        "(image) and the prompt (text). ¹ ² ³: best, second and third of a column, separately among the paper's "
        f"rows and among the rows measured here on one object. {EMPTY}: this scorer was not run on this row.",
        "Rows marked (paper) are the paper's own numbers on its own objects; nothing here re-ran them.",
    ]
    if own:
        said.append(
            f"{', '.join(own)}: not the paper's scorer. Its scores are another unit and cannot be compared with the "
            "OpenAI columns."
        )
    if any("†" in line.label for line in table.lines):
        said.append(COPIED_NOTE)
    return said


def number(cell: Cell | None) -> str:
    """A cell without its rank: mean, and std where there is one."""
    if cell is None:
        return EMPTY
    return f"{cell.value:.2f}" + (f" ± {cell.std:.2f}" if cell.std is not None else "")


def mark(cell: Cell | None) -> str:
    """The rank of a cell as a superscript, down to the third."""
    return "¹²³"[cell.rank - 1] if cell is not None and cell.rank is not None and cell.rank <= SHOWN_RANKS else ""


def markdown(table: Table1) -> str:
    """The table with its notes in GitHub's Markdown; the best of a column is bold."""

    def cell(value: Cell | None) -> str:
        best = value is not None and value.rank == 1
        return f"**{number(value)}**{mark(value)}" if best else number(value) + mark(value)

    heads = [f"{kind.capitalize()} score ↑<br>{markdown_escape(name)}" for kind in KINDS for name in table.scorers]
    out = ["| Method | " + " | ".join(heads) + " |", "|:--|" + "--:|" * len(heads)]
    for line in table.lines:
        cells = [cell(line.cells.get((name, kind))) for kind in KINDS for name in table.scorers]
        out.append(f"| {markdown_escape(line.label)} | " + " | ".join(cells) + " |")
    return "\n".join([*out, "", *(f"{note}\n" for note in map(markdown_escape, notes(table)))])


def to_csv(table: Table1) -> str:
    """The table as one line per row and scorer; empty fields where the scorer was not run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for line in table.lines:
        for name, weights in table.scorers.items():
            values: list[object] = []
            for kind in KINDS:
                cell = line.cells.get((name, kind))
                values += [cell.value, cell.std, cell.rank] if cell is not None else [None, None, None]
            writer.writerow([line.label, line.source, line.object, name, weights, *values])
    return text.getvalue()


def from_csv(path: Path) -> Table1:
    """The table that `to_csv` wrote; UserError for a missing or foreign file."""
    if not path.is_file():
        raise UserError(f"{path}: missing; run `cad report all`")
    scorers: dict[str, str] = {}
    lines: dict[tuple[str, str, str], Line] = {}
    with path.open(encoding="utf-8", newline="") as file:
        records = csv.DictReader(file)
        if tuple(records.fieldnames or ()) != FIELDS:
            raise UserError(f"{path}: is no Table 1 of this version; run `cad report all` again")
        for record in records:
            scorers[record["scorer"]] = record["weights"]
            place = record["row"], record["source"], record["object"]
            line = lines.setdefault(place, Line(*place, {}))
            for kind in KINDS:
                value, std, rank = (record[f"{kind}{field}"] for field in ("", "_std", "_rank"))
                if value:
                    cell = Cell(float(value), float(std) if std else None, int(rank) if rank else None)
                    line.cells[record["scorer"], kind] = cell
    return Table1(scorers, list(lines.values()))


def latex(table: Table1) -> str:
    """The table for booktabs, as in the paper: image scores left, text scores right."""

    def cell(value: Cell | None) -> str:
        body = latex_escape(number(value))
        rank = value.rank if value is not None else None
        if rank is None or rank > SHOWN_RANKS:
            return body
        return (rf"\textbf{{{body}}}" if rank == 1 else body) + rf"\textsuperscript{{{rank}}}"

    count = len(table.scorers)
    wide = rf"\multicolumn{{{count}}}{{c}}"
    names = [latex_escape(name) for name in table.scorers] * 2
    out = [
        "% Written by `cad report table1`; needs \\usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * count}{'r' * count}}}",
        r"\toprule",
        rf" & {wide}{{Image score ($\uparrow$)}} & {wide}{{Text score ($\uparrow$)}} \\",
        rf"\cmidrule(lr){{2-{count + 1}}} \cmidrule(lr){{{count + 2}-{2 * count + 1}}}",
        " & ".join(["Method", *names]) + r" \\",
    ]
    before = None
    for line in table.lines:
        if line.source != before and not {line.source, before} <= {"ceiling", "control"}:
            out.append(r"\midrule")
        before = line.source
        cells = [cell(line.cells.get((name, kind))) for kind in KINDS for name in table.scorers]
        out.append(" & ".join([latex_escape(line.label), *cells]) + r" \\")
    caption = latex_escape(" ".join(notes(table)))
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}", ""])


LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "—": "---",
    "±": r"$\pm$",
    "†": r"\textsuperscript{\textdagger}",
    "↑": r"$\uparrow$",
    **dict(zip("¹²³", (rf"\textsuperscript{{{k}}}" for k in (1, 2, 3)), strict=True)),
}


def latex_escape(text: str) -> str:
    """Text with LaTeX's special characters escaped, and the few symbols of this table spelt out."""
    return "".join(LATEX.get(character, character) for character in text)


def markdown_escape(text: str) -> str:
    """Text with the characters that would break a Markdown table escaped."""
    return "".join(f"\\{character}" if character in "|*_`<[]" else character for character in text)


def show_table1(table: Table1, console: Console) -> None:
    """Print image scores, then text scores, in the terminal: best, second and third in green, yellow and magenta."""
    styles: dict[int | None, str] = {1: "bold green", 2: "yellow", 3: "magenta"}
    for kind in KINDS:
        grid = Grid(title=f"Table 1: {kind} score, higher is better", title_justify="left", box=SIMPLE_HEAD)
        grid.add_column("Method", no_wrap=True)
        for name in table.scorers:
            grid.add_column(Text(name), justify="right")
        for line, after in zip(table.lines, [*table.lines[1:], None], strict=True):
            cells = [line.cells.get((name, kind)) for name in table.scorers]
            texts = [
                Text(number(cell) + mark(cell), style=styles.get(cell.rank if cell else None, "")) for cell in cells
            ]
            last = after is not None and after.source != line.source
            grid.add_row(Text(line.label, style="dim" if line.source == "paper" else ""), *texts, end_section=last)
        console.print(grid)
    for note in notes(table):
        console.print(Text(note, style="dim"))
