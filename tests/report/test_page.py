import re
import shutil
from types import SimpleNamespace

import pytest

from cad.artifacts import digest
from cad.errors import UserError
from cad.report.page import show_report, write_report


@pytest.fixture
def params():
    """Of the settings, what the report reads: one row, whose stages all have the entry robot."""
    stages = ("input", "prior", "prune", "refine", "stage1", "stage2", "orbit")
    above = {**dict.fromkeys(stages, "robot"), "object": "robot"}
    report = SimpleNamespace(rows={"CAD (mini)": "robot"})
    return SimpleNamespace(
        profile="mini", report=report, ancestors=lambda section, entry: above, object_of=lambda section, entry: "robot"
    )


def test_the_page_has_all_and_says_where_from(run, params, tmp_path):
    reports = tmp_path / "reports"
    write_report(params, run.input.parent.parent, reports)
    assert sorted(path.name for path in reports.iterdir()) == [
        "bars.csv", "bars.md", "index.md", "measures.csv", "measures.md", "overview-robot.png", "overview.png",
        "table1.csv", "table1.md", "table1.tex",
    ]  # fmt: skip
    page = (reports / "index.md").read_text()
    assert (reports / "table1.md").read_text().splitlines()[2] in page
    for name in ("overview.png", "overview-robot.png", "measures.csv", "bars.csv", "table1.tex"):
        assert f"({name})" in page
    assert "What each measure says" in page
    assert "21 of 21 bars met." in page
    assert digest(run.evaluate / "metrics.json")[:16] in page
    assert "kept 18 of 24 poses" in page
    assert "precision/recall of rejections 0.83/—." in page
    assert "25.0% → 5.0% (first sample of all poses → chosen sample of kept poses)" in page
    assert "cannot be compared" in page
    for place in re.findall(r"\]\(([^)]+)\)", page):
        assert (reports / place).is_file(), place
    first = page
    write_report(params, run.input.parent.parent, reports)
    assert (reports / "index.md").read_text() == first


def test_show_prints_the_table_and_the_paths(run, params, tmp_path, capsys):
    write_report(params, run.input.parent.parent, tmp_path)
    show_report(tmp_path)
    said = capsys.readouterr().out
    assert "Table 1" in said
    assert "21 of 21 bars met" in said
    assert "overview.png" in said.replace("\n", "")


def test_show_before_a_report_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cad report all"):
        show_report(tmp_path)


def test_a_missing_run_is_a_user_error(params, tmp_path):
    with pytest.raises(UserError, match=r"metrics.json: missing"):
        write_report(params, tmp_path / "runs", tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_a_broken_run_leaves_no_part_of_a_report(run, params, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(run.input.parent, runs / "robot")
    (runs / "robot/prune/summary.json").write_text("{")  # read last, after table and figure are made
    with pytest.raises(UserError, match=r"summary\.json: not valid JSON"):
        write_report(params, runs, tmp_path / "reports")
    assert not (tmp_path / "reports").exists()
