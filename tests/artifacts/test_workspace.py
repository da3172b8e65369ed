import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import cad
from cad.artifacts import workspace
from cad.artifacts.workspace import work_folder
from cad.errors import UserError

IDENTITY = {"stage": "prior", "settings": {"steps": 20}, "inputs": {"input": "abc"}, "seed": 0}
OUT = Path("runs/robot/prior")


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fill(text: str) -> None:
    with workspace(OUT, IDENTITY) as work:
        (work / "result").write_text(text)
        (work / "half.tmp").write_text("rest of a killed write")


def test_the_output_appears_at_a_clean_end_and_nothing_else_stays():
    with workspace(OUT, IDENTITY) as work:
        (work / "result").write_text("done")
        assert not OUT.exists()
        assert work.parent == Path(".work")
    assert sorted(str(p) for p in Path().rglob("*") if p.is_file()) == ["runs/robot/prior/result"]
    assert not Path(".work").exists()


def test_a_failed_stage_resumes_in_the_same_folder_and_another_configuration_does_not():
    work = Path(".work")

    def broken() -> None:
        nonlocal work
        with workspace(OUT, IDENTITY) as work:
            (work / "shard").write_text("kept")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert not OUT.exists()
    with workspace(Path("runs/other"), {**IDENTITY, "seed": 1}) as other:
        assert list(other.iterdir()) == []
    with workspace(OUT, dict(reversed(IDENTITY.items()))) as again:  # the order of keys is no identity
        assert again == work
        assert (again / "shard").read_text() == "kept"


def test_rests_of_killed_writes_are_gone_before_the_stage_goes_on():
    """Each has a name of its own: they would add up, and a checkpoint is large."""

    def killed() -> None:
        with workspace(OUT, IDENTITY) as work:
            (work / "shard").write_text("kept")
            (work / "deep").mkdir()
            for name in ("model.safetensors.17-ab.tmp", "deep/model.safetensors.18-cd.tmp"):
                (work / name).write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        killed()
    with workspace(OUT, IDENTITY) as work:
        assert sorted(path.name for path in work.rglob("*")) == ["deep", "shard"]


def test_a_refused_input_leaves_nothing_but_a_note_of_it_which_the_next_run_clears():
    def refuse(out: Path, identity: dict) -> None:
        with pytest.raises(UserError, match="tiny"), workspace(out, identity):
            raise UserError("image.png: tiny;\n take a larger one")

    refuse(OUT, IDENTITY)
    refuse(Path("runs/robot/input"), {**IDENTITY, "stage": "input"})
    assert [path.name for path in Path().iterdir()] == [".work"]
    notes = [json.loads(path.read_text()) for path in Path(".work").iterdir()]
    assert sorted(note["out"] for note in notes) == ["runs/robot/input", "runs/robot/prior"]
    assert {note["error"] for note in notes} == {"image.png: tiny; take a larger one"}
    with workspace(OUT, {**IDENTITY, "seed": 1}) as work:  # other settings of the same stage clear it too
        assert len(list(Path(".work").glob("*.failed"))) == 1
        assert list(work.iterdir()) == []


def test_an_interrupt_is_no_failure():
    def stop() -> None:
        with workspace(OUT, IDENTITY) as work:
            (work / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert list(Path(".work").iterdir()) == [work_folder(IDENTITY)]


def test_a_lock_that_somebody_holds_for_a_moment_is_waited_for():
    work = work_folder(IDENTITY)
    work.parent.mkdir()
    with work.with_name(f"{work.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as `cad status` does
        release = threading.Timer(0.05, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        release.start()
        fill("done")
        release.join()
    assert (OUT / "result").read_text() == "done"


def test_an_existing_output_is_replaced_as_a_whole():
    OUT.mkdir(parents=True)
    (OUT / "stale").write_text("")
    fill("new")
    assert [p.name for p in OUT.iterdir()] == ["result"]
    assert [p.name for p in OUT.parent.iterdir()] == ["prior"]


@pytest.mark.parametrize("n", [1, 2])
def test_killed_between_the_renames_old_or_new_can_be_had(kills, n):
    fill("old")
    assert kills.before_rename(n, lambda: fill("new"))
    with workspace(OUT, IDENTITY) as work:
        assert (OUT / "result").read_text() == "old"
        assert (work / "result").read_text() == "new"  # resumed
    assert (OUT / "result").read_text() == "new"
    assert [p.name for p in OUT.parent.iterdir()] == ["prior"]


def test_a_former_output_left_beside_the_new_one_is_removed():
    fill("new")
    former = OUT.with_name("prior.old")
    former.mkdir()
    fill("newer")
    assert not former.exists()


def test_two_processes_cannot_work_in_one_folder():
    program = (
        "from pathlib import Path; from cad.artifacts import workspace\n"
        f"with workspace(Path('runs/b'), {IDENTITY!r}): pass"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cad.__file__).parents[1])}
    with workspace(OUT, IDENTITY) as work:
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert other.returncode != 0
        said = other.stderr.strip().splitlines()[-1]
        assert "UserError" in said
        assert str(work) in said
        assert f"process {os.getpid()} (for {OUT})" in said
        assert work.is_dir()
    with workspace(OUT, IDENTITY):  # and the lock is free again
        pass


def test_a_full_disk_inside_the_stage_is_one_line():
    with pytest.raises(UserError, match="no space left") as error, workspace(OUT, IDENTITY) as work:
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(work) in str(error.value)


def test_an_output_on_another_disk_is_copied_then_renamed(tmp_path):
    monkeypatch = pytest.MonkeyPatch()
    real = os.stat

    def stat(path, *rest, **named):
        found = real(path, *rest, **named)
        if Path(path) == OUT.parent:
            return os.stat_result([*found[:2], found.st_dev + 1, *found[3:10]])
        return found

    monkeypatch.setattr(os, "stat", stat)
    try:
        fill("far")
    finally:
        monkeypatch.undo()
    assert [p.name for p in OUT.parent.iterdir()] == ["prior"]
    assert (OUT / "result").read_text() == "far"


@pytest.mark.parametrize("call", ["open", "stat"])
def test_a_lock_whose_file_or_folder_vanishes_in_between_is_made_again(monkeypatch, call):
    """Another process ends at this moment: it unlinks the lock and removes the empty folder."""
    real, struck = getattr(Path, call), []

    def vanishing(self, *rest, **named):
        if self.suffix == ".lock" and not struck:
            struck.append(self)
            self.unlink(missing_ok=True)
            self.parent.rmdir()
        return real(self, *rest, **named)

    monkeypatch.setattr(Path, call, vanishing)
    fill("done")
    assert struck
    assert (OUT / "result").read_text() == "done"


def test_who_waits_for_a_lock_leaves_the_output_alone():
    """A former output is brought back by whoever holds the lock: its holder is about to rename."""
    fill("old")
    with workspace(OUT, IDENTITY):
        former = OUT.with_name("prior.old")
        OUT.rename(former)
        with pytest.raises(UserError, match="works there already"), workspace(OUT, IDENTITY):
            pass
        assert former.exists()
        assert not OUT.exists()
