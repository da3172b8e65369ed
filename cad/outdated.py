"""Which finished stages belong to other settings or to other upstream folders than the present ones, by `dvc.lock`.

DVC records there what each stage was run with. Only that record is read here, no folder of `runs/`: whether code or the
user's files have changed since is for `dvc status` to say, and of a stage that DVC never ran nothing is known.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cad.config import Params

LOCK = Path("dvc.lock")
PLUGINS = "plugins.json"  # beside the settings: what each entry's plug-ins are (cad.plugins)
SHOWN = 3  # changed settings that are named
ABSENT = "(absent)"


def read_lock(path: Path) -> dict[str, Any]:
    """What `dvc.lock` says of each stage ("prior@robot"); empty where the file is missing or unreadable."""
    try:
        content = YAML(typ="safe").load(path)
    except (OSError, UnicodeDecodeError, YAMLError):
        return {}
    return _mapping(content, "stages") if isinstance(content, dict) else {}


def why_outdated(params: Params, stage: str, entry: str, lock: dict[str, Any]) -> str:
    """What has changed since DVC ran a stage of an entry, in a few words; "" if nothing has or nothing is known."""
    found = lock.get(f"{stage}@{entry}", {})
    settings = params.model_dump()
    changes = []
    for file, recorded in _mapping(found, "params").items():
        now = _read_json(Path(file)) if file == PLUGINS else settings
        changes += [line for path, old in recorded.items() for line in _changes(path, old, _at(now, path))]
    if changes:
        rest = len(changes) - SHOWN
        return ", ".join(changes[:SHOWN]) + (f", and {rest} more" if rest > 0 else "")
    made = {out["path"]: out.get("md5") for each in lock.values() for out in _items(each, "outs")}
    for dependency in _items(found, "deps"):
        path = dependency["path"]
        if path in made and made[path] != dependency.get("md5"):
            return f"{path} has been made again since"
    return ""


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _mapping(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return {k: v for k, v in value.items() if isinstance(v, dict)} if isinstance(value, dict) else {}


def _items(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = content.get(key)
    return [item for item in value if isinstance(item, dict) and "path" in item] if isinstance(value, list) else []


def _at(content: Any, path: str) -> Any:
    """The value at a dotted path."""
    for key in path.split("."):
        content = content.get(key, ABSENT) if isinstance(content, dict) else ABSENT
    return content


def _changes(path: str, old: Any, new: Any) -> Iterator[str]:
    """One phrase for every value that differs, by its full path."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}, key=str):
            yield from _changes(f"{path}.{key}", old.get(key, ABSENT), new.get(key, ABSENT))
    elif old == ABSENT:
        yield f"{path} is new"
    elif new == ABSENT:
        yield f"{path} is gone"
    elif old != new:
        yield f"{path} was {old}, is {new}"
