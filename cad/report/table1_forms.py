"""The score table as Markdown, CSV, LaTeX and in the terminal: byte for byte the same for the same table.

The CSV holds everything, so the table can be shown again from it.
"""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from cad.artifacts import write_atomic
from cad.report.markup import EMPTY, csv_text, latex_escape, markdown_escape, markdown_table
from cad.report.table1 import FIELDS, KINDS, Cell, Line, Table1, build_table, notes

SHOWN_RANKS = 3


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


def number(cell: Cell | None) -> str:
    """A cell without its rank: mean, and std where there is one."""
    if cell is None:
        return EMPTY
    return f"{cell.value:.2f}" + (f" ± {cell.std:.2f}" if cell.std is not None else "")


def mark(cell: Cell | None) -> str:
    """The rank of a cell as a superscript, down to the third."""
    return "¹²³"[cell.rank - 1] if cell is not None and cell.rank is not None and cell.rank <= SHOWN_RANKS else ""


def block(line: Line) -> tuple[str, bool]:
    """What a row is grouped by: its object (or the paper), and whether it is ours or stands beside ours."""
    return line.object, line.source in ("truth", "control")


def markdown(table: Table1) -> str:
    """The table with its notes in GitHub's Markdown; the best of a column is bold."""

    def cell(value: Cell | None) -> str:
        best = value is not None and value.rank == 1
        return f"**{number(value)}**{mark(value)}" if best else number(value) + mark(value)

    heads = [f"{kind.capitalize()} score ↑<br>{markdown_escape(name)}" for kind in KINDS for name in table.scorers]
    lines = [
        [markdown_escape(line.label), *(cell(line.cells.get((name, kind))) for kind in KINDS for name in table.scorers)]
        for line in table.lines
    ]
    return "\n".join([markdown_table(["Method", *heads], lines, 1), *(f"{markdown_escape(n)}\n" for n in notes(table))])


def to_csv(table: Table1) -> str:
    """The table as one line per row and scorer; empty fields where the scorer was not run."""
    lines = []
    for line in table.lines:
        for name, weights in table.scorers.items():
            values: list[object] = []
            for kind in KINDS:
                cell = line.cells.get((name, kind))
                values += [cell.value, cell.std, cell.rank] if cell is not None else [None, None, None]
            lines.append([line.label, line.source, line.object, name, weights, *values])
    return csv_text(FIELDS, lines)


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
        if block(line) != before:
            out.append(r"\midrule")
        before = block(line)
        cells = [cell(line.cells.get((name, kind))) for kind in KINDS for name in table.scorers]
        out.append(" & ".join([latex_escape(line.label), *cells]) + r" \\")
    caption = latex_escape(" ".join(notes(table)))
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}", ""])


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
            last = after is not None and block(after) != block(line)
            grid.add_row(Text(line.label, style="dim" if line.source == "paper" else ""), *texts, end_section=last)
        console.print(grid)
    for note in notes(table):
        console.print(Text(note, style="dim"))
