"""The loop that both stages share: steps, history, checkpoints, previews, and resuming to the same bits."""

import math
import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from cad.artifacts import Checkpoint, write_atomic, write_image
from cad.context import Context
from cad.errors import UserError
from cad.progress import progress
from cad.render.choice import check_begun, rendered_by
from cad.train import parallel
from cad.train.optimize import optimizer_tensors, restore_optimizer

LOG_STEPS = 10  # one row of history.csv, and one point in the tracker, is the mean over this many steps


class Job(Protocol):
    """What is trained: everything that a checkpoint must hold, and one step."""

    kind: str
    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Adam]

    def step(self, step: int) -> dict[str, float]:
        """One iteration; returns what the history records. Depends on nothing but the weights and `step`."""

    def scalars(self) -> dict[str, Any]:
        """What else the checkpoint's state.json holds: ADA's state, the settings of the networks."""

    def restore_scalars(self, state: dict[str, Any]) -> None:
        """Put back from state.json what changes during training."""

    def preview(self) -> np.ndarray:
        """A picture of the averaged generator, uint8 [H, W, 3]."""


@dataclass(frozen=True)
class Length:
    """How long to train and how often to save: thousands of real images, images per step, seconds."""

    kimg: float
    batch: int
    checkpoint_kimg: float
    preview_seconds: float

    def steps(self) -> int:
        """Steps until `kimg` thousand real images have been shown."""
        return math.ceil(self.kimg * 1000 / self.batch)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps: a multiple of `checkpoint_kimg` was just reached."""
        every = self.checkpoint_kimg * 1000
        return step * self.batch // every > (step - 1) * self.batch // every


class History:
    """history.csv: means over LOG_STEPS steps, without a clock, so that a resumed run writes the same file."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []
        self.window: dict[str, list[float]] = {}

    def add(self, values: dict[str, float]) -> None:
        """Take one step's values; a name that is missing in some steps is averaged over those that have it."""
        for name, value in values.items():
            total, count = self.window.get(name, [0.0, 0])
            self.window[name] = [total + value, count + 1]

    def close(self, step: int, images: int) -> dict[str, float]:
        """End a window: its means become a row and are returned."""
        means = {name: total / count for name, (total, count) in self.window.items()}
        self.window = {}
        self.rows.append({"step": str(step), "images": str(images)} | {k: f"{v:.9g}" for k, v in means.items()})
        return means

    def write(self, path: Path) -> None:
        """Write all rows; the columns are step, images, then the other names in alphabetical order."""
        first = ["step", "images"]
        columns = first + sorted({name for row in self.rows for name in row} - set(first))
        lines = [",".join(columns)] + [",".join(row.get(name, "") for name in columns) for row in self.rows]
        write_atomic(path, ("\n".join(lines) + "\n").encode())

    def read(self, path: Path, step: int) -> None:
        """Take the rows up to `step` back; later ones belong to steps that will be made again."""
        lines = [line.split(",") for line in path.read_text().splitlines()]
        rows = [{k: v for k, v in zip(lines[0], line, strict=True) if v} for line in lines[1:]]
        self.rows = [row for row in rows if int(row["step"]) <= step]


def run_training(job: Job, length: Length, out: Path, context: Context) -> None:
    """Train `job` to its end in `out`: a checkpoint, history.csv, preview.png; goes on where an earlier call stopped.

    A step's randomness comes from its number alone, so a run that was killed anywhere ends with the same bits. Raises
    UserError on a loss or gradient that is not finite (see `optimize.descend`), and on work that was begun with another
    renderer, device or number of processes. Of several processes the main one alone writes, logs and shows.
    """
    history = History()
    done = _resume(job, history, out, context)
    parallel.meet()  # before the main process can write what another one still reads
    steps, main = length.steps(), parallel.is_main()
    shown = since = time.monotonic()
    logged = done
    with progress(steps, f"{job.kind} {context.object}", done) if main else nullcontext() as bar:
        for step in range(done, steps):
            values = parallel.mean_values(job.step(step))
            if bar is None:
                continue
            history.add(values)
            now, made = time.monotonic(), step + 1
            if made % LOG_STEPS == 0 or made == steps:
                means = history.close(made, made * length.batch)
                means["sec_per_kimg"] = (now - since) * 1000 / ((made - logged) * length.batch)
                means["peak_memory_mb"] = peak_memory_mb(context.device)
                context.tracker.log(means, made)
                since, logged = now, made
            if length.saves(made) and made < steps:
                _save(job, history, made, length.batch, out, context)
            if now - shown >= length.preview_seconds:
                _show(job, made, out, context)
                shown = time.monotonic()
            bar.advance(1)
    if main:
        if done < steps or not Checkpoint.exists(out):
            _save(job, history, steps, length.batch, out, context)
        _show(job, steps, out, context)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory used so far in MB: the process's on a CPU, the allocator's on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _save(job: Job, history: History, step: int, batch: int, out: Path, context: Context) -> None:
    """Write history.csv, then the checkpoint; a kill between the two leaves rows that resuming cuts off."""
    history.write(out / "history.csv")
    groups = {name: dict(module.state_dict()) for name, module in job.modules.items()}
    groups |= {name: optimizer_tensors(optimizer) for name, optimizer in job.optimizers.items()}
    counts = {"step": step, "images": step * batch, "window": history.window}
    state = {**counts, **rendered_by(context.device), **parallel.told(), **job.scalars()}
    Checkpoint.write(out, job.kind, groups, state)


def _resume(job: Job, history: History, out: Path, context: Context) -> int:
    """Restore the last checkpoint of an interrupted run; returns the number of steps already made.

    Raises UserError where another renderer, device or number of processes made them.
    """
    if not Checkpoint.exists(out):
        return 0
    checkpoint = Checkpoint.open(out, job.kind)
    check_begun(out, checkpoint.state, context.device)
    begun = checkpoint.state.get("processes", 1)
    if begun != parallel.processes():
        raise UserError(
            f"{out}: was begun by {begun} processes, but there are {parallel.processes()} now: the bits would be "
            f"neither's; start {begun} or remove {out}"
        )
    restore_groups(job, checkpoint)
    job.restore_scalars(checkpoint.state)
    history.read(out / "history.csv", checkpoint.state["step"])
    history.window = {name: list(pair) for name, pair in checkpoint.state["window"].items()}
    return checkpoint.state["step"]


def restore_groups(job: Job, checkpoint: Checkpoint) -> None:
    """Load every module and optimiser of `job` from a checkpoint that has them all."""
    for name, module in job.modules.items():
        module.load_state_dict(checkpoint.tensors(name))
    for name, optimizer in job.optimizers.items():
        restore_optimizer(optimizer, checkpoint.tensors(name))


def _show(job: Job, step: int, out: Path, context: Context) -> None:
    """Draw the preview to preview.png and to the tracker; it changes no state."""
    picture = job.preview()
    write_image(out / "preview.png", picture)
    context.tracker.image("preview", picture, step)
