"""Bars by hand, and a table that says for each line whether its bar is met."""

import csv
import io
import math

import pytest

from cad.toyworld.measures import bars
from cad.toyworld.measures.table import (
    Bar,
    Measure,
    above_baseline,
    at_least,
    at_most,
    below_baseline,
    between,
    markdown,
    sentence,
    table,
)


def measure(value: float, baseline: float | None, bar: Bar | None) -> Measure:
    return Measure("clip", "a share", value, baseline, "" if baseline is None else "chance", 7, bar)


@pytest.mark.parametrize(
    ("bar", "value", "baseline", "met"),
    [
        (at_least(28), 28.0, None, True),
        (at_least(28), 27.999, None, False),
        (at_most(15), 15.0, None, True),
        (at_most(15), 15.001, None, False),
        (between(0.1, 0.6), 0.1, None, True),
        (between(0.1, 0.6), 0.6, None, True),
        (between(0.1, 0.6), 0.09, None, False),
        (between(0.1, 0.6), 0.61, None, False),
        (above_baseline(2.5), 10.0, 7.5, True),
        (above_baseline(2.5), 10.0, 7.6, False),
        (above_baseline(2.5), 10.0, None, False),
        (below_baseline(), 0.3, 0.31, True),
        (below_baseline(), 0.3, 0.3, False),
        (below_baseline(), 0.3, None, False),
        (at_least(3), math.nan, None, False),
    ],
)
def test_bars_by_hand(bar: Bar, value: float, baseline: float | None, met: bool) -> None:
    assert measure(value, baseline, bar).met is met


def test_without_a_bar_nothing_is_met_or_missed() -> None:
    assert measure(1.0, None, None).met is None


def test_the_bars_are_the_promised_ones() -> None:
    """The values that the small models were promised to reach."""
    texts = {name: bar.text for name, bar in vars(bars).items() if isinstance(bar, Bar)}
    assert texts == {
        "RETRIEVAL": ">= 0.8", "RECONSTRUCTION": ">= 28", "RECONSTRUCTED_COLORS": "<= 5",
        "VIEW_RECONSTRUCTION": ">= baseline + 2.5", "VIEW_PERCEPTION": "< baseline", "VIEW_SILHOUETTE": ">= 0.8",
        "VIEW_COLORS": "<= 15", "SIDES": ">= 0.9", "FAILURES": "0.1 to 0.6", "REFINED_SILHOUETTE": ">= 0.85",
        "DIVERSITY": ">= 3", "DEPTH": "< baseline", "CONTROLLED_SILHOUETTE": ">= baseline + 0.05",
    }  # fmt: skip


MEASURES = {"clip": [measure(0.9, 0.25, at_least(0.8)), measure(0.5, None, at_most(0.4)), measure(0.5, None, None)]}
DIGESTS = {"clip": "0123456789abcdef"}


def test_the_page_by_hand() -> None:
    assert markdown(["clip", "refiner"], MEASURES, DIGESTS, "Of this and that.").splitlines() == [
        "# The toyworld's small models, on held-out instances",
        "",
        "Of this and that.",
        "",
        "1 of 2 bars are met.",
        "",
        "| model | measure | value | baseline | n | bar | met | weights |",
        "|---|---|---|---|---|---|---|---|",
        "| clip | a share | 0.900 | 0.250 (chance) | 7 | >= 0.8 | yes | `0123456789ab` |",
        "| clip | a share | 0.500 |  | 7 | <= 0.4 | no | `0123456789ab` |",
        "| clip | a share | 0.500 |  | 7 |  |  | `0123456789ab` |",
        "| refiner | not trained | | | | | | |",
    ]


def test_the_csv_by_hand() -> None:
    rows = list(csv.DictReader(io.StringIO(table(["clip", "refiner"], MEASURES, DIGESTS))))
    assert [row["met"] for row in rows] == ["yes", "no", "", ""]
    assert rows[0] == {
        "model": "clip", "measure": "a share", "value": "0.900000", "baseline": "0.250000", "baseline_name": "chance",
        "examples": "7", "bar": ">= 0.8", "met": "yes", "weights": "0123456789abcdef",
    }  # fmt: skip
    assert rows[1]["baseline"] == rows[1]["baseline_name"] == ""
    assert rows[3] == dict.fromkeys(rows[0], "") | {"model": "refiner", "measure": "not trained"}


def test_a_measure_in_a_sentence() -> None:
    first, second, third = (sentence(m) for m in MEASURES["clip"])
    assert first == "clip: a share 0.900, chance 0.250 (bar >= 0.8: met)"
    assert second == "clip: a share 0.500 (bar <= 0.4: not met)"
    assert third == "clip: a share 0.500"
