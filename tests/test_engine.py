"""Engines: the same pieces in this process, and on a local Ray of two workers."""

import dataclasses
import os
import sys

import pieces
import pytest
import torch

from cad.context import Context
from cad.engine import LOSSES, Local, cause_of, open_engine
from cad.errors import UserError
from cad.tracking import Tracker


@pytest.fixture
def context() -> Context:
    return Context(seed=0, object="robot", device=torch.device("cpu"), tracker=Tracker(None, None))


def outcome(engine, begin, numbers, folder, context):
    """What comes back by piece, and the units counted."""
    found, units = {}, []
    engine.run(begin, folder, numbers, found.__setitem__, units.append, context)
    return found, sum(units)


def test_local_goes_through_the_pieces_in_order_and_begins_nothing_for_none(tmp_path, context):
    found, units = outcome(Local(), pieces.begin_counting, [3, 1], tmp_path, context)
    assert list(found.items()) == [(3, (9, os.getpid())), (1, (1, os.getpid()))]
    assert units == 4
    assert outcome(Local(), pieces.begin_refusing, [], tmp_path, context) == ({}, 0)


def test_a_context_is_local_unless_told(context):
    assert isinstance(context.engine, Local)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = r"^--engine ray: Ray is not installed; install the extra: `pip install 'cad\[ray\]'`, or use --engine local$"
    with pytest.raises(UserError, match=said), open_engine("ray", 1, {}, "reference"):
        pass


@pytest.fixture(scope="module")
def on_ray():
    with pieces.two_workers() as engine:
        yield engine


@pytest.mark.slow
def test_two_workers_share_the_pieces(on_ray, tmp_path, context):
    found, units = outcome(on_ray, pieces.begin_counting, range(12), tmp_path, context)
    assert {piece: square for piece, (square, _) in found.items()} == {k: k * k for k in range(12)}
    assert len({process for _, process in found.values()} - {os.getpid()}) == 2
    assert (units, len(list(tmp_path.iterdir()))) == (24, 12)
    assert outcome(on_ray, pieces.begin_refusing, [], tmp_path, context) == ({}, 0)


@pytest.mark.slow
def test_a_killed_worker_costs_one_piece(on_ray, tmp_path, context, capsys):
    work, mark = tmp_path / "work", tmp_path / "mark"
    work.mkdir()
    found, units = outcome(pieces.Striking(on_ray, mark), pieces.begin_counting, range(6), work, context)
    assert mark.exists()
    assert {piece: square for piece, (square, _) in found.items()} == {k: k * k for k in range(6)}
    assert (units, len(list(work.iterdir()))) == (12, 7)  # one was done twice
    assert "a worker was lost; piece 0 is done again" in capsys.readouterr().err


@pytest.mark.slow
def test_a_piece_that_kills_every_worker_is_a_user_error(on_ray, tmp_path, context):
    with pytest.raises(UserError, match=f"--engine ray: piece 7 has lost {LOSSES} workers"):
        outcome(on_ray, pieces.begin_dying, [7], tmp_path, context)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worker", "cause"),
    [
        (pieces.Unimportable, r"ModuleNotFoundError: No module named 'cad_of_another_machine'"),
        (pieces.Killed, r"The actor died unexpectedly"),
    ],
)
def test_workers_that_die_while_they_start_are_a_user_error(
    on_ray, tmp_path, context, capsys, monkeypatch, worker, cause
):
    monkeypatch.setattr("cad.engine.Worker", worker)
    said = rf"^--engine ray: {LOSSES} workers in a row were lost while they started \({cause}[^\n]*\); see Ray's logs"
    with pytest.raises(UserError, match=said):
        outcome(on_ray, pieces.begin_counting, range(4), tmp_path, context)
    assert capsys.readouterr().err.count("a worker was lost while it started; another one is") == LOSSES - 1


@pytest.mark.slow
def test_one_that_dies_while_it_starts_is_replaced(on_ray, tmp_path, context, capsys, monkeypatch):
    mark = tmp_path / "mark"
    monkeypatch.setenv("CAD_TEST_MARK", str(mark))
    environment = {**on_ray.environment, "CAD_TEST_MARK": str(mark)}
    monkeypatch.setattr("cad.engine.Worker", pieces.KilledOnce)
    work = tmp_path / "work"
    work.mkdir()
    found, _ = outcome(
        dataclasses.replace(on_ray, environment=environment), pieces.begin_counting, range(4), work, context
    )
    assert mark.exists()
    assert {piece: square for piece, (square, _) in found.items()} == {k: k * k for k in range(4)}
    assert "a worker was lost while it started" in capsys.readouterr().err


def test_the_cause_is_one_line_of_what_ray_says():
    assert (
        cause_of(RuntimeError("The actor died unexpectedly.\n\tclass_name: Worker")) == "The actor died unexpectedly."
    )
    created = "The actor died because of an error raised in its creation task,"
    created += " \x1b[36mray::W()\x1b[39m\n  File x\n\x1b[36mOSError: no\x1b[39m"
    assert cause_of(RuntimeError(created)) == "OSError: no"
    assert cause_of(RuntimeError()) == "RuntimeError"


@pytest.mark.slow
def test_faults_of_users_are_one_line_and_bugs_keep_their_traceback(on_ray, tmp_path, context):
    with pytest.raises(UserError, match=r"^input.png: is broken; bring another$"):
        outcome(on_ray, pieces.begin_refusing, [0, 1], tmp_path, context)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        outcome(on_ray, pieces.begin_faulty, [0, 1], tmp_path, context)


@pytest.mark.slow
def test_workers_that_do_not_fit_are_refused(on_ray, tmp_path, context):
    large = dataclasses.replace(on_ray, threads=3)
    said = r"--engine ray: no machine of the cluster has 3 CPUs \(runtime\.threads\) for a worker"
    with pytest.raises(UserError, match=said):
        outcome(large, pieces.begin_counting, [0], tmp_path, context)


@pytest.mark.slow
def test_another_version_of_cad_is_refused(on_ray, tmp_path, context, monkeypatch):
    monkeypatch.setattr("cad.engine.software_of", lambda begin: ("other", "2.0"))
    with pytest.raises(UserError, match="has another cad or torch; install the same on every machine"):
        outcome(on_ray, pieces.begin_counting, [0], tmp_path, context)
