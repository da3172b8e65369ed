"""The stages of dvc.yaml as `dvc repro` runs them, but those that don't wait for each other side by side.

A step of the mini profile's trainings is many small operations: one thread takes a quarter longer than two, so that two
trainings side by side get more done [ours, benchmarks/train_step.py]. DVC runs one stage after the other; it may be
started more than once in a folder, and locks what a stage reads and writes.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from cad.config import TABLES, Params
from cad.errors import UserError

EDGE = re.compile(r'^"(?P<stage>[^"]+)"(?: -> "(?P<below>[^"]+)")?;$')
_lines = threading.Lock()  # a line is printed whole


def graph(dot: str) -> dict[str, set[str]]:
    """The stages that each stage waits for, from what `dvc dag --dot` prints; files under DVC's control are none."""
    needs: dict[str, set[str]] = {}
    for line in dot.splitlines():
        if found := EDGE.match(line.strip()):
            for name in filter(None, found.groups()):
                needs.setdefault(name, set())
            if below := found["below"]:
                needs[below].add(found["stage"])
    stages = {name for name in needs if not name.endswith(".dvc")}
    return {name: needs[name] & stages for name in needs if name in stages}


def side_by_side(params: Params) -> int:
    """How many stages share this machine well: its cores by the threads of each; one where a GPU may be in use."""
    return max(1, len(os.sched_getaffinity(0)) // params.runtime.threads) if params.runtime.device == "cpu" else 1


def stages_of(params: Params, name: str) -> list[str]:
    """DVC's names of the stages of an object: of all its entries in all tables."""
    return [
        f"{stage}@{entry}"
        for stage, (table, _) in TABLES.items()
        for entry in getattr(params, table)
        if params.object_of(stage, entry) == name
    ]


def reproduce(jobs: int, only: Collection[str] | None = None) -> None:
    """Run what has changed, `jobs` stages at a time; if `only` is given, of its stages and of shared ones above them.

    Every line that a stage prints begins with its name. Once a stage has failed no other is begun, and those that run
    end first. Raises UserError that names the stages that failed, or where there is no pipeline or no DVC.
    """
    if shutil.which("dvc") is None:
        raise UserError("dvc: is not found; activate the environment: source .venv/bin/activate")
    shown = subprocess.run(["dvc", "dag", "--dot"], capture_output=True, text=True, check=False)
    if shown.returncode:
        reason = (shown.stderr.strip().splitlines() or ["dvc dag failed"])[0].removeprefix("ERROR: ")
        raise UserError(f"dvc.yaml: {reason}; run this in the repository's folder")
    needs = graph(shown.stdout)
    if only is not None:
        shared = {above for name in only for above in needs.get(name, ()) if "@" not in above}  # of no object's own
        wanted = shared | set(only)
        needs = {name: needs[name] & wanted for name in needs if name in wanted}
    if failed := _run(needs, jobs):
        raise UserError(f"{', '.join(failed)}: failed, see above; `cad repro` goes on where it stopped")


def _run(needs: Mapping[str, set[str]], jobs: int) -> list[str]:
    """Run all stages in an order that the graph allows; returns the names of those that failed."""
    left, done, failed = dict(needs), set[str](), list[str]()
    running: dict[Future[int], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while running or (left and not failed):
            ready = [] if failed else [name for name in left if left[name] <= done]
            for name in ready[: jobs - len(running)]:
                del left[name]
                running[pool.submit(_stage, name)] = name
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(ended)
                if ended.result():
                    failed.append(name)
                else:
                    done.add(name)
    return failed


def _stage(name: str) -> int:
    """Let DVC run one stage, if it has changed; prints its lines, and returns DVC's exit code."""
    command = ["dvc", "--wait-for-lock", "repro", "--quiet", "--single-item", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1) as process:
        assert process.stdout is not None  # it is a pipe
        for line in process.stdout:
            if text := line.rpartition("\r")[2].strip():
                with _lines:
                    print(f"[{name}] {text}", file=sys.stderr, flush=True)
    return process.returncode
