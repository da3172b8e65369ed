"""Weights & Biases, in one place: no other file imports wandb, and nothing that is hashed depends on it.

A run is written under `wandb/` in the working directory. Faults of W&B print one line and turn tracking off; the stage
goes on. Artifacts are recorded by reference and digest, never uploaded: DVC holds the data [ours], and an offline
run cannot use artifacts, so its lineage is the inputs' digests in the config and an `artifacts.json` beside the run.
"""

import netrc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from cad.artifacts import digest, write_json
from cad.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from cad.config import TrackingSettings

HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # the public service; WANDB_BASE_URL names another one
TIMEOUT = 30.0  # seconds that a stage waits for a server at its start and at its end [ours]


class Tracker:
    """A W&B run, or nothing at all with the same methods: after a fault, or with `mode: disabled`."""

    def __init__(self, run: Any, commit: str | None) -> None:
        """Wrap a run of `wandb.init`, or None."""
        self._run = run
        self._commit = commit
        self._step = 0
        self._artifacts: dict[str, dict[str, str | None]] = {}

    @property
    def active(self) -> bool:
        """Whether anything is recorded."""
        return self._run is not None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers by name at a training step."""
        self._record(lambda wandb: dict(values), step)

    def image(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Record a picture, uint8 [H, W, 3]."""
        self._record(lambda wandb: {name: wandb.Image(pixels)}, step)

    def video(self, name: str, path: Path) -> None:
        """Record an MP4 file."""
        self._record(lambda wandb: {name: wandb.Video(str(path), format="mp4")}, self._step)

    def table(
        self, name: str, columns: "Sequence[str] | pd.DataFrame", rows: Sequence[Sequence[Any]] | None = None
    ) -> None:
        """Record a table: a data frame, or columns and rows whose cells may be pictures, uint8 [H, W, 3]."""
        names: list[str]
        cells: Sequence[Sequence[Any]]
        if isinstance(columns, Sequence):
            names, cells = list(columns), list(rows or ())
        else:
            names, cells = [str(column) for column in columns], columns.to_numpy(dtype=object).tolist()

        def cell(wandb: Any, value: Any) -> Any:
            if isinstance(value, np.ndarray) and value.ndim >= 2:
                return wandb.Image(value)
            # A blank is None in every column; the NaN that pandas puts among texts would be a second type there.
            return None if isinstance(value, float) and value != value else value

        def build(wandb: Any) -> dict[str, Any]:
            return {name: wandb.Table(columns=names, data=[[cell(wandb, value) for value in row] for row in cells])}

        self._record(build, self._step)

    def artifact(self, name: str, path: Path, kind: str) -> None:
        """Record a file or folder that the stage has written: its place, digest and Git commit."""
        if self._run is None:
            return
        checksum = digest(path)
        self._artifacts[name] = {"path": str(path), "kind": kind, "sha256": checksum, "commit": self._commit}

        def record(wandb: Any) -> None:
            entry = wandb.Artifact(
                _artifact_name(name), type=kind, metadata={"sha256": checksum, "commit": self._commit}
            )
            # One by one, for W&B announces whole folders on the terminal.
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    inside = file.relative_to(path).as_posix() if path.is_dir() else file.name
                    entry.add_reference(file.resolve().as_uri(), name=inside)
            self._run.log_artifact(entry)
            if self._run.offline:
                write_json(Path(self._run.dir).parent / "artifacts.json", {"artifacts": self._artifacts})

        self._attempt(record)

    def _record(self, build: Callable[[Any], dict[str, Any]], step: int) -> None:
        # W&B drops what comes with a step below the last one; tables and videos of a stage's end belong to its end.
        self._step = max(self._step, step)
        self._attempt(lambda wandb: self._run.log(build(wandb), step=self._step))

    def _attempt(self, action: Callable[[Any], object]) -> None:
        """Run something that talks to W&B; a fault ends tracking, not the stage."""
        if self._run is None:
            return
        try:
            import wandb

            action(wandb)
        except Exception as fault:  # broad on purpose: whatever W&B raises must not stop hours of training
            _warn(fault)
            self._run = None


@contextmanager
def open_tracker(
    settings: "TrackingSettings", stage: str, entry: str, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> Iterator[Tracker]:
    """The tracker of one stage's run; closed as failed if the body raises.

    config: the stage's settings; inputs: {name: digest} of what it reads. `mode: auto` is online if there is a key
    (WANDB_API_KEY or a netrc entry), else offline. UserError for `mode: online` without a key.
    """
    mode = resolve_mode(settings)
    commit = git_commit()
    tracker = Tracker(None, commit)
    if mode != "disabled":
        content = {**config, "stage": stage, "entry": entry, "inputs": dict(inputs), "git_commit": commit}
        tracker = Tracker(_start(mode, settings.project, stage, entry, content), commit)
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        tracker._attempt(lambda wandb: tracker._run.finish(exit_code=int(failed)))


def resolve_mode(settings: "TrackingSettings") -> str:
    """What `tracking.mode` means here: online, offline or disabled. UserError for `online` without a key."""
    if settings.mode == "auto":
        return "online" if has_key() else "offline"
    if settings.mode == "online" and not has_key():
        raise UserError("tracking.mode: online needs a key; set WANDB_API_KEY, run `wandb login`, or choose auto")
    return settings.mode


def unsynced_runs() -> list[Path]:
    """Folders of offline runs under `wandb/` that `wandb sync` has not uploaded: it leaves a file beside each log."""
    logs = sorted(Path("wandb").glob("offline-run-*/*.wandb"))
    return [log.parent for log in logs if not log.with_name(f"{log.name}.synced").exists()]


def _start(mode: str, project: str, stage: str, entry: str, config: dict[str, Any]) -> Any:
    """A quiet `wandb.init` that never asks; None after a fault."""
    # Where W&B keeps the pictures of tables until they are synchronised; by default outside the repository.
    os.environ.setdefault("WANDB_DATA_DIR", str(Path("wandb").resolve()))
    try:
        import wandb

        quiet = wandb.Settings(
            silent=True,
            console="off",  # the terminal's output stays out of the run, and the terminal as it is
            disable_git=True,  # the commit is in the config
            disable_code=True,
            disable_job_creation=True,
            x_disable_stats=True,  # system metrics, machine and package lists cost seconds per stage
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=TIMEOUT,
            finish_timeout=TIMEOUT,
        )
        run = wandb.init(
            project=project,
            name=f"{entry}/{stage}",
            group=entry,
            job_type=stage,
            config=config,
            mode=mode,  # type: ignore[arg-type]  # a literal that pydantic has checked
            dir=os.getcwd(),
            settings=quiet,
        )
        if mode == "online":
            print(f"W&B: {run.url}", file=sys.stderr, flush=True)
        return run
    except Exception as fault:  # broad on purpose, see Tracker._attempt
        _warn(fault)
        return None


def has_key() -> bool:
    """Whether W&B would find an API key: WANDB_API_KEY, or an entry of its host in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = os.environ.get("WANDB_BASE_URL")
    hosts = (urlsplit(server).netloc,) if server else HOSTS
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            known = netrc.netrc(path).hosts
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue  # none there, or one that W&B could not read either
        if any(host in known for host in hosts):
            return True
    return False


def git_commit() -> str | None:
    """The commit of the working directory, with "+" if tracked files differ from it; None outside a Git repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed else "")


def _artifact_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


def _warn(fault: Exception) -> None:
    reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
    print(f"warning: W&B failed ({reason}); this stage goes on without tracking", file=sys.stderr, flush=True)
