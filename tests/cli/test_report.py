"""`cad report` on the robot's metrics alone: what it prints, writes and ends with."""

from typing import Any

import pytest

from cad.artifacts import write_json
from tests.report.conftest import metrics


@pytest.fixture
def scored(project: Any) -> Any:
    """The project with a metrics file whose azimuths are wrong."""
    content = metrics("ab" * 32, 75.0)
    content["truth"]["rows"]["3d"]["azimuth_right"] = 0.5
    for name in ("robot", "car"):
        write_json(project / f"runs/{name}/evaluate/metrics.json", {**content, "object": name})
    return project


def test_a_missed_bar_is_printed_and_is_no_error(scored: Any, cad: Any) -> None:
    ended = cad("report", "bars")
    assert (ended.code, ended.err) == (0, [])
    assert any("bars met; missed: Azimuth retrieval, 3D (no)" in line for line in ended.out)
    assert ended.out[-1] == "report: reports/bars.md"
    assert sorted(path.name for path in (scored / "reports").iterdir()) == ["bars.csv", "bars.md"]


def test_measures_are_printed_and_written(scored: Any, cad: Any) -> None:
    ended = cad("report", "measures", "--reports", "elsewhere")
    assert (ended.code, ended.err) == (0, [])
    assert any("KID x 1000 ↓" in line for line in ended.out)
    assert sorted(path.name for path in (scored / "elsewhere").iterdir()) == ["measures.csv", "measures.md"]


@pytest.mark.parametrize("command", ["measures", "bars", "table1"])
def test_without_an_evaluation_nothing_is_written(project: Any, cad: Any, command: str) -> None:
    ended = cad("report", command)
    assert ended.code == 2
    assert len(ended.err) == 1
    assert "evaluate/metrics.json: missing" in ended.err[0]
    assert not (project / "reports").exists()
