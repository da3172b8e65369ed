"""What `cad status` says about folders as stages leave them, whole, half and damaged."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from cad import stages, status
from cad.config import Params, load
from cad.stages import STAGES, Stage
from cad.status import BROKEN, DONE, INTERRUPTED, MISSING, RUNNING, Row, show_status, survey

ROOT = Path(__file__).parents[1]
NAME = "0123456789abcdef"


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Settings of one object in an empty project folder."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "params.yaml").read_text().replace("mode: auto", "mode: disabled")
    (tmp_path / "params.yaml").write_text(text)
    return load(Path("params.yaml"))


def finish(stage: str, **files: str) -> Path:
    folder = Path("runs/robot") / stage
    folder.mkdir(parents=True)
    (folder / "lineage.json").write_text(json.dumps({"schema": 1, "stage": stage, "inputs": {}}))
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def work(out: str | None) -> tuple[Path, Path]:
    folder = Path(".work") / NAME
    folder.mkdir(parents=True)
    lock = folder.with_name(f"{NAME}.lock")
    if out:
        lock.write_text(f"process 1 (for {out})")
    return folder, lock


def row(params: Params, stage: str) -> Row:
    return next(row for row in survey(params)[0] if row.stage == stage)


def printed(params: Params) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    show_status(params, console)
    return console.export_text()


def test_an_empty_project_misses_everything(params: Params) -> None:
    rows, others = survey(params)
    assert [row.stage for row in rows if row.entry == "robot"] == list(STAGES)
    assert {row.state for row in rows} == {MISSING}
    assert others == []


def test_a_finished_stage_is_done_and_names_its_preview(params: Params) -> None:
    shards = {f"images-0000{k}.safetensors": "" for k in range(3)}
    finish("prior", cache_json=json.dumps({"shards": shards}), contact_png="")
    found = row(params, "prior")
    assert (found.state, found.progress.done, found.progress.total) == (DONE, 3, 3)
    assert found.preview == Path("runs/robot/prior/contact.png")
    assert "newest preview of robot: runs/robot/prior/contact.png" in printed(params)


def test_a_held_lock_is_running_with_an_estimate_of_the_time_left(params: Params) -> None:
    folder, lock = work("runs/robot/prior")
    poses, names = list(range(8)), ["images-00000.safetensors", "images-00001.safetensors"]
    layout = [2, 64, 2, poses, [0.0] * 8]
    (folder / "cache.partial.json").write_text(json.dumps({"layout": layout, "shards": dict.fromkeys(names, "")}))
    now = time.time()
    for name, age in zip(names, (80, 60), strict=True):
        (folder / name).write_text("")
        os.utime(folder / name, (now - age, now - age))
    os.utime(lock, (now - 100, now - 100))
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = row(params, "prior")
    assert found.state == RUNNING
    assert (found.progress.done, found.progress.total, found.progress.unit) == (2, 4, "shards")
    # 2 shards took 40 s, the last one was ready 60 s ago: the other two were due by now
    assert found.seconds_left == pytest.approx(0, abs=1)
    os.utime(folder / names[1], (now, now))  # 2 shards in 100 s, 2 to go
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert row(params, "prior").seconds_left == pytest.approx(100, abs=2)


def test_training_counts_images_and_estimates_only_what_one_process_did(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lock = work("runs/robot/stage1")
    total = params.stage1.kimg
    (folder / "state.json").write_text(json.dumps({"images": total * 250}))
    now = time.time()
    os.utime(lock, (now - 60, now - 60))
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(status, "_birth", lambda path: now - 60)
        found = row(params, "stage1")
        monkeypatch.setattr(status, "_birth", lambda path: now - 1000)
        resumed = row(params, "stage1")
    assert found.progress.done == pytest.approx(total / 4)
    assert found.progress.total == pytest.approx(total)
    assert found.seconds_left == pytest.approx(180, abs=3)
    assert resumed.seconds_left is None


def test_a_stale_lock_is_interrupted_unless_the_stage_was_done_since(params: Params) -> None:
    folder, _ = work("runs/robot/prune")
    assert row(params, "prune").state == INTERRUPTED
    os.utime(folder, (1, 1))
    finish("prune")
    assert row(params, "prune").state == DONE
    assert survey(params)[1] == [folder]
    assert "make clean" in printed(params)


@pytest.mark.parametrize("stage", ["input", "prior", "stage1", "evaluate"])
def test_a_folder_without_a_lock_is_recognised_by_what_it_was_made_from(
    params: Params, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is the one `run_stage` gives: an exception inside a stage leaves its folder and removes its lock."""
    described = STAGES[stage]
    fields = {key: getattr(described, key) for key in ("reads", "models", "source", "networks")}
    monkeypatch.setitem(stages.STAGES, stage, Stage("stand_in:function", **fields))
    monkeypatch.setattr(stages, "fix_environment", lambda threads: None)

    def stop(found: Stage) -> object:
        def function(out: Path, **arguments: object) -> None:
            (out / "half").write_text("")
            raise KeyboardInterrupt

        return function

    monkeypatch.setattr(stages, "_function", stop)
    monkeypatch.setattr("cad.context.prepare_device", lambda name, threads: None)
    for path in (params.objects["robot"].image, params.objects["robot"].prompt, params.models.zero123 + "/weights"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(path)
    for upstream in described.reads:
        finish(upstream)
    with pytest.raises(KeyboardInterrupt):
        stages.run_stage(stage, "robot", Path("params.yaml"))
    assert not list(Path(".work").glob("*.lock"))
    assert row(params, stage).state == INTERRUPTED
    assert [r.stage for r in survey(params)[0] if r.state == INTERRUPTED] == [stage]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lineage.json", "{"),
        ("lineage.json", '{"schema": 1, "stage": "orbit", "inputs": {}}'),
        ("state.json", "\x00"),
        ("state.json", '{"images": [1]}'),
        ("state.json", "[]"),
    ],
)
def test_a_broken_file_shows_as_such(params: Params, name: str, text: str) -> None:
    (finish("stage1") / name).write_text(text)
    found = row(params, "stage1")
    assert found.state == BROKEN
    assert found.fault
    assert f"broken: {found.fault}" in printed(params)


def test_a_broken_work_folder_is_still_interrupted(params: Params) -> None:
    folder, lock = work("runs/robot/prior")
    (folder / "cache.partial.json").write_text('{"layout": 3, "shards": {}}')
    assert (row(params, "prior").state, bool(row(params, "prior").fault)) == (INTERRUPTED, True)
    lock.write_bytes(b"\xff\xfe")
    assert survey(params)[1] == [folder]


def test_what_git_keeps_of_a_stage_does_not_make_it_done(params: Params) -> None:
    Path("runs/robot/evaluate").mkdir(parents=True)
    Path("runs/robot/evaluate/metrics.json").write_text("{}")
    assert row(params, "evaluate").state == MISSING


def test_an_orbit_counts_its_frames(params: Params) -> None:
    place = finish("orbit") / "2d/seed-0000"
    place.mkdir(parents=True)
    (place / "depth-000.png").write_text("")
    found = row(params, "orbit").progress
    assert (found.done, found.total) == (1, 2 * params.orbit.seeds * params.orbit.frames)


def test_the_command_ends_well_without_importing_torch(params: Params) -> None:
    run = "from cad.cli.main import app; app(['status'], standalone_mode=False)"
    code = f"import sys; {run}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "missing" in done.stdout
