"""Weights & Biases and DVC: what records runs, and what makes and keeps their folders."""

import importlib.metadata
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cad.doctor.data import PULL, TRACKED, Record, remote_folder, remote_url
from cad.doctor.findings import BROKEN, MISSING, OK, UNKNOWN, Finding, of_error, ok
from cad.errors import UserError
from cad.outdated import LOCK, read_lock, why_outdated

if TYPE_CHECKING:
    from cad.config import Params

WANDB, DVC = "W&B", "DVC"
LEAST_DISK = 2.0  # GiB that a run of the main job and DVC's copy of it take at most [ours]
SHOWN = 3  # outdated stages that are named


def examine_wandb(params: "Params | None") -> list[Finding]:
    """The mode that stages would use, and offline runs that wait to be uploaded; W&B itself is not started."""
    from cad.tracking import has_key, resolve_mode, unsynced_runs

    key = "an API key is found" if has_key() else "no API key"
    if params is None:
        found = [Finding(WANDB, "mode", UNKNOWN, f"no settings; {key}", "", False)]
    else:
        try:
            mode = resolve_mode(params.tracking)
            asked = params.tracking.mode
            found = [ok(WANDB, "mode", f"{mode}{f' (of {asked})' if asked != mode else ''}; {key}")]
        except UserError as error:
            found = [of_error(WANDB, "mode", BROKEN, error, True)]
    waiting = unsynced_runs()
    says = f"{len(waiting)} offline runs are not uploaded: `wandb sync wandb/offline-run-*`" if waiting else "none"
    return [*found, ok(WANDB, "offline runs", says)]


def examine_dvc(params: "Params | None", record: Record | None) -> list[Finding]:
    """The program, data/, the remote, dvc.lock and the disk."""
    found = [program(), pulled(record), remote(record)]
    if params is not None:
        found.append(lock(params))
    return [*found, disk()]


def program() -> Finding:
    """Whether `dvc` and `cad`, which it starts, are on PATH."""
    try:
        version = importlib.metadata.version("dvc")
    except importlib.metadata.PackageNotFoundError:
        return Finding(DVC, "dvc", MISSING, "not installed", "run `make install`", True)
    place = Path(sys.executable).parent
    for name in ("dvc", "cad"):
        if shutil.which(name) is None:
            beside = f"{place / name} is not on PATH" if (place / name).exists() else "not found"
            remedy = f"put {place} on PATH: `source {place}/activate`" if (place / name).exists() else "`make install`"
            return Finding(DVC, name, MISSING, beside, remedy, True)
    return ok(DVC, "dvc", version)


def pulled(record: Record | None) -> Finding:
    """Whether data/ holds what `data.dvc` records."""
    if record is None:
        says = f"{TRACKED} is missing or unreadable"
        return Finding(DVC, str(TRACKED), MISSING, says, "run in the repository's root", True)
    if record.files is None:
        if record.folder.is_dir():
            says = f"{record.folder} is there; neither DVC's cache nor a local remote lists what it should hold"
            return Finding(DVC, str(TRACKED), UNKNOWN, says, PULL, False)
        return Finding(DVC, str(TRACKED), MISSING, f"{record.folder} is missing", PULL, True)
    absent = [str(path) for path, state in record.states.items() if state == MISSING]
    changed = [str(path) for path, state in record.states.items() if state == BROKEN]
    if absent:
        says = f"{len(absent)} of {len(record.files)} files are missing, first {absent[0]}"
        return Finding(DVC, str(TRACKED), MISSING, says, PULL, True)
    if changed:
        says = f"{len(changed)} of {len(record.files)} files differ, first {changed[0]}"
        remedy = f"remove them and {PULL}, or keep them by `dvc add data`"
        return Finding(DVC, str(TRACKED), BROKEN, says, remedy, False)  # weights that differ say so themselves
    return ok(DVC, str(TRACKED), f"{len(record.files)} files, all as recorded")


def remote(record: Record | None) -> Finding:
    """Whether the default remote, where it is a folder, can be reached; without data/ it is needed."""
    url, folder = remote_url(), remote_folder()
    if url is None:
        return Finding(DVC, "remote", MISSING, "none is configured", "`dvc remote add -d NAME FOLDER`", False)
    if folder is None:
        return Finding(DVC, "remote", UNKNOWN, f"{url}: beyond this machine, not tried", "", False)
    if not folder.is_dir():
        needed = record is not None and not record.folder.is_dir()
        remedy = f"restore that folder (`git checkout -- {folder.resolve().name}`), or correct .dvc/config"
        return Finding(DVC, "remote", MISSING, f"{folder.resolve()}: no such folder", remedy, needed)
    return ok(DVC, "remote", str(folder.resolve()))


def lock(params: "Params") -> Finding:
    """How many stages `dvc.lock` knows by the present settings; a stage without a record has not been run."""
    from cad.config import TABLES

    recorded = read_lock(LOCK)
    stages = [(stage, entry) for stage, (table, _) in TABLES.items() for entry in getattr(params, table)]
    never = [f"{stage}@{entry}" for stage, entry in stages if f"{stage}@{entry}" not in recorded]
    changed = [f"{stage}@{entry}" for stage, entry in stages if why_outdated(params, stage, entry, recorded)]
    parts = [f"{len(stages) - len(never) - len(changed)} of {len(stages)} stages are up to date"]
    for names, what in ((changed, "outdated"), (never, "never run")):
        if names:
            rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            parts.append(f"{len(names)} {what} ({', '.join(names[:SHOWN])}{rest})")
    if not (never or changed):
        return ok(DVC, str(LOCK), parts[0])
    return Finding(DVC, str(LOCK), MISSING, "; ".join(parts), "run `dvc repro`", False)


def disk() -> Finding:
    """Free space where the project lies."""
    free = shutil.disk_usage(".").free / 2**30
    says, enough = f"{free:.1f} GiB free", free >= LEAST_DISK
    remedy = "" if enough else f"free some: a run takes up to {LEAST_DISK:g} GiB"
    return Finding(DVC, "disk", OK if enough else MISSING, says, remedy, not enough)
