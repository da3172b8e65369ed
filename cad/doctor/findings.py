"""What `cad doctor` says of one piece, and the remedy where it does not work."""

from dataclasses import dataclass

from cad.errors import UserError

OK, MISSING, BROKEN, UNKNOWN = "ok", "missing", "broken", "unknown"


@dataclass(frozen=True)
class Finding:
    """A piece that was looked at; `needed` says that the main job cannot run unless its state is OK.

    `remedy` is "" where nothing is to be done.
    """

    area: str
    name: str
    state: str
    says: str
    remedy: str
    needed: bool


def ok(area: str, name: str, says: str) -> Finding:
    """A piece that works."""
    return Finding(area, name, OK, says, "", False)


def of_error(area: str, name: str, state: str, error: UserError, needed: bool) -> Finding:
    """A piece that a UserError speaks of: its text is "file or field: fault; remedy"."""
    says, _, remedy = " ".join(str(error).split()).rpartition("; ")
    return Finding(area, name, state, says or remedy, remedy if says else "", needed)


def first_line(error: BaseException) -> str:
    """The type of an exception and the first line of its text."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": ")
