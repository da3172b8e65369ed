"""The measures as Markdown, CSV and in the terminal: a table for each metrics file, and the definitions once."""

from pathlib import Path
from string import Formatter

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from cad.artifacts import write_atomic
from cad.report.markup import EMPTY, LETTERS, csv_text, markdown_escape, markdown_table
from cad.report.measures import (
    MEASURES,
    NEEDS_TRUTH,
    NO_MEASURE,
    NO_NUMBER,
    NO_ROW,
    NO_TRUTH,
    NOT_MEASURED,
    ROWS,
    Column,
    Measured,
    Value,
    number,
    read_measures,
)

WARP = ("warp", "still", "pixels", "share")
FIELDS = ("name", "object", "row", "measure", "by", "better", "value", "std", "beside", "what_beside", *WARP, "note")
LEGEND = (
    "± is the std over seeds; min: the worst seed; warp, still: what carried and unmoved pixels differ by; %: pixels "
    "compared; ∞: the views do not change."
)
BESIDE = {"azimuth": "worst seed", "lpips": "refined samples"}


def shown_columns(measured: Measured) -> list[Column]:
    """The columns in the order of MEASURES; one without a number, so that it is missed, where nothing measured it."""
    return [
        column
        for key in MEASURES
        for column in ([each for each in measured.columns if each[0] == key] or [(key, "")])
    ]  # fmt: skip


def why_missing(measured: Measured, column: Column, row: str) -> str:
    """Why there is no number in a cell."""
    key = column[0]
    if not measured.truth and (key in NEEDS_TRUTH or row in ("truth", "other")):
        return NO_TRUTH
    if not any(row in part for (each, _), part in measured.columns.items() if each in ("image", "text")):
        return NO_ROW
    if column not in measured.columns:
        return NO_MEASURE
    return NOT_MEASURED.get((row, key), NO_NUMBER)


def cell_text(key: str, cell: Value) -> str:
    """A cell as text: mean, std over seeds, and what stands beside it (LPIPS: in the head)."""
    text = number(key, cell.value) + (f" ± {number(key, cell.std)}" if cell.std is not None else "")
    if cell.warp is not None:
        return f"{text} (warp {cell.warp.warp:.2f}, still {cell.warp.still:.2f}, {cell.warp.share:.0%})"
    if key == "azimuth" and cell.std is not None and cell.beside is not None:
        return f"{text} (min {number(key, cell.beside)})"
    return text


def head(measured: Measured, column: Column) -> str:
    """A column's head: title, better direction, what measured it, and the refined samples' own LPIPS."""
    key, by = column
    refined = (
        next((cell.beside for cell in measured.columns.get(column, {}).values()), None) if key == "lpips" else None
    )
    beside = f"<br>refined samples: {number(key, refined)}" if refined is not None else ""
    return f"{measured.title(key)} {MEASURES[key].arrow}" + (f"<br>{markdown_escape(by)}" if by else "") + beside


def cells(measured: Measured) -> tuple[dict[str, list[str]], list[str]]:
    """Per row the texts of its cells, and the notes that their dashes point to."""
    reasons: list[str] = []
    table: dict[str, list[str]] = {}
    for row in ROWS:
        table[row] = []
        for column in shown_columns(measured):
            cell = measured.value(column, row)
            if cell is not None:
                table[row].append(cell_text(column[0], cell))
                continue
            reason = why_missing(measured, column, row)
            if reason not in reasons:
                reasons.append(reason)
            table[row].append(f"{EMPTY}{LETTERS[reasons.index(reason)]}")
    return table, [f"{LETTERS[k]} {reason}" for k, reason in enumerate(reasons)]


def section(measured: Measured) -> str:
    """The table of one metrics file in Markdown, with the notes to its dashes."""
    table, reasons = cells(measured)
    heads = ["", *(head(measured, column) for column in shown_columns(measured))]
    out = markdown_table(heads, ([ROWS[row], *texts] for row, texts in table.items()), 1)
    return out + (f"\n{EMPTY}: not measured. {'; '.join(reasons)}.\n" if reasons else "")


def definitions(measured: list[Measured]) -> list[str]:
    """A line for each measure: what it is, and what could pass it; one for each of several settings, with its rows."""
    shown = []
    for key, measure in MEASURES.items():
        needed = {name for _, name, _, _ in Formatter().parse(measure.said) if name}
        said: dict[str, list[str]] = {}
        for each in measured:
            if needed <= set(each.about):
                text = f"**{each.title(key)}** {measure.arrow}: {measure.said.format(**each.about)}"
                said.setdefault(text, []).append(each.name)
        for text, names in said.items():
            shown.append(text + (f" (For {', '.join(map(markdown_escape, names))}.)" if len(said) > 1 else ""))
    return shown


def markdown(measured: list[Measured]) -> str:
    """All tables, and the definitions once."""
    out = [f"{LEGEND}\n"]
    for each in measured:
        out += [f"### {markdown_escape(each.name)}\n", section(each)]
    return "\n".join([*out, "### What each measure says\n", *(f"- {said}" for said in definitions(measured)), ""])


def to_csv(measured: list[Measured]) -> str:
    """A line for each table, row and column, the missing ones with their reason."""
    lines: list[list[object]] = []
    for each in measured:
        for row in ROWS:
            for column in shown_columns(each):
                key, by = column
                better = "higher" if MEASURES[key].higher else "lower"
                cell = each.value(column, row)
                start = [each.name, each.object, row, each.title(key), by, better]
                if cell is None:
                    lines.append([*start, *[None] * 8, why_missing(each, column, row)])
                else:
                    what = BESIDE.get(key) if cell.beside is not None else None
                    warp = [getattr(cell.warp, name, None) for name in WARP]
                    lines.append([*start, cell.value, cell.std, cell.beside, what, *warp, None])
    return csv_text(FIELDS, lines)


def measures_files(measured: list[Measured]) -> dict[str, bytes]:
    """The two files of the tables, by name."""
    return {"measures.md": markdown(measured).encode(), "measures.csv": to_csv(measured).encode()}


def write_measures(rows: dict[str, Path], reports: Path) -> list[Measured]:
    """Write measures.md and measures.csv from metrics files; UserError for a missing one."""
    measured = read_measures(rows)
    for name, content in measures_files(measured).items():
        write_atomic(reports / name, content)
    return measured


def show_measures(measured: list[Measured], console: Console) -> None:
    """Print a table for each metrics file: here a measure is a line, which fits a terminal."""
    for each in measured:
        table, reasons = cells(each)
        grid = Grid(title=Text(each.name), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        grid.add_column("", no_wrap=True)
        for row in table:
            grid.add_column(Text(row), justify="right")
        for place, column in enumerate(shown_columns(each)):
            title = Text(head(each, column).replace("<br>", "\n  ").replace("\\", ""))
            texts = (own[place].replace(" ± ", "\n± ").replace(" (", "\n(") for own in table.values())
            grid.add_row(title, *map(Text, texts))
        console.print(grid)
        for reason in reasons:
            console.print(Text(reason, style="dim"))
    console.print(Text(LEGEND, style="dim"))
