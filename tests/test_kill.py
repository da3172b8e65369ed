"""SIGKILLs at seeded moments, across the stages of the smoke profile: a resumed stage ends with the same bits.

All stages run once undisturbed. Then, kill by kill, a stage's output is removed (as DVC removes it), the stage is
started again, killed with its whole process group, and run to its end; its folder must have the first run's digest.
Every second kill waits for a half-written file (`*.tmp`, `*.next`) of a checkpoint, shard or frame in the stage's work
folder and strikes while it is there; the others strike at a drawn moment of the stage's own work (after the imports).
Which stage is killed how, and the drawn moments, come from a seed; the operating system's timing does not, so a
strike at a file can come too late: it counts as one inside a write only if the file is still there afterwards.

Eight kills are made by default, to stay below five minutes on two idle cores (five to six were measured beside another
run); `CAD_KILLS=20` makes as many as issue 3 asks for. `pytest -rP` shows where each one struck; that at least one met
a half-written file is asserted, that all that aimed at one did is not.
"""

import itertools
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cad.artifacts import digest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
STAGES = ("input", "prior", "prune", "refine", "stage1", "stage2", "orbit", "evaluate")
KILLS = int(os.environ.get("CAD_KILLS", "8"))
# Stages that write on their way, and all stages; in this order the first eight kills meet seven of the eight.
INSIDE_WRITES = ("stage1", "stage2", "prior", "refine", "orbit")
AT_MOMENTS = ("evaluate", "orbit", "prune", "stage1", "input", "stage2", "prior", "refine")
ENTRY = "robot"


@dataclass(frozen=True)
class Project:
    """A folder with the smoke profile's settings and the data, all stages run; digests and seconds of work of each."""

    folder: Path
    digests: dict[str, str]
    seconds: dict[str, float]

    def out(self, stage: str) -> Path:
        return self.folder / "runs" / ENTRY / stage


def start(folder: Path, stage: str) -> subprocess.Popen[bytes]:
    """Start a stage's command, as dvc.yaml has it, in a process group of its own; its output goes to log.txt."""
    command = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["do"]["cmd"].replace("${key}", ENTRY)
    program, *arguments = shlex.split(command)
    env = os.environ | {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0"}
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [str(BIN / program), *arguments], cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )


def finish(folder: Path, stage: str) -> float:
    """Run a stage to its end; returns the seconds from its first sign in .work/ on."""
    process = start(folder, stage)
    wait_for_work(folder, process)
    begun = time.monotonic()
    assert process.wait() == 0, f"{stage}:\n{(folder / 'log.txt').read_text()}"
    return time.monotonic() - begun


def work(folder: Path) -> list[Path]:
    """The work folders that are there now."""
    return [path for path in (folder / ".work").glob("*") if path.is_dir()]


def wait_for_work(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Return when a work folder appears, or the process has ended."""
    while not work(folder) and process.poll() is None:
        time.sleep(0.005)


def partial_names(folder: Path) -> list[str]:
    """Names of half-written files, checkpoints that are not in their place yet included."""
    found = [name for path in work(folder) for _, _, names in os.walk(path) for name in names]
    return sorted(name for name in found if name.endswith((".tmp", ".next")))


def strike(process: subprocess.Popen[bytes], is_time: Callable[[], bool], pause: float) -> bool:
    """Kill the process group as soon as it is time; False if the process ended by itself before."""
    while not is_time():
        if process.poll() is not None:
            return False
        time.sleep(pause)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return process.wait() == -signal.SIGKILL


def at_write(folder: Path, passed: int) -> Callable[[], bool]:
    """True when a half-written file is there, after letting `passed` others go by."""
    watched = [str(path) for path in work(folder)]  # once, and no Path later: the look has to be quick
    seen: list[list[str]] = [[]]

    def is_time() -> bool:
        found = [name for path in watched for _, _, names in os.walk(path) for name in names]
        partial = [name for name in found if name.endswith((".tmp", ".next"))]
        if partial and partial != seen[-1]:
            seen.append(partial)
        return len(seen) > passed + 1

    return is_time


def at_moment(delay: float) -> Callable[[], bool]:
    """True once `delay` seconds have gone by."""
    due = time.monotonic() + delay
    return lambda: time.monotonic() >= due


def kill(project: Project, stage: str, inside_write: bool, draw: random.Random) -> str:
    """Start a stage and kill it; returns where the kill struck. A stage that ended before is started again."""
    passed, share = draw.choice((0, 1, 2)), draw.uniform(0.02, 0.95)
    for attempt in itertools.count(1):
        assert attempt <= 4, f"{stage} always ended before it could be killed"
        shutil.rmtree(project.out(stage), ignore_errors=True)
        process = start(project.folder, stage)
        wait_for_work(project.folder, process)
        if inside_write and attempt <= 2:  # no pause: a small file is half-written for less than a millisecond
            struck = strike(process, at_write(project.folder, passed // attempt), pause=0.0)
        else:
            struck = strike(process, at_moment(share / attempt * project.seconds[stage]), pause=0.001)
        if struck:
            break
    names = partial_names(project.folder)
    return f"inside the write of {', '.join(names)}" if names else "between writes"


def plan(count: int) -> Iterator[tuple[str, bool]]:
    """Stage and whether to wait for a write, alternating."""
    pairs = zip(itertools.cycle(INSIDE_WRITES), itertools.cycle(AT_MOMENTS), strict=False)
    both = ((stage, writes) for pair in pairs for stage, writes in zip(pair, (True, False), strict=True))
    return itertools.islice(both, count)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The undisturbed run."""
    folder = tmp_path_factory.mktemp("kill")
    with initialize_config_dir(str(ROOT / "experiments"), version_base=None):
        params = compose("config", overrides=["profile=smoke", "tracking.mode=disabled"])
    (folder / "params.yaml").write_text(yaml.safe_dump(OmegaConf.to_container(params, resolve=True), sort_keys=False))
    (folder / "data").symlink_to(ROOT / "data")
    seconds = {stage: finish(folder, stage) for stage in STAGES}
    digests = {stage: digest(folder / "runs" / ENTRY / stage) for stage in STAGES}
    return Project(folder, digests, seconds)


def test_the_plan_is_half_writes_and_meets_every_stage() -> None:
    kills = list(plan(20))
    assert sum(writes for _, writes in kills) == 10
    assert {stage for stage, _ in kills} == set(STAGES)
    assert len({stage for stage, _ in plan(8)}) == 7


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_stages_resume_to_the_same_bits(project: Project) -> None:
    draw, struck = random.Random(0), []
    for number, (stage, inside_write) in enumerate(plan(KILLS), start=1):
        where = kill(project, stage, inside_write, draw)
        aim = "write" if inside_write else "moment"
        struck.append(where)
        print(f"{number:2d} {stage:8s} aimed at a {aim:6s} struck {where}")
        out = project.out(stage)
        # Killed in its very last moments a stage may have moved its folder already: then it must be whole.
        assert not out.exists() or digest(out) == project.digests[stage], f"kill {number}: {stage} left half a folder"
        finish(project.folder, stage)
        assert digest(out) == project.digests[stage], f"kill {number}: {stage} resumed to other bits ({where})"
        assert not work(project.folder), "work in progress was moved, not left"
    assert KILLS < 2 or any(where.startswith("inside") for where in struck), "no kill met a half-written file"
