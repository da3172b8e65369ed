"""Where a stage works until it is done: `.work/<digest of its identity>/`, resumed after a kill, moved out at last.

DVC deletes a stage's outputs before it runs, so progress cannot lie there; and an identity of its own keeps two
configurations from resuming each other's work. Beside the folder lie its lock (`.lock`, held while a process works
there) and, when the last run ended in an error, what went wrong (`.failed`), which `cad status` shows.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cad.artifacts.files import PARTIAL, full_disk_named, read_json, write_json
from cad.errors import UserError

WORK = Path(".work")  # relative to the working directory, the repository's root; Git and DVC ignore it
FAILED = ".failed"  # suffix of the note of an error, beside the work folder: what is moved out holds no trace of it
LONGEST = 300  # characters of an error that are kept
PATIENCE = 0.2  # seconds for which a held lock is tried again: whoever only looks holds it for a moment


def work_folder(identity: dict[str, Any]) -> Path:
    """Where the work of this identity lies: .work/<16 digits of the SHA-256 of its canonical JSON>."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return WORK / hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def workspace(out: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """A locked folder for one stage, kept when the body fails and moved to `out` when it ends cleanly.

    identity: JSON data that decides the output: stage name, settings, inputs' digests, seed. The same identity finds
    the same folder again. UserError if another process works in it, or if the disk is full.
    """
    out = Path(out)
    folder = work_folder(identity)
    with full_disk_named(folder), _lock(folder, out), _failure_noted(folder, out):
        _restore(out)
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)  # or each kill would leave half a checkpoint more
        try:
            yield folder
        except BaseException:
            with suppress(OSError):  # a stage that refused its input before it wrote anything leaves no folder
                folder.rmdir()
            raise
        _clear(folder)
        _move(folder, out)


def _clear(folder: Path) -> None:
    """Remove what was half-written; a worker that was given up may rename or remove its own at the same moment."""
    for partial in list(folder.rglob(f"*{PARTIAL}")):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


@contextmanager
def _failure_noted(folder: Path, out: Path) -> Iterator[None]:
    """Forget how earlier runs for `out` failed, and leave a note if this one does; an interrupt is no failure."""
    for note in WORK.glob(f"*{FAILED}"):
        with suppress(UserError):  # a damaged note says nothing of whose it is
            if note.stem == folder.name or read_json(note, "out")["out"] == out.as_posix():
                note.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        text = textwrap.shorten(f"{kind}{error}", LONGEST, placeholder=" ...")
        with suppress(UserError, OSError):  # on a full disk the error itself matters more than its note
            write_json(folder.with_name(folder.name + FAILED), {"schema": 1, "out": out.as_posix(), "error": text})
        raise


@contextmanager
def _lock(folder: Path, out: Path) -> Iterator[None]:
    """Hold an exclusive lock on `<folder>.lock`; the kernel frees it however the process ends."""
    path = folder.with_name(folder.name + ".lock")
    tries = 10
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+")
        except FileNotFoundError:  # another process ended just now and removed the empty folder
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            if tries := tries - 1:
                time.sleep(PATIENCE / 10)
                continue
            raise UserError(f"{folder}: {holder} works there already; wait for it to end, or stop it") from None
        # Between our open and our lock the former holder may have removed the file: then lock the new one.
        with suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} (for {out})")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        with suppress(OSError):
            path.parent.rmdir()


def _former(out: Path) -> Path:
    return out.with_name(out.name + ".old")


def _restore(out: Path) -> None:
    """Finish what a kill inside `_move` left: bring the former output back, or remove it where the new one lies."""
    former = _former(out)
    if former.exists():
        if out.exists():
            shutil.rmtree(former)
        else:
            os.replace(former, out)


def _move(folder: Path, out: Path) -> None:
    """Put `folder` in the place of `out` by renames; the former output is removed last."""
    former = _former(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = folder
    if os.stat(folder).st_dev != os.stat(out.parent).st_dev:  # runs/ on another disk: copy first, then rename there
        staged = out.with_name(out.name + PARTIAL)
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(folder, staged)
    if out.is_symlink() or out.is_file():
        out.unlink()
    elif out.exists():
        os.replace(out, former)
    try:
        os.replace(staged, out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # somebody else filled it in between
            raise UserError(f"{out}: appeared while the stage ran; remove it and run the stage again") from None
        raise
    shutil.rmtree(former, ignore_errors=True)
    if staged is not folder:
        shutil.rmtree(folder)
