"""What `cad status` says about folders as stages leave them, whole, half and damaged."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from cad import stages, status
from cad.config import Params, load
from cad.errors import UserError
from cad.stages import STAGES, run_stage
from cad.status import BROKEN, DONE, FAILED, INTERRUPTED, MISSING, OUTDATED, RUNNING, Row, show_status, survey

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
    if stage in ("prior", "refine"):
        (folder / "cache.json").write_text(json.dumps({"shards": {}}))
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


@pytest.fixture
def run(params: Params, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a stage of the robot's whose function writes a file, unless told not to, and raises the error it is given."""

    def run(stage: str, error: BaseException | None, writes: bool = True) -> None:
        def function(out: Path, **arguments: object) -> None:
            if writes:
                (out / "half").write_text("")
            if error:
                raise error

        monkeypatch.setattr(stages, "_function", lambda found: function)
        if error is None:
            run_stage(stage, "robot", Path("params.yaml"))
            return
        with pytest.raises(type(error)):
            run_stage(stage, "robot", Path("params.yaml"))

    monkeypatch.setattr(stages, "fix_environment", lambda threads: None)
    monkeypatch.setattr("cad.context.prepare_device", lambda name, threads: SimpleNamespace(type="cpu"))
    monkeypatch.setattr("cad.render.choice.library", lambda: None)  # nothing is rendered, so nothing is compiled
    for path in (params.objects["robot"].image, params.objects["robot"].prompt, params.models.zero123 + "/weights"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(path)
    return run


def changed(old: str, new: str) -> Params:
    """The settings after an edit of their file."""
    file = Path("params.yaml")
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return load(file)


@pytest.mark.parametrize("stage", ["input", "prior", "stage1", "evaluate"])
def test_a_folder_without_a_lock_is_recognised_by_what_it_was_made_from(
    params: Params, stage: str, run: Callable[..., None]
) -> None:
    """An interrupt leaves a stage's folder and removes its lock."""
    for upstream in STAGES[stage].reads:
        finish(upstream)
    run(stage, KeyboardInterrupt())
    assert not list(Path(".work").glob("*.lock"))
    assert row(params, stage).state == INTERRUPTED
    assert [r.stage for r in survey(params)[0] if r.state == INTERRUPTED] == [stage]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("two\nlines"), "RuntimeError: two lines"),
        (UserError("image.png: is\n odd; mend it"), "image.png: is odd; mend it"),
        (AssertionError(), "AssertionError:"),
        (ValueError("long " * 1000), "ValueError: long long"),
    ],
)
@pytest.mark.parametrize("writes", [True, False])
def test_a_stage_whose_last_run_ended_in_an_error_has_failed_until_it_runs_again(
    params: Params, run: Callable[..., None], error: Exception, said: str, writes: bool
) -> None:
    run("input", error, writes)
    found = row(params, "input")
    assert (found.state, found.fault.startswith(said), "\n" in found.fault) == (FAILED, True, False)
    assert len(found.fault) <= 300
    assert f"failed: robot input: {found.fault}" in printed(params)
    assert survey(params)[1] == [], "it belongs to the present settings"
    assert [each.state for each in survey(params)[0] if each.entry == "robot"].count(FAILED) == 1
    run("input", KeyboardInterrupt(), writes)
    assert row(params, "input").state == (INTERRUPTED if writes else MISSING)
    run("input", error, writes)
    run("input", None)
    assert row(params, "input").state == DONE
    assert not Path(".work").exists()


def test_a_failure_of_other_settings_is_gone_with_them(params: Params, run: Callable[..., None]) -> None:
    run("input", RuntimeError("too small"))
    (folder,) = (path for path in Path(".work").iterdir() if path.is_dir())
    other = changed("min_side: 32", "min_side: 33")
    assert row(other, "input").state == MISSING
    assert survey(other)[1] == [folder]
    run("input", None)
    assert row(other, "input").state == DONE
    assert row(changed("min_side: 33", "min_side: 32"), "input").state == DONE, "by no record it is of other settings"
    assert not list(Path(".work").glob("*.failed"))


def test_a_damaged_note_is_no_reason_to_stop(params: Params, run: Callable[..., None]) -> None:
    run("input", RuntimeError("first"))
    (note,) = Path(".work").glob("*.failed")
    note.write_text("{")
    found = row(params, "input")
    assert (found.state, "note cannot be read" in found.fault) == (FAILED, True)
    run("input", None)
    assert not note.exists()


def record(stage: str, sections: dict[str, object], upstream: str = "", digests: tuple[str, str] = ("", "")) -> None:
    """Write into dvc.lock what DVC would after a run of the robot's stage."""
    file = Path("dvc.lock")
    content = json.loads(file.read_text()) if file.exists() else {"schema": "2.0", "stages": {}}
    content["stages"][f"{stage}@robot"] = {
        "deps": [{"path": f"runs/robot/{upstream}", "md5": digests[0]}, {"path": "cad/camera.py", "md5": "0"}],
        "params": {"params.yaml": sections},
        "outs": [{"path": f"runs/robot/{stage}", "md5": digests[1]}],
    }
    file.write_text(json.dumps(content))  # JSON is YAML


def test_changed_settings_make_a_finished_stage_and_what_lies_below_it_outdated(params: Params) -> None:
    dump = params.model_dump()
    for stage, upstream in (("input", ""), ("prior", "input"), ("prune", "prior")):
        finish(stage)
        record(stage, {stage: dump[stage], f"{stage}s.robot": dump[f"{stage}s"]["robot"]}, upstream)
    finish("refine")  # DVC knows nothing of it
    states = [DONE] * 4 + [MISSING] * 4
    assert [each.state for each in survey(params)[0] if each.entry == "robot"] == states
    steps = params.prior.steps
    other = changed(f"  steps: {steps}\n  guidance: {params.prior.guidance}", "  steps: 99\n  guidance: 1")
    assert [each.state for each in survey(other)[0] if each.entry == "robot"] == [DONE] + [OUTDATED] * 3 + [MISSING] * 4
    was = f"prior.guidance was {params.prior.guidance}, is 1.0, prior.steps was {steps}, is 99"
    assert row(other, "prior").fault == was
    assert row(other, "refine").fault == "", "the reason stands at the prior"
    assert f"outdated: robot prior: {was}\n" in printed(other)
    assert [each.state for each in survey(params)[0] if each.entry == "robot"] == states, "and back"


def test_an_overridden_entry_is_outdated_alone(params: Params) -> None:
    finish("prior")
    record("prior", {"prior": params.prior.model_dump(), "priors.robot": {"input": "robot", "samples": 1}})
    assert row(params, "prior").fault == "priors.robot.samples is gone"


def test_an_upstream_folder_made_again_makes_a_finished_stage_outdated(params: Params) -> None:
    for stage in ("input", "prior"):
        finish(stage)
    record("input", {}, digests=("", "new"))
    record("prior", {}, "input", digests=("old", ""))
    assert row(params, "prior").fault == "runs/robot/input has been made again since"
    record("prior", {}, "input", digests=("new", ""))
    assert row(params, "prior").state == DONE


def test_what_lies_below_a_running_stage_is_outdated_and_below_a_missing_one_is_not(params: Params) -> None:
    finish("prune")
    assert row(params, "prune").state == DONE, "it may have come alone, by `dvc pull`"
    _, lock = work("runs/robot/prior")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert (row(params, "prior").state, row(params, "prune").state) == (RUNNING, OUTDATED)


@pytest.mark.parametrize("text", ["", "[", "[]", "stages: []", "stages: {prior@robot: 3}", "stages: {prior@robot: {}}"])
def test_a_lock_file_that_says_nothing_is_none(params: Params, text: str) -> None:
    finish("prior")
    Path("dvc.lock").write_text(text)
    assert row(params, "prior").state == DONE


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
