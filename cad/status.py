"""How far every stage of every entry is, read from the files that stages leave; imports no torch and changes nothing.

"done" says that a stage's folder is there and whole, and that `dvc.lock` knows it by the present settings; whether
code or the user's files have changed since is for `dvc status` to say.
"""

import math
import os
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cad.artifacts import read_json
from cad.artifacts.workspace import WORK
from cad.config import TABLES, Params
from cad.errors import UserError
from cad.outdated import LOCK, read_lock, why_outdated
from cad.progress import duration
from cad.stages import LINEAGE, run_folder
from cad.unfinished import DAMAGE, Work, entries, mtime, one_line, work_folders, work_of

DONE, RUNNING, INTERRUPTED, FAILED, OUTDATED = "done", "running", "interrupted", "failed", "outdated"
MISSING, BROKEN = "missing", "broken"
COLORS = {DONE: "green", RUNNING: "cyan", INTERRUPTED: "yellow", FAILED: "red", OUTDATED: "yellow"}
COLORS |= {MISSING: "dim", BROKEN: "red"}
IN_WORK = {RUNNING, INTERRUPTED, FAILED}  # states that are read from `.work`
PREVIEWS = ("preview.png", "contact.png", "image.png")  # what a stage writes for the eye, directly in its folder
IN_GIT = "metrics.json"  # Git keeps it, so a fresh clone has it without the rest of its folder
ORBIT_BRANCHES = 2


@dataclass(frozen=True)
class Progress:
    """Units done and in all; `fresh` of them were made by the present process, the last at `last` [s since 1970]."""

    done: float
    total: float
    unit: str
    fresh: float | None = None
    last: float = 0.0

    def seconds_left(self, since: float, now: float) -> float | None:
        """Estimate from the mean speed of the process that started at `since`; None before its first unit."""
        if not self.fresh or self.last <= since:
            return None
        return max(0.0, (self.total - self.done) * (self.last - since) / self.fresh - (now - self.last))


@dataclass(frozen=True)
class Row:
    """One stage of one entry."""

    subject: str  # the object's name
    entry: str
    stage: str
    state: str
    progress: Progress | None
    seconds_left: float | None
    preview: Path | None
    fault: str  # why it failed, is broken or outdated, or what in it cannot be read; "" if outdated like its upstream


def survey(params: Params) -> tuple[list[Row], list[Path]]:
    """All stages of all entries, by object, entry and data flow; and work folders that belong to none of them."""
    keys = [(params.object_of(s, e), e, s) for s, (table, _) in TABLES.items() for e in getattr(params, table)]
    order = list(params.objects)
    keys.sort(key=lambda key: (order.index(key[0]), key[1] != key[0], key[1], list(TABLES).index(key[2])))
    works = sorted(work_folders(WORK), key=lambda work: (work.held, work.since))
    owned = {run_folder(stage, entry): work_of(params, stage, entry, works) for _, entry, stage in keys}
    rows = [_row(params, *key, owned[run_folder(key[2], key[1])]) for key in keys]
    used = {work.folder for row in rows if row.state in IN_WORK and (work := owned[run_folder(row.stage, row.entry)])}
    others = sorted(work.folder for work in works if work.folder not in used and work.folder.is_dir())
    return _compared(params, rows, read_lock(LOCK)), others


def _compared(params: Params, rows: list[Row], lock: dict[str, Any]) -> list[Row]:
    """The rows, where what is done is outdated if its settings have changed or its upstream is being or must be redone.

    What lies below a missing stage stays done: its folder may have come alone, by `dvc pull`.
    """
    found = {(row.stage, row.entry): row for row in rows}
    for stage in TABLES:  # upstream first
        for key in [key for key in found if key[0] == stage and found[key].state == DONE]:
            link, upstream = TABLES[stage][1], params.resolve(*key)[1]
            above = found.get((link, upstream))
            if fault := why_outdated(params, *key, lock):
                found[key] = replace(found[key], state=OUTDATED, fault=fault)
            elif above is not None and above.state in {OUTDATED, *IN_WORK}:
                found[key] = replace(found[key], state=OUTDATED)
    return [found[row.stage, row.entry] for row in rows]


def show_status(params: Params, console: Console) -> None:
    """Print the survey as a table, then what is wrong, each entry's newest preview, and what belongs to nothing."""
    rows, others = survey(params)
    grid = Table("object", "entry", "stage", "state", "progress", "left (estimate)", box=SIMPLE_HEAD)
    for above, row in zip([None, *rows], rows, strict=False):
        new = above is None or above.entry != row.entry
        if new and above is not None:
            grid.add_section()
        done = f"{row.progress.done:g} of {row.progress.total:g} {row.progress.unit}" if row.progress else ""
        left = duration(row.seconds_left) if row.seconds_left is not None else ""
        names = [Text(row.subject), Text(row.entry)] if new else ["", ""]
        grid.add_row(*names, row.stage, Text(row.state, COLORS[row.state]), done, left)
    console.print(grid)
    lines = []
    for row in rows:
        if row.fault and row.state in (FAILED, OUTDATED):
            lines.append(f"{row.state}: {row.entry} {row.stage}: {row.fault}")
        elif row.fault:
            lines.append(f"broken: {row.fault}")
    for entry in dict.fromkeys(row.entry for row in rows):
        if previews := [row.preview for row in rows if row.entry == entry and row.preview]:
            lines.append(f"newest preview of {entry}: {max(previews, key=mtime)}")
    if others:
        lines.append(f"of other settings, removed by `make clean`: {', '.join(map(str, others))}")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _row(params: Params, subject: str, entry: str, stage: str, work: Work | None) -> Row:
    folder, fault = run_folder(stage, entry), ""
    state = MISSING
    if set(path.name for path in entries(folder)) - {IN_GIT}:
        state = DONE
        try:
            if read_json(folder / LINEAGE, "schema", "inputs", "stage")["stage"] != stage:
                raise UserError(f"{folder / LINEAGE}: is of another stage; run the stage again")
        except DAMAGE as error:
            state, fault = BROKEN, one_line(error)
    if work is not None and (work.held or state != DONE or work.since > mtime(folder / LINEAGE)):
        state, folder = RUNNING if work.held else FAILED if work.error else INTERRUPTED, work.folder
        fault = work.error if state == FAILED else ""
    progress = left = None
    if state != MISSING:
        try:
            progress = _progress(params, entry, stage, folder, state, work.since if work else 0.0)
        except DAMAGE as error:
            state, fault = BROKEN if state == DONE else state, fault or one_line(error)
    if progress and work and state == RUNNING:
        left = progress.seconds_left(work.since, time.time())
    return Row(subject, entry, stage, state, progress, left, _newest([folder, run_folder(stage, entry)]), fault)


def _newest(folders: Iterable[Path]) -> Path | None:
    paths = [path for folder in folders for name in PREVIEWS if (path := folder / name).is_file()]
    return max(paths, key=mtime, default=None)


def _progress(params: Params, entry: str, stage: str, folder: Path, state: str, since: float) -> Progress | None:
    """What the files in a stage's folder tell; None where they tell nothing. Raises one of DAMAGE."""
    settings, _ = params.resolve(stage, entry)
    match stage:
        case "prior" | "refine":
            return _shards(folder, state == DONE, since)
        case "stage1" | "stage2":
            total = math.ceil(settings.kimg * 1000 / settings.batch) * settings.batch / 1000
            return _images(folder, total, since)
        case "orbit":
            written = list(folder.glob("*/seed-*/depth-*.png"))
            return _files(written, ORBIT_BRANCHES * settings.seeds * settings.frames, "frames", since)
    return None


def _shards(folder: Path, finished: bool, since: float) -> Progress | None:
    """A prior cache's shards (see `cad.artifacts.cache`)."""
    if finished:
        names = read_json(folder / "cache.json", "shards")["shards"]
        return Progress(len(names), len(names), "shards")
    path = folder / "cache.partial.json"
    if not path.exists():
        return None
    content = read_json(path, "layout", "shards")
    _, _, shard_poses, pose_ids, *_ = content["layout"]
    total = -(-len(pose_ids) // shard_poses)
    return _files([folder / name for name in content["shards"]], total, "shards", since)


def _images(folder: Path, total: float, since: float) -> Progress | None:
    """A training's images at its last checkpoint, in thousands."""
    path = folder / "state.json"
    if not path.exists():
        return None
    done = float(read_json(path, "images")["images"]) / 1000
    # What a resumed process has made itself is unknown: the checkpoint it started from has been replaced.
    started_here = (born := _birth(folder)) is not None and born > since - 1
    return Progress(done, total, "kimg", done if started_here else None, mtime(path))


def _files(paths: list[Path], total: int, unit: str, since: float) -> Progress:
    times = [mtime(path) for path in paths]
    return Progress(len(paths), total, unit, sum(each > since for each in times), max(times, default=0.0))


def _birth(path: Path) -> float | None:
    """When a folder was made [s since 1970]; None where the file system does not record it."""
    if (born := getattr(os.stat(path), "st_birthtime", None)) is not None:
        return float(born)
    try:  # Python 3.11 has no statx
        text = subprocess.run(["stat", "-c", "%W", str(path)], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return float(text) if text.strip().isdigit() and int(text) > 0 else None
