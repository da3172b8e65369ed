import csv
import io
import json
import re

import pytest
from rich.console import Console

from cad.errors import UserError
from cad.report.measures import MEASURES, ROWS, read_measures
from cad.report.measures_forms import definitions, show_measures, why_missing, write_measures
from tests.report.conftest import OWN, metrics

HEADS = [
    "Image score ↑", "Text score ↑", "Azimuth retrieval ↑", "Silhouette IoU ↑", "CLIP-feature KID x 1000 ↓",
    "LPIPS between seeds ↑", "Warp / still ↓", "Warp / still, one depth ↓", "Relative image score ↑",
]  # fmt: skip
ADDED = ("distribution", "diversity", "consistency", "relative_image")


@pytest.fixture
def written(metrics_file, tmp_path):
    """The table's cells by row label and head, the Markdown text and the CSV's records."""
    write_measures({"CAD, robot": metrics_file}, tmp_path)
    text = (tmp_path / "measures.md").read_text()
    heads, _, *lines = [[x.strip() for x in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    heads = [head.split("<br>")[0] for head in heads]
    cells = {line[0]: dict(zip(heads, line, strict=True)) for line in lines}
    with (tmp_path / "measures.csv").open(newline="") as file:
        return cells, text, list(csv.DictReader(file))


def test_rows_and_columns_with_their_better_direction(written):
    cells, _, _ = written
    assert list(cells) == list(ROWS.values())
    assert list(cells["Ours, 3D branch"])[1:] == HEADS


def test_numbers_with_spread_and_what_stands_beside(written):
    cells, text, _ = written
    ours = cells["Ours, 3D branch"]
    assert [ours[head] for head in HEADS] == [
        "75.00 ± 0.42", "24.50 ± 0.10", "95.0% ± 5.0% (min 90.0%)", "0.850 ± 0.010", "40.0", "0.120",
        "0.25 (warp 2.00, still 8.00, 97%)", "0.25 (warp 2.00, still 8.00, 97%)", "0.750",
    ]  # fmt: skip
    assert cells["Reference copied"]["Warp / still ↓"] == "∞ (warp 1.80, still 0.00, 97%)"
    assert cells["True object"]["CLIP-feature KID x 1000 ↓"] == "-0.5"
    assert "refined samples: 0.200" in text


def test_a_dash_has_a_note_that_says_why(written):
    cells, text, _ = written
    (line,) = [line for line in text.splitlines() if line.startswith("—: not measured. ")]
    notes = {each[0]: each[2:] for each in line.partition(". ")[2].rstrip(".").split("; ")}
    said = {
        (row, head): notes[cell[1]] for row, own in cells.items() for head, cell in own.items() if cell.startswith("—")
    }
    assert said["Reference copied", "LPIPS between seeds ↑"].startswith("0 by construction")
    assert said["True object", "Warp / still, one depth ↓"] == "asked of ours only"
    assert said["True object", "LPIPS between seeds ↑"] == "one object, so no seeds to compare"
    assert said["True object", "Relative image score ↑"] == "1 by definition"
    assert said["Another object", "Relative image score ↑"] == "0 by definition"
    assert not any(row.startswith("Ours") for row, _ in said)


def test_every_measure_is_defined_with_a_fake_that_passes(written):
    _, text, _ = written
    for key, measure in MEASURES.items():
        title = "CLIP-feature KID x 1000" if key == "kid" else measure.title
        (line,) = [line for line in text.splitlines() if line.startswith(f"- **{title}**")]
        assert re.search(r"[Ff]akes? that pass(es)?: ", line)
    assert "within 30° of the right azimuth; by chance 17.5%" in text
    assert "10 frame(s) later" in text
    assert "(still below 0.5)" in text
    assert "is 5 points or more above" in text
    assert "no frame of the orbit, KID x 1000: near 0" in text
    assert "{" not in text


def test_the_csv_has_every_cell_and_every_reason(written):
    _, _, records = written
    assert len(records) == len(ROWS) * len(HEADS)
    assert all(bool(record["value"]) != bool(record["note"]) for record in records)
    warp = {each["row"]: each for each in records if each["measure"] == "Warp / still"}
    names = ("value", "warp", "still", "pixels", "share")
    assert [warp["3d"][name] for name in names] == ["0.25", "2.0", "8.0", "900", "0.97"]
    assert [warp["copied"][name] for name in names] == ["inf", "1.8", "0.0", "900", "0.97"]
    (lpips,) = [each for each in records if (each["row"], each["measure"]) == ("3d", "LPIPS between seeds")]
    assert (lpips["by"], lpips["beside"], lpips["what_beside"]) == ("LPIPS (AlexNet)", "0.2", "refined samples")


def read(tmp_path, content):
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    return read_measures({"ours": tmp_path / "metrics.json"})[0]


def test_an_older_metrics_file_says_what_it_lacks(tmp_path):
    content = {key: value for key, value in metrics("ab" * 32, 75.0).items() if key not in ADDED}
    measured = read(tmp_path, content)
    for key in ("kid", "lpips", "warp", "one_depth", "relative"):
        assert "run `cad evaluate` again" in why_missing(measured, (key, ""), "3d")
    write_measures({"ours": tmp_path / "metrics.json"}, tmp_path)
    assert "Warp / still ↓ |" in (tmp_path / "measures.md").read_text()  # the column is missed, not left out


def test_a_photograph_says_that_nothing_is_known_of_the_true_object(tmp_path):
    content = {
        k: v for k, v in metrics("ab" * 32, 75.0).items() if k not in ("truth", "distribution", "relative_image")
    }
    for row in ("truth", "other"):
        del content["scorers"][OWN]["rows"][row]
    measured = read(tmp_path, content)
    for place in ((("azimuth", ""), "3d"), (("image", OWN), "truth"), (("kid", ""), "copied")):
        assert why_missing(measured, *place) == "nothing is known about the true object"
    assert not any("Azimuth" in line for line in definitions([measured]))  # its angle and chance are not known


def test_a_row_that_was_not_evaluated_says_so(tmp_path):
    content = metrics("ab" * 32, 75.0)
    for part in (content["scorers"][OWN], *(content[key] for key in ("truth", "distribution", "consistency"))):
        part["rows"].pop("copied")
    assert "evaluate.controls" in why_missing(read(tmp_path, content), ("kid", OWN), "copied")


def test_a_relative_score_that_is_absent_says_what_to_do(tmp_path):
    content = {**metrics("ab" * 32, 75.0), "relative_image": {}}
    said = why_missing(read(tmp_path, content), ("relative", OWN), "3d")
    assert "too little between the true and another object" in said
    assert "`evaluate.scorers`" in said


def test_unequal_settings_are_defined_apart(tmp_path):
    contents = {"far": metrics("ab" * 32, 75.0), "near [2]": metrics("ab" * 32, 75.0), "old": metrics("ab" * 32, 75.0)}
    contents["near [2]"]["consistency"]["step_frames"] = 3
    del contents["old"]["consistency"]
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    said = definitions(read_measures({name: tmp_path / name for name in contents}))
    far, near = [line for line in said if line.startswith("**Warp / still** ")]
    assert "10 frame(s) later" in far
    assert far.endswith(" (For far.)")
    assert " 3 frame(s) later" in near
    assert near.endswith(r" (For near \[2\].)")
    (azimuth,) = [line for line in said if line.startswith("**Azimuth")]
    assert "(For" not in azimuth


def test_the_kid_s_unit_and_features_are_the_file_s(tmp_path):
    content = metrics("ab" * 32, 75.0)
    content["distribution"] |= {"unit": "KID x 100", "features": "big CLIP"}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    write_measures({"ours": tmp_path / "metrics.json"}, tmp_path)
    assert "| CLIP-feature KID x 100 ↓<br>big CLIP |" in (tmp_path / "measures.md").read_text()


def test_every_scorer_has_its_columns(tmp_path):
    content = metrics("ab" * 32, 75.0)
    content["scorers"]["big"] = content["scorers"][OWN]
    columns = read(tmp_path, content).columns
    assert [column for column in columns if column[0] == "image"] == [("image", OWN), ("image", "big")]


@pytest.mark.parametrize("part", ["truth", *ADDED])
def test_a_part_of_another_form_is_a_user_error(tmp_path, part):
    with pytest.raises(UserError, match=r"metrics.json: is no metrics file of this version .*cad evaluate"):
        read(tmp_path, {**metrics("ab" * 32, 75.0), part: {"rows": [1]}})


def test_the_terminal_shows_all_in_80_columns(metrics_file):
    text = io.StringIO()
    show_measures(read_measures({"[red]ours[/red]": metrics_file}), Console(file=text, width=80))
    for said in ("[red]ours[/red]", "75.00", "± 0.42", "refined samples: 0.200", "CLIP-feature KID", "1 by definition"):
        assert said in text.getvalue()
