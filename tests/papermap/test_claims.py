"""The map of the paper against the code it speaks of; and that its check sees each kind of fault."""

from dataclasses import replace
from pathlib import Path

import pytest

from cad.papermap.claims import docstrings, faults, references
from cad.papermap.entries import MAP, NOT_YET, Entry

ROOT = Path(__file__).parents[2]
ENTRIES = [entry for entries in MAP.values() for entry in entries]


def test_every_claim_of_the_map_holds() -> None:
    assert faults(ROOT, ENTRIES) == []


def test_the_paper_s_numbers_that_have_a_setting_are_checked_against_the_profile() -> None:
    assert sum(entry.value is not None for entry in ENTRIES) > 10


@pytest.mark.parametrize(
    ("part", "change", "complaint"),
    [
        ("Eq. 8", {"symbols": "cad.train.losses:no_such"}, "there is no cad.train.losses:no_such"),
        ("Eq. 8", {"symbols": "cad.train.losses:density_roughness"}, "density_roughness does not name it"),
        ("Eq. 7", {"symbols": "cad.train.losses:generator_loss"}, "generator_loss does not name it"),
        ("App. A", {"state": "implemented", "symbols": "cad.camera:rays"}, "cad.camera:rays does not name it"),
        ("Eq. 4", {"parameters": "generator.planes"}, "profile mini has no generator.planes"),
        ("Eq. 4", {"stages": "stage3"}, "no stage stage3"),
        ("Eq. 4", {"symbols": ""}, "is 'implemented', which"),
        ("Eq. 4", {"symbols": "", "parameters": "", "state": NOT_YET}, "Generator.planes names it"),
        ("Fig. 8", {"symbols": "cad.stages"}, "is 'not yet', which"),
        ("Fig. 8", {"state": "nearly"}, "is 'nearly', which"),
    ],
)
def test_a_wrong_row_is_named(part: str, change: dict[str, str], complaint: str) -> None:
    changed = next(entry for entry in ENTRIES if entry.part == part)
    entries = MAP["Sections"] if changed in MAP["Sections"] else MAP["Equations"]
    wrong = replace(changed, **change)
    lines = faults_with(changed, wrong, entries)
    assert any(complaint in line for line in lines), lines


def faults_with(old: Entry, new: Entry, group: list[Entry]) -> list[str]:
    """Faults of the map with one row exchanged, in its group too if it is of that group."""
    place = group.index(old) if old in group else None
    if place is not None:
        group[place] = new
    try:
        return faults(ROOT, [new if entry == old else entry for entry in ENTRIES])
    finally:
        if place is not None:
            group[place] = old


def test_another_number_than_the_paper_s_is_named() -> None:
    old = next(entry for entry in ENTRIES if entry.parameters == "camera.radius")
    lines = faults(ROOT, [replace(old, value=2.5) if entry is old else entry for entry in ENTRIES])
    assert any("camera.radius is 2.0 in the profile paper, not 2.5" in line for line in lines)


def test_a_part_without_a_row_is_named() -> None:
    assert faults(ROOT, [entry for entry in ENTRIES if entry.part != "Fig. 9"]) == ["Fig. 9: has no row"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Eq. 7 (loss, then R1), Eq. 8, density", {"Eq. 7", "Eq. 8"}),
        ("Eq. 7 and 8 as printed", {"Eq. 7", "Eq. 8"}),
        ("shown (Sec. 3.2 and 4, FACTS 2)", {"Sec. 3.2", "Sec. 4"}),
        ("the objectives of Section 3.2", {"Sec. 3.2"}),
        ("(Appendix C), like Fig. 12", {"App. C", "Fig. 12"}),
        ("Sec. 3.1's AdaIN; Table 1's protocol", {"Sec. 3.1", "Table 1"}),
        ("Eq. 110, FACTS section 4, Appendix Creature", set()),
    ],
)
def test_references_are_read_as_written(text: str, parts: set[str]) -> None:
    assert references(text) == parts


def test_symbols_are_found_without_importing_them() -> None:
    found = docstrings(ROOT)
    assert found["cad.train.losses:generator_loss"].startswith("Eq. 8")
    assert "cad.models.generator:Generator.planes" in found
    assert "cad.report.paper:TABLE1" in found
