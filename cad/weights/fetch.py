"""Fetching published models from the Hugging Face hub, and checking what is here against recorded digests.

What was fetched is recorded in a lock file (commit, and size and SHA-256 of every file), so that another machine
gets the same bytes or an error. The hub's client resumes what was cut off and keeps files in its own cache, where
`from_pretrained` finds them.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from cad.artifacts.files import digest, full_disk_named, read_json, write_json
from cad.artifacts.tensors import open_tensors
from cad.errors import UserError
from cad.weights.table import Model

SCHEMA = 1
SAFE = (".safetensors", ".json", ".txt", ".model")
SPARE = 0.5e9  # bytes that a download leaves free


@dataclass(frozen=True)
class Remote:
    """What the hub says of a model: the commit, and of each wanted file its size and, if the hub knows it, SHA-256."""

    commit: str
    files: dict[str, tuple[int, str | None]]


def fetch(model: Model, folder: Path | None, lock: Path, say: Callable[[str], None]) -> Path:
    """Download a model into the hub's cache, or into `folder`, check every digest, and record them in `lock`.

    Returns where it lies. Raises UserError as `download`, and for files other than the recorded ones.
    """
    place, commit, found = download(model, folder, say)
    _record(model, commit, found, lock)
    return place


def download(model: Model, folder: Path | None, say: Callable[[str], None]) -> tuple[Path, str, dict[str, Any]]:
    """Download a model and check every digest: where it lies, its commit, and size and SHA-256 of each file.

    Raises UserError without network, disk space or an accepted licence, for a model that no hub holds, and for pickles
    where tensors are expected.
    """
    if not model.repo:
        raise UserError(f"{model.name}: is on no hub; {by_hand(model)}")
    from huggingface_hub import logging, snapshot_download

    logging.set_verbosity_error()  # its warnings of each retry would stand before our one line
    with faults_named(model):
        remote = ask(model)
        _check_space(model, remote, folder)
        say(f"{model.repo}@{remote.commit}: {len(remote.files)} files, {_total(remote) / 1e9:.2f} GB")
        with full_disk_named(folder or Path("the hub's cache")):
            place = Path(  # by the revision's own name, which the cache keeps and settings use
                snapshot_download(
                    model.repo, revision=model.revision, allow_patterns=sorted(remote.files), local_dir=folder
                )
            )
    found = {}
    for name, (size, sha256) in sorted(remote.files.items()):
        found[name] = {"size": (place / name).stat().st_size, "sha256": digest(place / name)}
        if found[name]["size"] != size or sha256 not in (None, found[name]["sha256"]):
            raise UserError(f"{place / name}: is not what the hub describes; remove it and fetch {model.name} again")
    return place, remote.commit, found


def source(model: Model, lock: Path) -> str:
    """What a setting says of a fetched model: its repository at the recorded commit, also where a branch was asked."""
    return f"{model.repo}@{_read_lock(lock)[model.name]['commit']}"


def ask(model: Model) -> Remote:
    """The commit behind a model's revision and its wanted files; UserError where a network's are no safetensors."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    hub = HfApi()
    commit = model.revision if model.pinned else hub.model_info(model.repo, revision=model.revision).sha
    entries = hub.list_repo_tree(model.repo, recursive=True, revision=commit)
    there = [entry for entry in entries if isinstance(entry, RepoFile)]
    allowed = [e for e in there if model.pickle or e.path.endswith(SAFE)]
    files = {
        e.path: (e.size, e.lfs.sha256 if e.lfs else None)
        for e in allowed
        if any(fnmatch(e.path, pattern) for pattern in model.files)
    }
    networks = {PurePath(name).parent for name in files if PurePath(name).name == "config.json"}
    stored = {PurePath(name).parent for name in files if name.endswith(".safetensors")}
    if not model.pickle and (not stored or networks - stored):
        where = min((f" in {part}" for part in networks - stored), default="")
        raise UserError(
            f"{model.name}: {model.repo}@{commit} holds no safetensors of the wanted names{where}, and pickles are not "
            "fetched; take another entry of `cad weights list`"
        )
    return Remote(str(commit), files)


def verify(model: Model, folder: Path | None, lock: Path) -> tuple[str, str]:
    """State and place of a model: "ok", "absent" or "not recorded"; UserError names the first damaged file.

    Looks into `folder`, or into the hub's cache; reads every byte. What is on no hub is one file at its place, whose
    digest is in the registry; where none is published there, its state is "here, unchecked".
    """
    if not model.repo:
        path = folder / model.files[0] if folder is not None else Path(model.place).expanduser()
        if not path.is_file():
            return "absent", ""
        check_md5(model, path)
        return "ok" if model.md5 else "here, unchecked", str(path)
    recorded = _read_lock(lock).get(model.name)
    if recorded is None:
        return "not recorded", ""
    from huggingface_hub import try_to_load_from_cache

    absent = []
    place = folder
    for name, expected in recorded["files"].items():
        if folder is not None:
            path = folder / name
        else:
            cached = try_to_load_from_cache(model.repo, name, revision=recorded["commit"])
            path = Path(cached) if isinstance(cached, str) else Path()
            place = path.parents[len(Path(name).parts) - 1] if isinstance(cached, str) else place
        if not path.is_file():
            absent.append(name)
            continue
        if path.stat().st_size != expected["size"] or digest(path) != expected["sha256"]:
            raise UserError(f"{path}: is damaged or another file; remove it and run `cad weights fetch {model.name}`")
        if name.endswith(".safetensors"):
            open_tensors(path, "numpy")
    if not absent:
        return "ok", str(place)
    if len(absent) < len(recorded["files"]):
        raise UserError(f"{model.name}: {absent[0]} is missing; run `cad weights fetch {model.name}`")
    return "absent", ""


def check_md5(model: Model, path: Path) -> None:
    """Refuse a file that is not the one which the registry names; one without a published digest passes."""
    with path.open("rb") as opened:
        if model.md5 and hashlib.file_digest(opened, "md5").hexdigest() != model.md5:
            raise UserError(f"{path}: is damaged or another file; remove it and {by_hand(model)}")


def by_hand(model: Model) -> str:
    """What to place where, on a machine that cannot fetch; one line."""
    if model.url:
        check = f" (MD5 {model.md5})" if model.md5 else ""
        return f"download {model.url}{check} and place it at {model.place}"
    if not model.repo:
        return model.note
    wanted = ", ".join(model.files)
    return (
        f"on a machine with network access run `cad weights fetch {model.name} --to FOLDER`, or place {wanted} of "
        f"https://huggingface.co/{model.repo}/tree/{model.revision} in a FOLDER, bring it here, and name it in "
        f"{model.place}"
    )


@contextmanager
def faults_named(model: Model) -> Iterator[None]:
    """Turn what the hub's client raises for a licence, a name or the network into one line with the remedy."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    client: Any = HfHubHTTPError.__bases__[0]  # of all that its HTTP client raises
    page = f"https://huggingface.co/{model.repo}"
    token = "and give a token by `hf auth login` or HF_TOKEN"
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{model.name}: its licence ({model.licence}) is not accepted by your account; accept it at {page}, {token}"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{model.name}: {page} has no revision {model.revision}; correct its table") from None
    except RepositoryNotFoundError:
        raise UserError(f"{model.name}: {page} is gone or hidden without a token; look it up, {token}") from None
    except (OSError, client) as fault:
        said = next(iter(str(fault).strip().splitlines()), "")[:120]
        raise UserError(f"{model.name}: cannot be fetched ({type(fault).__name__}: {said}); {by_hand(model)}") from None


def _total(remote: Remote) -> int:
    return sum(size for size, _ in remote.files.values())


def _check_space(model: Model, remote: Remote, folder: Path | None) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    here = folder or Path(constants.HF_HUB_CACHE)
    needed = sum(
        size
        for name, (size, _) in remote.files.items()
        if not (
            folder / name if folder else Path(str(try_to_load_from_cache(model.repo, name, revision=remote.commit)))
        ).is_file()
    )
    existing = next(path for path in (here.absolute(), *here.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed + SPARE > free:
        raise UserError(
            f"{here}: {model.name} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; free some, or fetch "
            "it elsewhere by --to or HF_HOME"
        )


def _read_lock(lock: Path) -> dict[str, Any]:
    if not lock.is_file():
        return {}
    content = read_json(lock, "schema", "models")
    if content["schema"] != SCHEMA:
        raise UserError(f"{lock}: has schema {content['schema']}, this program reads {SCHEMA}; restore it from Git")
    models: dict[str, Any] = content["models"]
    return models


def _record(model: Model, commit: str, found: dict[str, Any], lock: Path) -> None:
    """Add a model to the lock file; other digests under the recorded commit are refused, another commit is new."""
    models = _read_lock(lock)
    before = models.get(model.name)
    if before and before["commit"] == commit:
        changed = [n for n, now in found.items() if before["files"].get(n, now) != now]
        if changed:
            raise UserError(f"{model.name}: {changed[0]} is not the recorded one; see {lock}, and fetch it again")
    entry = {"repo": model.repo, "commit": commit, "files": found}
    write_json(lock, {"schema": SCHEMA, "models": {**models, model.name: entry}})
