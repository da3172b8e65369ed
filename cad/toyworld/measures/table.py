"""One line of the check's table, the bar that it has to reach, and the table as Markdown and CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Bar(NamedTuple):
    """What a value has to reach: in words, and as a function of the value and its baseline."""

    text: str
    holds: Callable[[float, float], bool]


def at_least(limit: float) -> Bar:
    """The value is `limit` or more."""
    return Bar(f">= {limit:g}", lambda value, _: value >= limit)


def at_most(limit: float) -> Bar:
    """The value is `limit` or less."""
    return Bar(f"<= {limit:g}", lambda value, _: value <= limit)


def between(low: float, high: float) -> Bar:
    """The value is from `low` to `high`, both included."""
    return Bar(f"{low:g} to {high:g}", lambda value, _: low <= value <= high)


def above_baseline(margin: float) -> Bar:
    """The value is at least `margin` more than its baseline."""
    return Bar(f">= baseline + {margin:g}", lambda value, baseline: value >= baseline + margin)


def below_baseline() -> Bar:
    """The value is less than its baseline."""
    return Bar("< baseline", lambda value, baseline: value < baseline)


class Measure(NamedTuple):
    """One number about one model, what it is to be compared with, and its bar (None where there is nothing)."""

    model: str
    measure: str
    value: float
    baseline: float | None
    baseline_name: str
    examples: int
    bar: Bar | None

    @property
    def met(self) -> bool | None:
        """Whether the value reaches its bar; None without a bar. A missing baseline reaches no bar that needs one."""
        if self.bar is None:
            return None
        return bool(self.bar.holds(self.value, float("nan") if self.baseline is None else self.baseline))


COLUMNS = ("model", "measure", "value", "baseline", "baseline_name", "examples", "bar", "met", "weights")
HEADER = ("model", "measure", "value", "baseline", "n", "bar", "met", "weights")


def verdict(measure: Measure) -> str:
    """Whether a bar is met, as "yes" or "no"; empty without one."""
    return {True: "yes", False: "no", None: ""}[measure.met]


def sentence(m: Measure) -> str:
    """A measure in one line of plain text."""
    bar = "" if m.bar is None else f" (bar {m.bar.text}: {'met' if m.met else 'not met'})"
    compare = "" if m.baseline is None else f", {m.baseline_name} {m.baseline:.3f}"
    return f"{m.model}: {m.measure} {m.value:.3f}{compare}{bar}"


def markdown(
    models: Sequence[str], measures: dict[str, list[Measure]], digests: dict[str, str], introduction: str
) -> str:
    """The table for reading, with every one of `models` in it; measured values carry their weights' digest."""
    bars = [m.met for lines in measures.values() for m in lines if m.met is not None]
    lines = [
        "# The toyworld's small models, on held-out instances",
        "",
        introduction,
        "",
        f"{sum(bars)} of {len(bars)} bars are met." if bars else "No bar was measured.",
        "",
        f"| {' | '.join(HEADER)} |",
        f"|{'---|' * len(HEADER)}",
    ]
    for name in models:
        lines += [_row(m, digests[name]) for m in measures.get(name, [])] or [f"| {name} | not trained |{' |' * 6}"]
    return "\n".join([*lines, ""])


def _row(m: Measure, weights: str) -> str:
    compare = "" if m.baseline is None else f"{m.baseline:.3f} ({m.baseline_name})"
    bar = "" if m.bar is None else m.bar.text
    cells = (m.model, m.measure, f"{m.value:.3f}", compare, str(m.examples), bar, verdict(m), f"`{weights[:12]}`")
    return f"| {' | '.join(cells)} |"


def table(models: Sequence[str], measures: dict[str, list[Measure]], digests: dict[str, str]) -> str:
    """The same table as CSV, values with six digits and digests in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name in models:
        for m in measures.get(name, []):
            value, baseline = ("" if number is None else f"{number:.6f}" for number in (m.value, m.baseline))
            bar = "" if m.bar is None else m.bar.text
            writer.writerow(
                [name, m.measure, value, baseline, m.baseline_name, m.examples, bar, verdict(m), digests[name]]
            )
        if name not in measures:
            writer.writerow([name, "not trained", *[""] * (len(COLUMNS) - 2)])
    return text.getvalue()
