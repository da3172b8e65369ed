"""Where a stage works until it is done: `.work/<digest of its identity>/`, resumed after a kill, moved out at last.

DVC deletes a stage's outputs before it runs, so progress cannot lie there; and an identity of its own keeps two
configurations from resuming each other's work.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cad.artifacts.files import PARTIAL, full_disk_named
from cad.errors import UserError

WORK = Path(".work")  # relative to the working directory, the repository's root; Git and DVC ignore it


@contextmanager
def workspace(out: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """A locked folder for one stage, kept when the body fails and moved to `out` when it ends cleanly.

    identity: JSON data that decides the output: stage name, settings, inputs' digests, seed. The same identity finds
    the same folder again. UserError if another process works in it, or if the disk is full.
    """
    out = Path(out)
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    folder = WORK / hashlib.sha256(text.encode()).hexdigest()[:16]
    _restore(out)
    with full_disk_named(folder), _lock(folder, out):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        except BaseException:
            with suppress(OSError):  # a stage that refused its input before it wrote anything leaves nothing
                folder.rmdir()
            raise
        for partial in list(folder.rglob(f"*{PARTIAL}")):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        _move(folder, out)


@contextmanager
def _lock(folder: Path, out: Path) -> Iterator[None]:
    """Hold an exclusive lock on `<folder>.lock`; the kernel frees it however the process ends."""
    path = folder.with_name(folder.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(f"{folder}: {holder} works there already; wait for it to end, or stop it") from None
        # Between our open and our lock the former holder may have removed the file: then lock the new one.
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
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
