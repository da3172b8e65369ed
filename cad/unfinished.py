"""What lies in `.work/`: whose it is, whether a process works there, and whether its last run failed. Changes nothing.

Running is told by the kernel, not by a process id that another process or host may have: a stage holds a lock on a file
for as long as it lives (`cad.artifacts.workspace`).
"""

import fcntl
import re
from dataclasses import dataclass
from pathlib import Path

from cad.artifacts import read_json
from cad.artifacts.workspace import FAILED, work_folder
from cad.config import Params
from cad.errors import UserError
from cad.stages import folders_read, identity, models_read, run_folder

MAX_DIGEST_BYTES = 2**29  # [ours] what is read at most to find out whose a work folder is: a second or two
DAMAGE = (UserError, OSError, TypeError, ValueError, LookupError)  # what reading a damaged file can end in


@dataclass(frozen=True)
class Work:
    """A folder in `.work`: whose it is (None: nothing beside it says so), whether a process holds it, since when.

    `error` is how its last run failed, "" if it did not. A run that failed before it wrote anything left no folder.
    """

    folder: Path
    out: Path | None
    held: bool
    since: float
    error: str


def work_folders(root: Path) -> list[Work]:
    """What `cad.artifacts.workspace` left in `root`: folders with or without a lock and a note, and lone notes."""
    found = []
    for name in sorted({path.name.removesuffix(FAILED) for path in entries(root) if path.suffix in ("", FAILED)}):
        folder, note = root / name, root / (name + FAILED)
        if not re.fullmatch(r"[0-9a-f]{16}", name) or not (folder.is_dir() or note.is_file()):
            continue
        lock = root / f"{name}.lock"
        held, text = _lock_state(lock)
        named = re.fullmatch(r"process \d+ \(for (.+)\)", text.strip())
        out, error = _failure(note)
        since = mtime(lock) if held else max(mtime(folder), mtime(note))
        found.append(Work(folder, Path(named[1]) if named else out, held, since, error))
    return found


def _failure(note: Path) -> tuple[Path | None, str]:
    """Whose last run failed, and how, by the note of it; (None, "") without one."""
    if not note.is_file():
        return None, ""
    try:
        content = read_json(note, "out", "error")
        return Path(content["out"]), str(content["error"]) or "without a message"
    except DAMAGE as error:
        return None, f"an error whose note cannot be read ({one_line(error)})"


def mtime(path: Path) -> float:
    """When a file was written [s since 1970]; 0 if it is gone, for stages go on while they are looked at."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing if it is missing or cannot be read."""
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
            except OSError:  # a file system without locks: nobody can work there at all
                return False, text
            return False, text
    except (OSError, UnicodeDecodeError):
        return False, ""


def work_of(params: Params, stage: str, entry: str, works: list[Work]) -> Work | None:
    """The last of `works` that is this stage's: held, or what its next run goes on with, or else by what is beside it.

    Work of other settings or inputs is not: the next run begins anew.
    """
    out = run_folder(stage, entry)
    mine = [work for work in works if work.out in (None, out)]
    if held := [work for work in mine if work.held and work.out == out]:
        return held[-1]
    if mine and (name := work_name(params, stage, entry)) is not None:
        return next((work for work in mine if work.folder.name == name), None)
    return next((work for work in reversed(mine) if work.out == out), None)


def work_name(params: Params, stage: str, entry: str) -> str | None:
    """Name in `.work` of what `cad.stages.run_stage` would work in now.

    None if an upstream folder is missing or damaged, or if finding out would mean to read more than MAX_DIGEST_BYTES.
    """
    try:
        read = [*folders_read(stage, entry, params).values(), *map(Path, models_read(stage, entry, params))]
        if sum(map(_size, read)) > MAX_DIGEST_BYTES:
            return None
        return work_folder(identity(stage, entry, params)).name
    except (UserError, OSError):
        return None


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def one_line(error: BaseException) -> str:
    """What an error says, with its type if it is not a user's."""
    return " ".join(f"{error}".split()) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
