"""Does a killed stage end with the same bits? SIGKILLs at seeded places across the stages, half of them inside a write.

A fresh clone makes the main job stage by stage, and each stage is killed as often as the plan says, DVC and all, before
it may end. Then its outputs in dvc.lock must be those of a run that nobody disturbed, at last the whole dvc.lock.
Prints a table and writes it to benchmarks/kills.md; exit code 1 if anything differs, 2 if the undisturbed run is of
another commit.

    python benchmarks/kills.py                         # the undisturbed run first, then 20 kills
    python benchmarks/kills.py --undisturbed FOLDER    # a clone in which `dvc repro` has just run everything

A kill at a moment comes from outside once a drawn share of the stage's time has passed. A kill inside a write comes
from the process itself, at its first checkpoint or shard after such a moment: with half of the file written, or with
all of it written and not yet renamed into its place.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TABLE = Path(__file__).with_suffix(".md")
STAGES = ("input", "prior", "prune", "refine", "stage1", "stage2", "orbit", "evaluate")
WRITERS = ("stage1", "prior", "stage2", "refine")  # what writes checkpoints and shards on its way
INSIDE, RENAME, MOMENT = "half of a file", "before a rename", "a moment"
TRIES = 6  # a stage that ends before it is struck is started again, to be struck sooner

# Python runs a `sitecustomize` at its start; this one waits in `cad` until it is armed, and then for a write to die in.
HOOK = f"""
import os, pathlib, signal, sys

def install(kind, armed):
    write, rename = pathlib.Path.write_bytes, os.replace

    def due(path):
        return ".safetensors" in os.path.basename(path) and os.path.exists(armed)

    def die():
        os.killpg(os.getpgrp(), signal.SIGKILL)
        signal.pause()

    def write_bytes(self, data):
        if kind == {INSIDE!r} and due(self):
            with open(self, "wb") as file:
                file.write(bytes(data)[: len(data) // 2])
            die()
        return write(self, data)

    def replace(source, target, **options):
        if kind == {RENAME!r} and due(source):
            die()
        return rename(source, target, **options)

    pathlib.Path.write_bytes, os.replace = write_bytes, replace

if "CAD_KILL" in os.environ and any(os.path.basename(word) == "cad" for word in sys.orig_argv):
    install(os.environ["CAD_KILL"], os.environ["CAD_KILL_ARMED"])
"""


@dataclass(frozen=True)
class Aim:
    """One planned kill: the stage, how (INSIDE, RENAME or MOMENT), and after which share of the stage's time."""

    stage: str
    how: str
    share: float


def plan(count: int, draw: random.Random) -> list[Aim]:
    """Every second kill inside a write; the moments go around all stages, the writes around those that write."""
    writes = (Aim(stage, draw.choice((INSIDE, RENAME)), draw.uniform(0, 0.6)) for stage in itertools.cycle(WRITERS))
    moments = (Aim(stage, MOMENT, draw.uniform(0.02, 0.95)) for stage in itertools.cycle(reversed(STAGES)))
    return list(itertools.islice(itertools.chain.from_iterable(zip(writes, moments, strict=False)), count))


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """The environment in which a clone runs its own code with this Python's libraries and programs."""
    fixed = {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0", "WANDB_MODE": "offline", "DVC_NO_ANALYTICS": "1"}
    paths = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    return {**os.environ, **fixed, **paths, **extra}


def call(folder: Path, *command: str, **extra: str) -> str:
    """Run a command in the clone and return what it printed; RuntimeError with that text if it fails."""
    env = environment(folder, **extra)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def commit(folder: Path) -> str:
    """The commit that a clone, or the repository, has checked out."""
    return call(folder, "git", "rev-parse", "HEAD").strip()


def clone(folder: Path) -> None:
    """A fresh clone of what is committed, with its data from the bundled remote."""
    call(ROOT, "git", "clone", "--quiet", f"file://{ROOT}", str(folder))
    for key, value in (("user.name", "clone"), ("user.email", "clone@example.org")):
        call(folder, "git", "config", key, value)
    call(folder, "dvc", "pull", "data.dvc")


def seconds_taken(folder: Path) -> dict[str, float]:
    """What each stage of an undisturbed run took, "prior@robot": the time since the one before it was ready."""
    ready = sorted((path.stat().st_mtime, path.parent) for path in folder.glob("runs/*/*/lineage.json"))
    begun = [ready[0][0] - 10, *(when for when, _ in ready)]  # nothing tells when the first began; it is a short one
    return {f"{path.name}@{path.parent.name}": when - then for then, (when, path) in zip(begun, ready, strict=False)}


def works(folder: Path) -> list[Path]:
    """The work folders that are there now."""
    return [path for path in (folder / ".work").glob("*") if path.is_dir()]


def partial_names(folder: Path) -> list[str]:
    """Half-written files, and files of a checkpoint that is not in its place yet."""
    found = (path.name for work in works(folder) for path in work.rglob("*"))
    return sorted(name for name in found if name.endswith((".tmp", ".next")))


def kill(folder: Path, command: tuple[str, ...], aim: Aim, seconds: float) -> str | None:
    """Start a stage's command and kill it with its process group; says where it struck, None if it ended before.

    seconds: what the stage takes undisturbed. A kill aimed inside a write always strikes there, if one is left.
    """
    with tempfile.TemporaryDirectory(prefix="cad-kill-") as name:
        (Path(name) / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
        armed = Path(name) / "armed"
        extra = {} if aim.how == MOMENT else {"CAD_KILL": aim.how, "CAD_KILL_ARMED": str(armed)}
        extra["PYTHONPATH"] = f"{name}{os.pathsep}{folder}"
        env = environment(folder, WANDB_MODE="disabled", **extra)
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
        while not works(folder) and process.poll() is None:  # of a resumed stage it is there: imports count as its time
            time.sleep(0.005)
        due = time.monotonic() + aim.share * seconds
        while time.monotonic() < due and process.poll() is None:
            time.sleep(0.005)
        if aim.how == MOMENT:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        else:
            armed.touch()
        if process.wait() != -signal.SIGKILL:
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)} failed\n{(folder / 'log.txt').read_text()}")
            return None
    names = partial_names(folder)
    return f"inside the write of {', '.join(names)}" if names else "between writes"


def kill_until_struck(folder: Path, command: tuple[str, ...], aim: Aim, seconds: float) -> str:
    """Kill a stage as planned, each time sooner if it ends before; RuntimeError if it cannot be struck."""
    for _ in range(TRIES):
        if where := kill(folder, command, aim, seconds):
            return where
        aim = replace(aim, share=aim.share / 2)
    raise RuntimeError(f"{aim.stage} ended {TRIES} times before it could be killed")


def locked(folder: Path) -> dict[str, Any]:
    """What dvc.lock says of each stage."""
    return dict(YAML(typ="safe").load(folder / "dvc.lock")["stages"])


def disturbed(folder: Path, names: list[str], aims: list[Aim], seconds: dict[str, float]) -> Iterator[tuple[Aim, str]]:
    """Make the stages `names` in the clone, killed as planned; yields each kill, its aim naming the stage's entry.

    Several kills of one stage strike one run of it, each time resumed; entries of a stage take turns.
    """
    turns = {stage: itertools.cycle([name for name in names if name.startswith(f"{stage}@")]) for stage in STAGES}
    aims = [replace(aim, stage=next(turns[aim.stage])) for aim in aims]
    for name in names:
        mine = [aim for aim in aims if aim.stage == name]
        command = ("dvc", "repro", "--single-item", "--force", name)
        for aim in mine:  # what one run has left for each of its kills
            soon = replace(aim, share=aim.share / len(mine))
            yield aim, kill_until_struck(folder, command, soon, seconds[name])
        call(folder, *command)


def markdown(profile: str, struck: list[tuple[Aim, str]], differing: list[str]) -> str:
    """The table: what was killed, how, where, and whether its outputs are those of the undisturbed run."""
    inside = sum(where.startswith("inside") for _, where in struck)
    same = "is that of the undisturbed run" if not differing else f"differs in {', '.join(differing)}"
    head = [
        "# Kills",
        "",
        "Written by `python benchmarks/kills.py`: "
        f"{len(struck)} SIGKILLs in one run of the profile `{profile}`, {inside}",
        f"of them inside a write, each followed by a resume. At the end its `dvc.lock` {same}.",
        "",
        "| | stage | aimed at | after this share of its time | struck | outputs |",
        "|--:|:--|:--|--:|:--|:--|",
    ]
    rows = [
        f"| {i} | {aim.stage} | {aim.how} | {aim.share:.2f} | {where} | "
        f"{'**differ**' if aim.stage in differing else 'the same'} |"
        for i, (aim, where) in enumerate(struck, start=1)
    ]
    return "\n".join(head + rows) + "\n"


def main() -> int:
    """Make the run with kills and compare; 0 if it ends with the same bits."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", default="mini", help="of the undisturbed run that is made without --undisturbed")
    parser.add_argument("--undisturbed", type=Path, help="a clone in which everything has just run")
    parser.add_argument("--table", type=Path, default=TABLE)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cad-kills-") as scratch:
        calm = asked.undisturbed
        if calm is None:
            calm = Path(scratch) / "calm"
            clone(calm)
            call(calm, "dvc", "exp", "run", "-S", f"profile={asked.profile}")
        calm = calm.resolve()
        if (ran := commit(calm)) != (here := commit(ROOT)):
            print(f"error: {calm}: is at {ran[:12]}, and the kills would be of {here[:12]}", file=sys.stderr)
            return 2
        folder = Path(scratch) / "clone"
        clone(folder)
        shutil.copy(calm / "params.yaml", folder)
        profile = YAML(typ="safe").load(folder / "params.yaml")["profile"]
        seconds = seconds_taken(calm)
        names = sorted(seconds, key=lambda name: (STAGES.index(name.partition("@")[0]), name))
        struck = []
        for aim, where in disturbed(folder, names, plan(asked.kills, random.Random(asked.seed)), seconds):
            print(f"{aim.stage}, aimed at {aim.how}: {where}", file=sys.stderr, flush=True)
            struck.append((aim, where))
        call(folder, "dvc", "repro")
        wanted, found = locked(calm), locked(folder)
        differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        differing += ["the order of its stages"] * (not differing and list(wanted) != list(found))
    table = markdown(profile, struck, differing)
    asked.table.write_text(table, encoding="utf-8")
    print(table, end="")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
