"""The whole main job at the smoke profile, in clones of the committed state, as `dvc exp run` composes it."""

import json
import time
from pathlib import Path

import kills
import pytest
import yaml

STAGES = ("input", "prior", "prune", "refine", "stage1", "stage2", "orbit", "evaluate")


@pytest.fixture(scope="module")
def clone(clones: tuple[Path, Path]) -> Path:
    """The first clone: what it has run wrote bytecode."""
    return clones[0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_stage_leaves_its_folder_and_the_report_is_written(clone: Path) -> None:
    for stage in STAGES:
        assert (clone / "runs/robot" / stage / "lineage.json").is_file(), stage
    for name in ("table1.md", "table1.csv", "table1.tex", "overview.png", "index.md"):
        assert (clone / "reports" / name).stat().st_size > 0
    table = (clone / "reports/table1.md").read_text()
    assert "82.56" in table, "the paper's own row stands beside ours"
    assert "robot" in table


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_scores_are_cosines_and_truth_and_controls_are_scored_beside_ours(clone: Path) -> None:
    metrics = json.loads((clone / "runs/robot/evaluate/metrics.json").read_text())
    assert metrics["scorers"]
    for scorer in metrics["scorers"].values():
        rows = scorer["rows"]
        assert {"3d", "2d", "truth", "copied", "other", "untrained"} <= set(rows)
        scores = [row[kind] for row in rows.values() for kind in ("image", "text")]
        assert all(abs(score) <= 100 + 1e-3 for score in scores)  # the copied input is 100 up to rounding
        assert rows["copied"]["image"] == pytest.approx(100, abs=1e-3), "the reference against itself"
        assert len(set(scores)) > len(scores) / 2
    assert not list((clone / ".work").glob("*/")), "work in progress was moved, not left"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_fresh_clones_give_the_same_lock_file_to_the_byte(clones: tuple[Path, Path]) -> None:
    first, second = clones
    assert (first / "dvc.lock").read_bytes() == (second / "dvc.lock").read_bytes()
    assert "smoke" in (first / "params.yaml").read_text()
    recorded = (first / "dvc.lock").read_text()
    assert all(f"{stage}@robot:" in recorded for stage in STAGES)
    assert "poses: 16" in recorded, "it is of this run, not the committed one"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_second_repro_runs_nothing_though_bytecode_was_written(clone: Path) -> None:
    folders = {path.parent.parent.relative_to(clone).as_posix() for path in clone.glob("cad/**/__pycache__/*.pyc")}
    assert {"cad", "cad/artifacts", "cad/config", "cad/prior", "cad/train", "cad/models", "cad/evaluate"} <= folders
    start = time.monotonic()
    printed = kills.call(clone, "dvc", "repro", PYTHONDONTWRITEBYTECODE="")
    assert "up to date" in printed
    assert "Running stage" not in printed
    assert time.monotonic() - start < 20, "5 s on an idle machine; this one may be busy"
    assert "up to date" in kills.call(clone, "dvc", "status", PYTHONDONTWRITEBYTECODE="")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_changed_setting_reruns_only_what_lies_below_it(clone: Path) -> None:
    params = clone / "params.yaml"
    composed = params.read_text()
    settings = yaml.safe_load(composed)
    settings["evaluate"]["batch"] += 1
    params.write_text(yaml.safe_dump(settings))
    printed = kills.call(clone, "dvc", "repro", "--dry")
    params.write_text(composed)
    assert "cad evaluate robot" in printed
    assert "cad train stage1" not in printed
    assert "cad orbit" not in printed
