"""The software: the versions of what the project stands on, and what of it is missing."""

import contextlib
import importlib
import importlib.metadata
import platform
import re
import sys

from cad.code import PACKAGE
from cad.doctor.findings import BROKEN, MISSING, UNKNOWN, Finding, first_line, ok

VERSIONS = "versions"
SHOWN = ("torch", "diffusers", "transformers", "open_clip_torch", "lpips", "wandb", "dvc", "numpy")
# Packages whose compiled parts must suit each other; a mismatch shows when they are imported, and takes others along.
IMPORTED = ("torch", "torchvision")
OLDEST = (3, 11)
REMEDY = "run `make install`, and work in its environment: `source .venv/bin/activate`"


def examine_software() -> list[Finding]:
    """Python, this package with its commit, the packages worth naming, and every other dependency that is missing."""
    found = [python(), own_version()]
    for name in [*SHOWN, *(name for name in dependencies() if name not in SHOWN)]:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(VERSIONS, name, MISSING, "not installed", REMEDY, True))
            continue
        fault = import_fault(name) if name in IMPORTED else ""
        if fault:
            found.append(Finding(VERSIONS, name, BROKEN, f"{version}, cannot be imported ({fault})", REMEDY, True))
        elif name in SHOWN:
            built = getattr(sys.modules.get(name), "__version__", version)  # torch's own names what it was built for
            found.append(ok(VERSIONS, name, str(built)))
    return found


def python() -> Finding:
    """The interpreter's version and place."""
    says = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Finding(VERSIONS, "python", BROKEN, says, f"use Python {oldest} or newer", True)
    return ok(VERSIONS, "python", says)


def own_version() -> Finding:
    """Version and Git commit of this package; "+" says that tracked files differ from the commit."""
    from cad.tracking import git_commit

    with contextlib.chdir(PACKAGE):
        commit = git_commit()
    where = f"commit {commit[:12]}{'+' * commit.endswith('+')}" if commit else "no Git commit"
    try:
        version = importlib.metadata.version(PACKAGE.name)
    except importlib.metadata.PackageNotFoundError:
        says = f"not installed, run from {PACKAGE.parent}, {where}"
        return Finding(VERSIONS, PACKAGE.name, UNKNOWN, says, "", False)
    return ok(VERSIONS, PACKAGE.name, f"{version}, {where}")


def dependencies() -> list[str]:
    """Names of what this package needs; none where it is not installed."""
    try:
        stated = importlib.metadata.requires(PACKAGE.name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in stated if "extra ==" not in line]


def import_fault(name: str) -> str:
    """Why a package cannot be imported; "" if it can."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # what a compiled part of another version ends in
        return first_line(error)
    return ""
