"""What of this package a stage computes with, as one digest: work in progress of other code is not gone on with.

The files are found as `tests/test_dag.py` finds what `dvc.yaml` must list: by imports, so that nothing is loaded.
"""

import ast
import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent
# What a stage imports and yet does not compute with: how it is named, logged, wired.
CARRIERS = frozenset({"__init__.py", "errors.py", "context.py", "progress.py", "tracking.py"})


def code_files(module: str) -> list[Path]:
    """Files of this package that a module ("cad.train.stage1") computes with, sorted; none for a foreign module.

    Its imports, theirs, and what is not Python beneath the folder of each: sources that are compiled.
    """
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        name, *parts = waiting.pop().split(".")
        base = PACKAGE.joinpath(*parts)
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if name != PACKAGE.name or file in found or not file.is_file():
            continue
        found.add(file)
        if parts:
            waiting.append(".".join([name, *parts[:-1]]))
        if file.relative_to(PACKAGE).as_posix() not in CARRIERS:
            waiting += _imports(file.read_text(encoding="utf-8"))
    used = {file for file in found if file.relative_to(PACKAGE).as_posix() not in CARRIERS}
    folders = {file.parent for file in used} - {PACKAGE}
    compiled = {path for folder in folders for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".cu")}
    return sorted(used | compiled)


def code_digest(module: str) -> str:
    """SHA-256 of names and contents of `code_files`."""
    checksum = hashlib.sha256()
    for file in code_files(module):
        content = file.read_bytes()
        checksum.update(f"{file.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return checksum.hexdigest()


@functools.cache
def _imports(text: str) -> tuple[str, ...]:
    """Modules that a source text imports, now or later; an imported name may be one too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return tuple(name for name in found if name.partition(".")[0] == PACKAGE.name)
