"""The whole main job at the smoke profile, in a clone of the committed state, as `dvc exp run` composes it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
STAGES = ("input", "prior", "prune", "refine", "stage1", "stage2", "orbit", "evaluate")


def call(folder: Path, *command: str, succeed: bool = True) -> str:
    """Run a command in the clone, with the environment's programs on PATH; returns what it printed."""
    env = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONHASHSEED": "0",
        "WANDB_MODE": "offline",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == succeed, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with its data pulled from the bundled remote, after the smoke profile has run in it."""
    folder = tmp_path_factory.mktemp("smoke") / "clone"
    call(ROOT, "git", "clone", "--quiet", f"file://{ROOT}", str(folder))
    for key, value in (("user.name", "smoke"), ("user.email", "smoke@example.org")):
        call(folder, "git", "config", key, value)
    call(folder, "dvc", "pull", "data.dvc")
    call(folder, "dvc", "exp", "run", "-S", "profile=smoke")
    return folder


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
def test_scores_are_cosines_and_the_true_orbit_is_measured_beside_ours(clone: Path) -> None:
    metrics = json.loads((clone / "runs/robot/evaluate/metrics.json").read_text())
    assert "rows" in json.dumps(metrics)
    assert not list((clone / ".work").glob("*/")), "work in progress was moved, not left"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_second_repro_runs_nothing(clone: Path) -> None:
    start = time.monotonic()
    printed = call(clone, "dvc", "repro")
    assert "up to date" in printed
    assert "Running stage" not in printed
    assert time.monotonic() - start < 20, "5 s on an idle machine; this one may be busy"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_changed_setting_reruns_only_what_lies_below_it(clone: Path) -> None:
    params = clone / "params.yaml"
    composed = params.read_text()
    settings = yaml.safe_load(composed)
    settings["evaluate"]["batch"] += 1
    params.write_text(yaml.safe_dump(settings))
    printed = call(clone, "dvc", "repro", "--dry")
    params.write_text(composed)
    assert "cad evaluate robot" in printed
    assert "cad train stage1" not in printed
    assert "cad orbit" not in printed
