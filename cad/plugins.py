"""Plug-ins: a class of the user's own, named `module:Name` in the settings, found, digested, made and checked.

Its module lies in `plugins/` beside params.yaml, where DVC watches it, or on PYTHONPATH, where DVC does not.
docs/extending.md tells what a plug-in of each kind has to do.
"""

import ast
import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cad.artifacts import digest, write_json
from cad.errors import UserError

if TYPE_CHECKING:
    from cad.config import Params

FOLDER = Path("plugins")
RECORD = Path("plugins.json")
PAGE = "see docs/extending.md"
Chosen = tuple[str, dict[str, Any]]  # a plug-in's `module:Name`, and its settings


def make(kind: str, where: str, protocol: type, **arguments: Any) -> Any:
    """The plug-in's object: what `Name` of its module gives for these arguments, checked against the protocol.

    `where` is the setting that names it. Raises UserError for a module that is missing or cannot be imported, a missing
    name, and another signature or other members than the protocol's; what the plug-in itself raises goes through.
    """
    name = kind.partition(":")[2]
    maker = getattr(_import(kind, where), name, None)
    said = f"{where}: {kind}"
    if not callable(maker):
        raise UserError(f"{said}: its module has no class or function {name}; correct the name, or define it")
    _check_call(maker, said, (), arguments)
    made = maker(**arguments)
    for member, function in _members(protocol):
        if not hasattr(made, member):
            raise UserError(f"{said}: has no `{member}`, which a {protocol.__name__} needs; {PAGE}")
        if function is not None:
            wanted = list(inspect.signature(function).parameters)[1:]  # without self
            _check_call(getattr(made, member), f"{said}.{member}", wanted, {})
    return made


def check_shape(images: Any, wanted: tuple[int, ...], kind: str) -> None:
    """UserError where a model or refiner gave images of another shape than it was asked for."""
    found = tuple(getattr(images, "shape", ()))
    if found != wanted:
        raise UserError(f"{kind}: gave images of shape {list(found)}, not {list(wanted)}; correct what it returns")


def identities(chosen: Iterable[Chosen]) -> list[dict[str, str]]:
    """What plug-ins compute with, by digests: their modules, and the files and folders/ that their settings name."""
    found = []
    for kind, settings in chosen:
        paths = sorted({text for text in _texts(settings) if _is_path(text)})
        found.append({"kind": kind, "code": code_digest(kind, kind), **{path: digest(Path(path)) for path in paths}})
    return found


def code_digest(kind: str, where: str) -> str:
    """SHA-256 of the names and contents of a plug-in's files."""
    checksum = hashlib.sha256()
    for file in code_files(kind, where):
        content = file.read_bytes()
        checksum.update(f"{file.name} {len(content)}\n".encode() + content)
    return checksum.hexdigest()


def code_files(kind: str, where: str) -> list[Path]:
    """A plug-in's files: its module, or all of its package, and what these import of the folder that it lies in."""
    module = kind.partition(":")[0]
    spec = _find(module, where)
    first = Path(str(_find(module.partition(".")[0], where).origin))
    root = first.parents[1] if first.name == "__init__.py" else first.parent
    waiting, found = [Path(str(spec.origin)), first], set()
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        if file.name == "__init__.py":
            waiting += file.parent.rglob("*.py")
        for name in _imports(file):
            beside = (root / f"{name}.py", root / name / "__init__.py")
            waiting += [path for path in beside if path.is_file()]
    return sorted(found)


def record(params: "Params") -> dict[str, dict[str, str | None]]:
    """One digest for each entry of a stage that can take plug-ins, of all that its plug-ins compute with; else null."""
    from cad.config import TABLES

    found: dict[str, dict[str, str | None]] = {}
    for stage, (table, _) in TABLES.items():
        if not hasattr(type(getattr(params, stage)), "plugins"):
            continue
        found[stage] = {}
        for entry in getattr(params, table):
            known = identities(params.resolve(stage, entry)[0].plugins)
            text = "\n".join(f"{key} {value}" for each in known for key, value in each.items())
            found[stage][entry] = hashlib.sha256(text.encode()).hexdigest() if known else None
    return found


def write_record(params: "Params", path: Path) -> None:
    """Write `record` for DVC, whose stages depend on their entry of it; UserError for a plug-in that is missing."""
    write_json(path, record(params))


def _import(kind: str, where: str) -> Any:
    module = kind.partition(":")[0]
    file = Path(str(_find(module, where).origin))
    folder = str(FOLDER.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        imported = importlib.import_module(module)
    except (ImportError, SyntaxError) as fault:
        text = " ".join(f"{type(fault).__name__}: {fault}".split())
        raise UserError(f"{where}: {file}: cannot be imported ({text}); correct it") from fault
    if Path(str(imported.__file__)).resolve() != file.resolve():
        raise UserError(f"{where}: {file}: {imported.__file__} has the same name; give the module another one")
    return imported


def _find(module: str, where: str) -> ModuleSpec:
    """Where a module lies, found without importing anything of it."""
    importlib.invalidate_caches()
    places: Sequence[str] | None = [str(FOLDER.resolve()), *sys.path]
    parts, spec = module.split("."), None
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), places) if places is not None else None
        if spec is None:
            break
        places = spec.submodule_search_locations
    if spec is None or not spec.origin:
        raise UserError(f"{where}: there is no module {module}; put {parts[0]}.py into {FOLDER}/ or on PYTHONPATH")
    return spec


def _check_call(function: Any, said: str, positional: Iterable[str], named: Mapping[str, Any]) -> None:
    wanted = ", ".join([*positional, *named])
    try:
        inspect.signature(function).bind(*positional, **named)
    except (TypeError, ValueError) as fault:
        raise UserError(f"{said}: does not take ({wanted}): {fault}; {PAGE}") from None


def _members(protocol: type) -> Iterator[tuple[str, Any]]:
    """What a protocol asks for: names of attributes, and of methods with their functions."""
    yield from ((name, None) for name in inspect.get_annotations(protocol))
    yield from ((name, each) for name, each in vars(protocol).items() if name[0] != "_" and inspect.isfunction(each))


def _imports(file: Path) -> set[str]:
    """First names of the modules that a file imports; none of one that cannot be parsed, which its import will tell."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
    return found


def _is_path(text: str) -> bool:
    """Whether a text names a file, or with a slash at its end a folder; a word may happen to be a folder's name."""
    path = Path(text)
    try:
        return path.is_file() or (text.endswith("/") and path.name not in ("", "..") and path.is_dir())
    except OSError:  # too long for a name, for instance
        return False


def _texts(value: Any) -> Iterator[str]:
    """All texts in a plug-in's settings."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
