"""Pieces of work for tests of the engines; workers of Ray import them from here, as they do those of the stages."""

import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cad.context import Advance, Context, Do
from cad.engine import Begin, Engine, Setup, Worker, open_engine
from cad.errors import UserError
from cad.stages import fixed_environment

TOKEN = secrets.token_hex(32)  # one for all tests: a process keeps the first that it was given


@contextmanager
def two_workers() -> Iterator[Engine]:
    """An engine on a Ray of this machine alone that holds two workers of one thread; a skip where Ray is not there."""
    import pytest

    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)  # or Ray writes one into the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
        try:
            paths = {"PYTHONPATH": os.pathsep.join(sys.path)}  # this file among them
            with open_engine("ray", 1, fixed_environment(1) | paths, "reference") as engine:
                yield engine
        finally:
            ray.shutdown()


def begin_counting(plan: Path, context: Context) -> Do:
    """Pieces that note who did them, in a file each."""

    def do(piece: int, advance: Advance) -> tuple[int, int]:
        (plan / f"{piece}-{os.getpid()}").touch()
        advance(2)
        time.sleep(0.2)
        return piece * piece, os.getpid()

    return do


def begin_dying(plan: Path, context: Context) -> Do:
    """Pieces that kill their worker, each time."""

    def do(piece: int, advance: Advance) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    return do


def begin_refusing(plan: Path, context: Context) -> Do:
    """A user's fault, found by the worker."""
    raise UserError("input.png: is broken; bring another")


def begin_faulty(plan: Path, context: Context) -> Do:
    """A bug."""

    def do(piece: int, advance: Advance) -> None:
        raise ZeroDivisionError("a bug")

    return do


@dataclass
class Struck:
    """A plan whose worker is killed when piece `at` has counted its first units, unless `mark` is there."""

    begin: Begin
    plan: Any
    at: int
    mark: Path


def begin_struck(plan: Struck, context: Context) -> Do:
    """The pieces of the plan within; the first worker in the middle of piece `at` is killed."""
    inner = plan.begin(plan.plan, context)

    def do(piece: int, advance: Advance) -> Any:
        def struck(units: int) -> None:
            if piece == plan.at and not plan.mark.exists():
                plan.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            advance(units)

        return inner(piece, struck)

    return do


@dataclass
class Striking:
    """An engine that loses one worker: in the middle of the first piece of those that a stage has left."""

    engine: Engine
    mark: Path

    def run(self, begin, plan, pieces, take, advance, context) -> None:  # type: ignore[no-untyped-def]
        struck = Struck(begin, plan, pieces[0], self.mark)
        self.engine.run(begin_struck, struck, pieces, take, advance, context)


class Unimportable(Worker):
    """A worker whose machine lacks a module."""

    def __init__(self, setup: Setup) -> None:
        raise ModuleNotFoundError("No module named 'cad_of_another_machine'")


class Killed(Worker):
    """A worker that something on its machine kills at once."""

    def __init__(self, setup: Setup) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class KilledOnce(Worker):
    """A worker of which the first is killed at once."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        mark = Path(os.environ["CAD_TEST_MARK"])
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
