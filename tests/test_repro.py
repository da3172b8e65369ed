"""`cad repro` on a small pipeline: what `dvc repro` would do, side by side."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cad.config import load
from cad.errors import UserError
from cad.repro import graph, reproduce, side_by_side

ROOT = Path(__file__).parents[1]
# Each of the two first stages waits until the other has begun: one after the other, they would never end.
MEET = "touch {here}.begun; for i in $(seq 200); do test -e {other}.begun && break; sleep 0.05; done"
MEET += "; test -e {other}.begun && echo saw {other} | tee {here}"


def dvc(*arguments):
    return subprocess.run(["dvc", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """This environment is active, whatever runs the tests."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """Writes dvc.yaml of these commands in a folder of DVC's: stage to (command, file it reads or None)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    dvc("init", "--no-scm", "--quiet")

    def write(**stages):
        Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {
            name: {"cmd": command, "outs": [name]} | ({"deps": reads} if reads else {})
            for name, (command, reads) in stages.items()
        }}))  # fmt: skip

    return write


def test_a_graph_is_read_from_what_dvc_prints():
    dot = 'strict digraph {\n"data.dvc";\n"a@x";\n"b@x";\n"c";\n"data.dvc" -> "a@x";\n"a@x" -> "c";\n"b@x" -> "c";\n}'
    assert graph(dot) == {"a@x": set(), "b@x": set(), "c": {"a@x", "b@x"}}


def test_stages_that_do_not_wait_run_side_by_side_and_the_lock_file_is_that_of_dvc(pipeline, capfd):
    pipeline(
        left=(MEET.format(here="left", other="right"), None),
        right=(MEET.format(here="right", other="left"), None),
        both=("cat left right > both", ["left", "right"]),
    )
    reproduce(2)
    assert Path("both").read_text() == "saw right\nsaw left\n"
    printed = capfd.readouterr().err
    assert "[left] saw right\n" in printed
    assert "[right] saw left\n" in printed
    recorded = Path("dvc.lock").read_text()
    assert "up to date" in dvc("repro")
    dvc("repro", "--force")  # the files that they wait for are there now
    assert yaml.safe_load(Path("dvc.lock").read_text()) == yaml.safe_load(recorded)


def test_what_has_not_changed_is_not_run_again(pipeline):
    pipeline(one=("echo 1 >> count; touch one", None), two=("echo 2 >> count; cp source two", ["source"]))
    Path("source").write_text("old")
    reproduce(1)
    Path("source").write_text("new")
    reproduce(1)
    assert Path("count").read_text() == "1\n2\n2\n"


def test_of_some_stages_only_they_and_what_they_share_with_others_are_run(pipeline):
    pipeline(
        shared=("touch shared", None), wanted=("touch wanted", ["shared"]), other=("touch other", ["shared"]),
    )  # fmt: skip
    reproduce(1, ["wanted"])
    assert [name for name in ("shared", "wanted", "other") if Path(name).exists()] == ["shared", "wanted"]


def test_a_stage_that_fails_is_named_and_nothing_is_begun_after_it(pipeline, capfd):
    pipeline(
        bad=("echo the reason >&2; exit 3", None), below=("touch below", ["bad"]), apart=("touch apart", ["below"])
    )
    with pytest.raises(UserError, match=r"^bad: failed, see above; `cad repro` goes on"):
        reproduce(2)
    assert "[bad] the reason\n" in capfd.readouterr().err
    assert not Path("below").exists()
    assert not Path("apart").exists()


def test_without_a_pipeline_the_error_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^dvc.yaml: .*; run this in the repository's folder$"):
        reproduce(1)


def test_without_dvc_the_error_says_where_it_is(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"^dvc: is not found; activate"):
        reproduce(1)


def test_stages_share_the_cores_but_never_a_gpu(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    params = load(ROOT / "params.yaml")

    def jobs(device, threads):
        runtime = params.runtime.model_copy(update={"device": device, "threads": threads})
        return side_by_side(params.model_copy(update={"runtime": runtime}))

    assert [jobs("cpu", 1), jobs("cpu", 3), jobs("cpu", 8), jobs("auto", 1), jobs("cuda", 2)] == [4, 1, 1, 1, 1]
