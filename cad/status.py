"""How far every stage of every entry is, read from the files that stages leave; imports no torch and changes nothing.

"done" says that a stage's folder is there and whole, not that it belongs to the present settings: that is for
`dvc status` to say.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cad.artifacts import digest, read_json
from cad.artifacts.workspace import WORK
from cad.config import TABLES, Params
from cad.errors import UserError
from cad.progress import duration
from cad.stages import LINEAGE, STAGES, _model_digests, _source_digests, run_folder

DONE, RUNNING, INTERRUPTED, MISSING, BROKEN = "done", "running", "interrupted", "missing", "broken"
COLORS = {DONE: "green", RUNNING: "cyan", INTERRUPTED: "yellow", MISSING: "dim", BROKEN: "red"}
PREVIEWS = ("preview.png", "contact.png", "image.png")  # what a stage writes for the eye, directly in its folder
IN_GIT = "metrics.json"  # Git keeps it, so a fresh clone has it without the rest of its folder
ORBIT_BRANCHES = 2
MAX_DIGEST_BYTES = 2**29  # [ours] what is read at most to find out whose a nameless work folder is: a second or two
DAMAGE = (UserError, OSError, TypeError, ValueError, LookupError)  # what reading a damaged file can end in


@dataclass(frozen=True)
class Work:
    """A folder in `.work`: whose it is (None: its lock says nothing), whether a process holds it, and since when."""

    folder: Path
    out: Path | None
    held: bool
    since: float


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
    fault: str  # why it is broken, or what in it cannot be read


def survey(params: Params) -> tuple[list[Row], list[Path]]:
    """All stages of all entries, by object, entry and data flow; and work folders that belong to none of them."""
    keys = [(params.object_of(s, e), e, s) for s, (table, _) in TABLES.items() for e in getattr(params, table)]
    order = list(params.objects)
    keys.sort(key=lambda key: (order.index(key[0]), key[1] != key[0], key[1], list(TABLES).index(key[2])))
    works = work_folders(WORK)
    nameless = {work.folder.name: work for work in works if work.out is None}
    owned: dict[Path, Work] = {}
    for work in sorted(works, key=lambda work: (work.held, work.since)):  # the last one wins: held, else the newest
        if work.out is not None:
            owned[work.out] = work
    for _, entry, stage in keys if nameless else []:
        out = run_folder(stage, entry)
        if out not in owned and (found := nameless.get(work_name(params, stage, entry) or "")):
            owned[out] = found
    rows = [_row(params, *key, owned.get(run_folder(key[2], key[1]))) for key in keys]
    busy = {RUNNING, INTERRUPTED}
    used = {owned[run_folder(row.stage, row.entry)].folder for row in rows if row.state in busy}
    return rows, [work.folder for work in works if work.folder not in used]


def show_status(params: Params, console: Console) -> None:
    """Print the survey as a table, then what is broken, each object's newest preview, and what belongs to nothing."""
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
    lines = [f"broken: {row.fault}" for row in rows if row.fault]
    for subject in dict.fromkeys(row.subject for row in rows):
        if previews := [row.preview for row in rows if row.subject == subject and row.preview]:
            lines.append(f"newest preview of {subject}: {max(previews, key=_mtime)}")
    if others:
        lines.append(f"of other settings, removed by `make clean`: {', '.join(map(str, others))}")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def work_folders(root: Path) -> list[Work]:
    """What `cad.artifacts.workspace` left in `root`: folders with a lock (held or stale), and folders without one."""
    found = []
    for folder in sorted(_entries(root)):
        if not re.fullmatch(r"[0-9a-f]{16}", folder.name) or not folder.is_dir():
            continue
        lock = folder.with_name(folder.name + ".lock")
        held, text = _lock_state(lock)
        name = re.fullmatch(r"process \d+ \(for (.+)\)", text.strip())
        since = _mtime(lock) if held else _mtime(folder)
        found.append(Work(folder, Path(name[1]) if name else None, held, since))
    return found


def _mtime(path: Path) -> float:
    """When a file was written [s since 1970]; 0 if it is gone, for stages go on while they are looked at."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _lock_state(lock: Path) -> tuple[bool, str]:
    """Whether a process holds the lock, and what it wrote into it."""
    try:
        with lock.open() as file:
            text = file.read()
            try:
                # Shared, and given back at once by closing: the kernel is the only one who knows whether it is held.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True, text
            return False, text
    except (OSError, UnicodeDecodeError):
        return False, ""


def _row(params: Params, subject: str, entry: str, stage: str, work: Work | None) -> Row:
    folder, fault = run_folder(stage, entry), ""
    state = MISSING
    if set(path.name for path in _entries(folder)) - {IN_GIT}:
        state = DONE
        try:
            if read_json(folder / LINEAGE, "schema", "inputs", "stage")["stage"] != stage:
                raise UserError(f"{folder / LINEAGE}: is of another stage; run the stage again")
        except DAMAGE as error:
            state, fault = BROKEN, _line(error)
    if work is not None and (work.held or state != DONE or work.since > _mtime(folder / LINEAGE)):
        state, folder = RUNNING if work.held else INTERRUPTED, work.folder
    progress = left = None
    if state != MISSING:
        try:
            progress = _progress(params, entry, stage, folder, state, work.since if work else 0.0)
        except DAMAGE as error:
            state, fault = BROKEN if state == DONE else state, fault or _line(error)
    if progress and work and state == RUNNING:
        left = progress.seconds_left(work.since, time.time())
    return Row(subject, entry, stage, state, progress, left, _newest([folder, run_folder(stage, entry)]), fault)


def _line(error: BaseException) -> str:
    return " ".join(f"{error}".split()) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _newest(folders: Iterable[Path]) -> Path | None:
    paths = [path for folder in folders for name in PREVIEWS if (path := folder / name).is_file()]
    return max(paths, key=_mtime, default=None)


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
    return Progress(done, total, "kimg", done if started_here else None, _mtime(path))


def _files(paths: list[Path], total: int, unit: str, since: float) -> Progress:
    times = [_mtime(path) for path in paths]
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


def work_name(params: Params, stage: str, entry: str) -> str | None:
    """Name in `.work` of what `cad.stages.run_stage` would work in now (tests/test_status.py holds the two together).

    None if an upstream folder is missing or damaged, or if finding out would mean to read more than MAX_DIGEST_BYTES.
    """
    described = STAGES[stage]
    settings, _ = params.resolve(stage, entry)
    above = params.ancestors(stage, entry)
    source = params.objects[above["object"]]
    folders = {upstream: run_folder(upstream, above[upstream]) for upstream in described.reads}
    weights = [Path(getattr(params.models, field)) for field in described.models]
    weights += [Path(scorer.model) for scorer in getattr(settings, "scorers", {}).values()]
    try:
        if sum(map(_size, [*folders.values(), *weights])) > MAX_DIGEST_BYTES:
            return None
        inputs = {upstream: digest(folder) for upstream, folder in folders.items()}
        inputs |= {} if described.reads else _source_digests(source)
        models = _model_digests(described, params, settings)
    except (UserError, OSError):
        return None
    networks = {section: params.resolve(section, entry)[0].model_dump() for section in described.networks}
    identity: dict[str, Any] = {
        "stage": stage,
        "object": above["object"],
        "seed": params.seed,
        "runtime": params.runtime.model_dump(),
        "camera": params.camera.model_dump(),
        "settings": settings.model_dump(),
        "networks": networks,
        "source": source.model_dump() if described.source else None,
        "models": models,
        "inputs": inputs,
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
