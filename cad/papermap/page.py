"""The map as a page of docs/."""

from pathlib import Path

from cad.papermap.claims import OWN, docstrings, references
from cad.papermap.entries import MAP, PARTS, STATES

PAGE = Path("docs/paper-map.md")
NUMBERS_NOTE = """The state speaks of the code. The paper's numbers stand in the profile `paper`, which has never been
run; what was run is `mini`, with smaller ones."""


def page(root: Path) -> str:
    """The page as Markdown: a table for each group of entries, then what else in the code names a part."""
    lines = ["# From the paper to the code", ""]
    lines += ["Written by `python -m cad.papermap` from its list and the docstrings of `cad/`; do not edit.", ""]
    lines += [f"- **{state}**: {meaning}" for state, meaning in STATES.items()]
    lines += ["", NUMBERS_NOTE, ""]
    for title, entries in MAP.items():
        lines += [f"## {title}", "", "| Paper | What it says | Code | Parameters | Stage | State |", "|:--" * 6 + "|"]
        for entry in entries:
            cells = [_code(names) for names in (entry.symbols, entry.parameters)]
            lines.append(f"| {entry.part} | {entry.says} | {' | '.join(cells)} | {entry.stages} | {entry.state} |")
        lines.append("")
    lines += ["## What names a part of the paper in its docstring", "", "| Paper | Code |", "|:--|:--|"]
    named = {symbol: references(text) for symbol, text in docstrings(root).items() if not symbol.startswith(OWN)}
    for part in PARTS:
        if symbols := " ".join(symbol for symbol, parts in named.items() if part in parts):
            lines.append(f"| {part} | {_code(symbols)} |")
    return "\n".join(lines) + "\n"


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split())
