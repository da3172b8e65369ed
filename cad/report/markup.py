"""What all tables share: how Markdown, LaTeX and CSV are written, and how a number that is not there is shown."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cad.errors import UserError

EMPTY = "—"
LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"  # marks of notes under a table, in order


def markdown_table(heads: Sequence[str], lines: Iterable[Sequence[str]], right: int) -> str:
    """A Markdown table whose columns from number `right` on are aligned to the right; cells are Markdown already."""
    out = ["| " + " | ".join(heads) + " |", "|" + ":--|" * right + "--:|" * (len(heads) - right)]
    return "\n".join([*out, *("| " + " | ".join(cells) + " |" for cells in lines)]) + "\n"


def markdown_escape(text: str) -> str:
    """Text with the characters that would break a Markdown table escaped."""
    return "".join(f"\\{character}" if character in "|*_`<[]" else character for character in text)


def csv_text(fields: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A CSV file with a head line; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows(lines)
    return text.getvalue()


@contextmanager
def csv_records(path: Path, fields: Sequence[str]) -> Iterator[list[dict[str, str]]]:
    """The lines of a CSV file of the report, by field; UserError for a file that is missing, foreign or edited.

    What the reader of a line cannot make sense of, inside of the `with`, counts as edited too.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; run `cad report all`")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *lines = list(csv.reader(file)) or [[]]
        if head != list(fields) or any(len(line) != len(fields) for line in lines):
            raise ValueError("other fields")
        yield [dict(zip(fields, line, strict=True)) for line in lines]
    except (ValueError, LookupError, csv.Error) as error:
        raise UserError(f"{path}: was edited, or is of another version ({error}); run `cad report all` again") from None


LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "—": "---",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "†": r"\textsuperscript{\textdagger}",
    "↑": r"$\uparrow$",
    **dict(zip("¹²³", (rf"\textsuperscript{{{k}}}" for k in (1, 2, 3)), strict=True)),
}


def latex_escape(text: str) -> str:
    """Text with LaTeX's special characters escaped, and the few symbols of these tables spelt out."""
    return "".join(LATEX.get(character, character) for character in text)
