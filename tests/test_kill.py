"""SIGKILLs at seeded places across the stages of the smoke profile: each resumed stage ends with the same bits.

One clone has run undisturbed. In the other, kill by kill, a stage's output is removed (as DVC removes it), the stage is
started, killed with its whole process group (`benchmarks/kills.py` says how), and run to its end; its folder must then
be the undisturbed clone's. Twenty kills, half of them inside a write; `CAD_KILLS` makes another number. `pytest -rP`
shows where each one struck.
"""

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import kills
import pytest
import yaml

from cad.artifacts import digest
from cad.stages import STAGES

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("CAD_KILLS", "20"))
ENTRY = "robot"
# About this share of a smoke stage's time in the clones, which ran side by side, is its own work when it runs alone;
# the rest is DVC's and the imports'. A kill that comes too late for that costs a run of the stage.
WORKING = 0.35


def command(stage: str) -> tuple[str, ...]:
    """A stage's command, as dvc.yaml has it."""
    text = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["do"]["cmd"]
    return tuple(shlex.split(text.replace("${key}", ENTRY)))


def test_the_plan_is_half_writes_meets_every_stage_and_is_the_seed_s() -> None:
    aims = kills.plan(20, random.Random(0))
    moments = [aim for aim in aims if aim.how == kills.MOMENT]
    assert (len(aims), len(moments)) == (20, 10)
    assert {aim.stage for aim in moments} == set(kills.STAGES) == set(STAGES)
    assert Counter(aim.stage for aim in aims if aim.how != kills.MOMENT) == {
        "stage1": 3, "prior": 3, "stage2": 2, "refine": 2
    }  # fmt: skip
    assert {aim.how for aim in aims} == {kills.INSIDE, kills.RENAME, kills.MOMENT}
    assert aims == kills.plan(20, random.Random(0)) != kills.plan(20, random.Random(1))


SIZE = 100_000
PROGRAM = """#!{python}
import time
from pathlib import Path
from cad.artifacts.files import write_atomic
from cad.artifacts.workspace import workspace
with workspace(Path("runs/robot/stage1"), {{"stage": "stage1"}}) as work:
    for step in b"abc":
        write_atomic(work / "model.safetensors", bytes([step]) * {size})
        time.sleep(0.1)
time.sleep({rest})
"""


def program(folder: Path, rest: float) -> tuple[str, ...]:
    """A command called `cad` that writes three files as checkpoints are written, and then rests [s]."""
    (folder / "bin").mkdir()
    path = folder / "bin/cad"
    path.write_text(PROGRAM.format(python=sys.executable, size=SIZE, rest=rest))
    path.chmod(0o755)
    return (str(path),)


@pytest.mark.parametrize("how", ["INSIDE", "RENAME"])
def test_a_kill_inside_a_write_strikes_there(tmp_path: Path, how: str) -> None:
    aim = kills.Aim("stage1", getattr(kills, how), 0.0)
    assert kills.kill(tmp_path, program(tmp_path, 0), aim, 1.0) is not None
    (work,) = kills.works(tmp_path)
    (partial,) = kills.partial_names(tmp_path)
    assert re.fullmatch(r"model\.safetensors.*\.tmp", partial)
    assert (work / partial).stat().st_size == (SIZE // 2 if how == "INSIDE" else SIZE)
    subprocess.run([tmp_path / "bin/cad"], cwd=tmp_path, check=True)
    assert (tmp_path / "runs/robot/stage1/model.safetensors").read_bytes() == b"c" * SIZE
    assert not (tmp_path / ".work").exists()


def test_a_kill_at_a_moment_strikes_and_one_that_comes_too_late_says_so(tmp_path: Path) -> None:
    run = program(tmp_path, 20)
    assert kills.kill(tmp_path, run, kills.Aim("stage1", kills.MOMENT, 0.5), 0.2) is not None
    (tmp_path / "bin/cad").write_text((tmp_path / "bin/cad").read_text().replace("sleep(20)", "sleep(0)"))
    assert kills.kill(tmp_path, run, kills.Aim("stage1", kills.MOMENT, 1.0), 60.0) is None
    (tmp_path / "bin/cad").write_text(f"#!{sys.executable}\nraise SystemExit('bad')")
    with pytest.raises(RuntimeError, match="bad"):
        kills.kill(tmp_path, run, kills.Aim("stage1", kills.MOMENT, 1.0), 60.0)


def test_several_kills_of_one_stage_share_its_time_and_its_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, finished = [], []
    monkeypatch.setattr(kills, "kill_until_struck", lambda *args: killed.append(args) or "between writes")
    monkeypatch.setattr(kills, "call", lambda folder, *command: finished.append(command[-1]))
    names = ["prior@robot", "prior@car", "stage1@robot"]
    aims = [kills.Aim("prior", kills.MOMENT, 0.6)] * 3 + [kills.Aim("stage1", kills.INSIDE, 0.6)]
    seconds = {"prior@robot": 10.0, "prior@car": 20.0, "stage1@robot": 30.0}
    struck = list(kills.disturbed(tmp_path, names, aims, seconds))
    assert finished == names
    assert [aim.stage for aim, _ in struck] == ["prior@robot"] * 2 + ["prior@car", "stage1@robot"]
    assert [(args[1][-1], args[2].share, args[3]) for args in killed] == [
        *[("prior@robot", 0.3, 10.0)] * 2,
        ("prior@car", 0.6, 20.0),
        ("stage1@robot", 0.6, 30.0),
    ]


def test_the_table_counts_and_names_what_differs() -> None:
    struck = [
        (kills.Aim("prior@robot", kills.MOMENT, 0.5), "between writes"),
        (kills.Aim("stage1@robot", kills.INSIDE, 0.25), "inside the write of model.safetensors.next.tmp"),
    ]
    table = kills.markdown("mini", struck, ["stage1@robot"])
    assert "2 SIGKILLs in one run of the profile `mini`, 1\nof them inside a write" in table
    assert "differs in stage1@robot" in table
    assert table.count("the same") == table.count("**differ**") == 1
    assert "differ" not in kills.markdown("mini", struck, [])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_stages_resume_to_the_same_bits(clones: tuple[Path, Path]) -> None:
    calm, folder = clones
    digests = {stage: digest(calm / "runs" / ENTRY / stage) for stage in STAGES}
    seconds, struck = kills.seconds_taken(calm), []
    for number, aim in enumerate(kills.plan(KILLS, random.Random(0)), start=1):
        out = folder / "runs" / ENTRY / aim.stage
        shutil.rmtree(out)
        run = command(aim.stage)
        where = kills.kill_until_struck(folder, run, aim, WORKING * seconds[f"{aim.stage}@{ENTRY}"])
        struck.append(where)
        print(f"{number:2d} {aim.stage:8s} aimed at {aim.how:15s} struck {where}")
        # Killed in its very last moments a stage may have moved its folder already: then it must be whole.
        assert not out.exists() or digest(out) == digests[aim.stage], f"kill {number}: {aim.stage} left half a folder"
        kills.call(folder, *run, WANDB_MODE="disabled")
        assert digest(out) == digests[aim.stage], f"kill {number}: {aim.stage} resumed to other bits ({where})"
        assert not kills.works(folder), "work in progress was moved, not left"
    assert sum(where.startswith("inside") for where in struck) >= KILLS // 2
