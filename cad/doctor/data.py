"""Weights and inputs: is each file of the settings there, and as `data.dvc` records it."""

import configparser
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cad.artifacts.tensors import open_tensors
from cad.config.kinds import is_plugin
from cad.doctor.findings import BROKEN, MISSING, UNKNOWN, Finding, ok
from cad.errors import UserError

if TYPE_CHECKING:
    from cad.config import Params

WEIGHTS, INPUTS = "weights", "inputs"
TRACKED = Path("data.dvc")
PULL = "run `dvc pull data.dvc`"
LISTING = "files/md5"  # where DVC keeps contents by their MD5, in its cache and in a remote


@dataclass(frozen=True)
class Record:
    """What `data.dvc` says: the folder, and the MD5 of each file in it by its relative name.

    `files` is None where neither DVC's cache nor a remote in a folder holds the list.
    """

    folder: Path
    files: Mapping[str, str] | None

    @cached_property
    def states(self) -> dict[Path, str]:
        """MISSING, BROKEN (of another content) or "ok" for every recorded file."""
        return {self.folder / name: _state(self.folder / name, md5) for name, md5 in (self.files or {}).items()}

    def within(self, path: Path) -> dict[Path, str]:
        """The states of a file, or of all files in a folder."""
        return {file: state for file, state in self.states.items() if file == path or path in file.parents}


def read_record() -> Record | None:
    """What `data.dvc` of the current folder says; None if it is missing or unreadable."""
    try:
        (out,) = YAML(typ="safe").load(TRACKED)["outs"]
        folder, checksum = Path(out["path"]), str(out["md5"])
    except (OSError, UnicodeDecodeError, YAMLError, LookupError, TypeError, ValueError):
        return None
    for root in (Path(".dvc/cache"), remote_folder()):
        if root is not None and (path := root / LISTING / checksum[:2] / checksum[2:]).is_file():
            try:
                listed = json.loads(path.read_text(encoding="utf-8"))
                return Record(folder, {str(each["relpath"]): str(each["md5"]) for each in listed})
            except (OSError, ValueError, LookupError, TypeError):
                continue
    return Record(folder, None)


def remote_url() -> str | None:
    """Where the default remote lies, as the configuration says; None without one."""
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
        name = config["core"]["remote"]
        return config[f"'remote \"{name}\"'"]["url"]
    except (configparser.Error, KeyError, UnicodeDecodeError):
        return None


def remote_folder() -> Path | None:
    """The default remote's folder; None where there is no remote, or one beyond this machine."""
    url = remote_url()
    return None if url is None or "://" in url else Path(".dvc") / url


def examine_weights(params: "Params", record: Record | None) -> list[Finding]:
    """Every network of `models` and every scorer of `evaluate`."""
    named = {name: path for name, path in params.models.model_dump().items() if path is not None}
    found = [_weights(f"models.{name}", path, record) for name, path in named.items()]
    for name, scorer in params.evaluate.scorers.items():
        if is_plugin(scorer.kind):
            continue  # `cad plugins` looks for it
        place = scorer.model.removeprefix("local-dir:")
        if scorer.kind == "open_clip" and place == scorer.model and "@" not in place:
            says = f"open_clip {scorer.model} ({scorer.pretrained}): comes from the network at its first use"
            found.append(Finding(WEIGHTS, name, UNKNOWN, says, "", False))
        else:
            found.append(_weights(name, place, record))
    return found


def examine_inputs(params: "Params", record: Record | None) -> list[Finding]:
    """Image and prompt of every object."""
    found = []
    for name, given in params.objects.items():
        absent = [path for path in (given.image, given.prompt) if not Path(path).is_file()]
        if absent:
            recorded = record is not None and any(Path(path) in record.states for path in absent)
            remedy = PULL if recorded else f"write it, or correct objects.{name} in the settings"
            found.append(Finding(INPUTS, name, MISSING, f"{absent[0]} is missing", remedy, True))
        else:
            found.append(ok(INPUTS, name, f"{given.image}, {given.prompt}"))
    return found


def _weights(name: str, place: str, record: Record | None) -> Finding:
    """A local file or folder of weights, or a model id of the Hugging Face hub."""
    path = Path(place)
    recorded = record.within(path) if record else {}
    if not path.exists():
        if not recorded and _is_hub_id(place):
            says = f"{place}: comes from the Hugging Face hub at its first use"
            return Finding(WEIGHTS, name, UNKNOWN, says, "", False)
        remedy = PULL if recorded else f"put the weights there, or correct {name}"
        return Finding(WEIGHTS, name, MISSING, f"{place} is missing", remedy, True)
    for file, state in sorted(recorded.items()):
        if state == MISSING:
            return Finding(WEIGHTS, name, MISSING, f"{file} is missing", PULL, True)
        if state == BROKEN:
            remedy = f"remove {file} and {PULL}; if you trained it anew, run `dvc add data`"
            return Finding(WEIGHTS, name, BROKEN, f"{file} is not what {TRACKED} records", remedy, True)
    tensors = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    if not tensors:
        return Finding(WEIGHTS, name, MISSING, f"{place} holds no safetensors file", f"correct {name}", True)
    for file in tensors:
        try:
            open_tensors(file, "numpy")
        except UserError as error:
            says = str(error).partition(";")[0]
            return Finding(WEIGHTS, name, BROKEN, says, f"remove {file} and get it again", True)
    said = f"as {TRACKED} records" if recorded else "readable; no digest is recorded"
    return ok(WEIGHTS, name, f"{place}, {said}")


def _is_hub_id(place: str) -> bool:
    """Whether a text can be a model id: owner/name, and no folder of that owner's name is here."""
    owner, _, name = place.partition("/")
    return bool(owner and name and "/" not in name and not place.startswith(".") and not Path(owner).exists())


def _state(path: Path, md5: str) -> str:
    if not path.is_file():
        return MISSING
    with path.open("rb") as file:
        return "ok" if hashlib.file_digest(file, _md5).hexdigest() == md5 else BROKEN


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)  # DVC's digest of a file
