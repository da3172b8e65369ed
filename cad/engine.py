"""Where the pieces of a stage's work run: one after the other in this process, or side by side on a Ray cluster.

A piece is a number; what it computes depends on that number and on the stage's plan alone, so neither the engine nor
the number of workers changes a bit. Pieces that leave files write them atomically, into the stage's work folder, which
all machines must see under the same path. What is lost with a worker is the piece it was at.
"""

import os
import platform
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from cad.errors import UserError

if TYPE_CHECKING:
    from cad.context import Context

Kind = Literal["local", "ray"]
Advance = Callable[[int], None]  # counts units of work as done
Do = Callable[[int, Advance], Any]  # does a piece; what it returns goes to the process that runs the stage
Begin = Callable[[Any, "Context"], Do]  # loads models once for many pieces; a function of a module, for Ray imports it
Take = Callable[[int, Any], None]  # receives a piece and what it returned

LOSSES = 3  # workers that one piece, or starting, may cost in a row before it is held to be the cause [ours]


class Engine(Protocol):
    """Does the pieces of a plan, in any order."""

    def run(
        self, begin: Begin, plan: Any, pieces: Sequence[int], take: Take, advance: Advance, context: "Context"
    ) -> None:
        """Do every piece and hand its result to `take`; the plan must be picklable. Raises a piece's own errors."""
        ...


class Local:
    """In this process, in order; loads nothing if there is nothing to do."""

    def run(
        self, begin: Begin, plan: Any, pieces: Sequence[int], take: Take, advance: Advance, context: "Context"
    ) -> None:
        """Do one piece after the other."""
        if pieces:
            do = begin(plan, context)
            for piece in pieces:
                take(piece, do(piece, advance))


@contextmanager
def open_engine(kind: Kind, threads: int, environment: dict[str, str], renderer: str) -> Iterator[Engine]:
    """The engine of one stage.

    Ray's is the cluster that RAY_ADDRESS names or that this machine belongs to, or else this machine alone. Workers
    get `threads` threads and CPUs, the environment variables and the renderer of the local engine. UserError where Ray
    is not installed or its cluster does not answer.
    """
    if kind == "local":
        yield Local()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        said = "Ray is not installed; install the extra: `pip install 'cad[ray]'`, or use --engine local"
        raise UserError(f"--engine ray: {said}") from None
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, TimeoutError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"--engine ray: no cluster answers ({reason}); see `ray status` and RAY_ADDRESS") from None
    try:
        yield OnRay(threads, environment, renderer)
    finally:
        if started:
            ray.shutdown()


@dataclass(frozen=True)
class Setup:
    """What makes a worker compute as the process that runs the stage would."""

    folder: str  # the working directory, to which paths are relative
    threads: int
    device: str  # cpu or cuda
    renderer: str
    seed: int
    object: str
    software: tuple[str, str]  # digest of the code that pieces compute with, version of torch


class Outcome(NamedTuple):
    """What a piece returned and how many units it counted; or the user's fault that it ran into."""

    result: Any
    units: int
    fault: str | None


class Worker:
    """A process on the cluster: loads once, then does what pieces it is given."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.do: Do | None = None

    def ready(self) -> None:
        """Answer, once the process has started."""

    def work(self, begin: Begin, plan: Any, piece: int) -> Outcome:
        """Do one piece."""
        units: list[int] = []
        try:
            self.do = self.do or self._begin(begin, plan)
            return Outcome(self.do(piece, units.append), sum(units), None)
        except UserError as error:
            return Outcome(None, 0, str(error))

    def _begin(self, begin: Begin, plan: Any) -> Do:
        setup, host = self.setup, platform.node()
        if not Path(setup.folder).is_dir():
            raise UserError(f"{setup.folder}: is missing on {host}; put it on a file system that all machines share")
        os.chdir(setup.folder)
        from cad.context import Context, prepare_device
        from cad.render.choice import resolve_renderer, use_renderer
        from cad.tracking import Tracker

        if software_of(begin) != setup.software:
            raise UserError(f"--engine ray: {host} has another cad or torch; install the same on every machine")
        device = prepare_device(setup.device, setup.threads)
        use_renderer(resolve_renderer(setup.renderer, device)).__enter__()  # type: ignore[arg-type]  # for good
        return begin(plan, Context(setup.seed, setup.object, device, Tracker(None, None)))


def software_of(begin: Begin) -> tuple[str, str]:
    """Digest of the code behind a stage's pieces, and the version of torch: what all machines must have alike."""
    import importlib.metadata

    from cad.code import code_digest

    return code_digest(begin.__module__), importlib.metadata.version("torch")


def cause_of(fault: Exception) -> str:
    """The line of Ray's message that tells why a worker is lost: of a traceback the last one, else the first."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(fault))
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(fault).__name__]
    said = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[0])
    return said[:200]


@dataclass
class OnRay:
    """On the workers of the cluster that this process is connected to."""

    threads: int
    environment: dict[str, str]
    renderer: str
    lost: Counter[int] = field(default_factory=Counter)  # workers that each piece has cost
    stillborn: int = 0  # workers in a row that were lost before they had started

    def run(
        self, begin: Begin, plan: Any, pieces: Sequence[int], take: Take, advance: Advance, context: "Context"
    ) -> None:
        """Do the pieces as workers become free; a piece whose worker dies is given to another one.

        Raises UserError for a piece that has cost `LOSSES` workers, where as many in a row are lost while they start,
        and where the cluster has no room for any.
        """
        import ray

        if not pieces:
            return
        gpus = int(context.device.type == "cuda")
        setup = Setup(
            os.getcwd(), self.threads, context.device.type, self.renderer, context.seed, context.object,
            software_of(begin),
        )  # fmt: skip
        make = ray.remote(Worker).options(
            num_cpus=self.threads, num_gpus=gpus, runtime_env={"env_vars": self.environment}
        )
        shared = ray.put(plan)
        waiting, free, workers, self.lost = deque(pieces), deque[Any](), list[Any](), Counter()
        self.stillborn = 0
        running: dict[Any, tuple[Any, int | None]] = {}  # by what will come back; no piece while a worker starts

        def hire() -> None:
            while len(workers) < min(self._room(gpus), len(waiting) + sum(p is not None for _, p in running.values())):
                workers.append(make.remote(setup))
                running[workers[-1].ready.remote()] = workers[-1], None

        try:
            while waiting or any(piece is not None for _, piece in running.values()):
                hire()
                while waiting and free:
                    worker, piece = free.popleft(), waiting.popleft()
                    running[worker.work.remote(begin, shared, piece)] = worker, piece
                if not running:
                    raise UserError(self._no_room(gpus))
                (ended,), _ = ray.wait(list(running), num_returns=1)
                worker, done = running.pop(ended)
                try:
                    outcome = ray.get(ended)
                except (ray.exceptions.RayActorError, ray.exceptions.RuntimeEnvSetupError) as fault:
                    workers.remove(worker)
                    ray.kill(worker)  # it may be out of reach, and yet at work
                    if done is None:
                        self._lose_at_start(fault)
                    else:
                        self._lose(done)
                        waiting.appendleft(done)
                    continue
                free.append(worker)
                if done is None:
                    self.stillborn = 0
                else:
                    if outcome.fault is not None:
                        raise UserError(outcome.fault)
                    take(done, outcome.result)
                    advance(outcome.units)
        finally:
            for worker in workers:
                ray.kill(worker)

    def _room(self, gpus: int) -> int:
        """How many workers the cluster holds now."""
        import ray

        resources = ray.cluster_resources()
        held = int(resources.get("CPU", 0)) // self.threads
        return min(held, int(resources.get("GPU", 0))) if gpus else held

    def _no_room(self, gpus: int) -> str:
        wanted = f"{self.threads} CPUs (runtime.threads){' and a GPU' if gpus else ''}"
        return f"--engine ray: no machine of the cluster has {wanted} for a worker; see `ray status`"

    def _lose_at_start(self, fault: Exception) -> None:
        self.stillborn += 1
        if self.stillborn >= LOSSES:
            raise UserError(
                f"--engine ray: {LOSSES} workers in a row were lost while they started ({cause_of(fault)}); see Ray's "
                "logs, and whether every machine has the same Python, cad and torch"
            )
        print("a worker was lost while it started; another one is", file=sys.stderr, flush=True)

    def _lose(self, piece: int) -> None:
        self.lost[piece] += 1
        if self.lost[piece] >= LOSSES:
            raise UserError(
                f"--engine ray: piece {piece} has lost {LOSSES} workers, for lack of memory perhaps; see Ray's logs, "
                "take a smaller `batch` in the stage's settings and run it again: what is done is kept"
            )
        print(f"a worker was lost; piece {piece} is done again", file=sys.stderr, flush=True)
