import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cad
from cad.artifacts import digest, read_image, read_json, write_video
from cad.errors import UserError
from cad.tracking import Tracker, git_commit, has_key, open_tracker


@dataclass(frozen=True)
class Settings:
    """Stands for cad.config.TrackingSettings."""

    mode: str
    project: str = "cad"


@pytest.fixture(autouse=True)
def _no_account(tmp_path, monkeypatch):
    """Every test in an empty folder, with no key and no settings of the person who runs it."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def repository(tmp_path) -> str:
    for command in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m first"):
        subprocess.run(["git", *command.split()], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return head.stdout.strip()


def inspect(run: Path, *options: str) -> list[dict]:
    """The records of an offline run, read by W&B's own program."""
    program = Path(sys.executable).parent / "wandb"
    command = [str(program), "leet", "inspect", "--json", *options, str(run)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(done.stdout)] if options else [json.loads(line) for line in done.stdout.splitlines() if line]


def test_an_offline_run_reads_back(tmp_path, repository, capfd):
    grid = np.full((4, 6, 3), 200, np.uint8)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "weights").write_bytes(b"weights")
    write_video(tmp_path / "turn.mp4", [np.zeros((16, 16, 3), np.uint8)] * 2, 8)
    config = {"seed": 0, "prior": {"steps": 20, "guidance": 3.0}}
    with open_tracker(Settings("auto"), "stage1", "robot-n1", config, {"refine": "d" * 64}) as tracker:
        assert tracker.active
        tracker.log({"loss/g": 0.75, "ada_p": 0.0}, 8)
        tracker.image("preview", grid, 8)
        tracker.log({"loss/g": 0.5, "ada_p": 0.125}, 16)
        tracker.log({"late": 1.0}, 4)  # a step from before is kept, not dropped
        tracker.video("orbit/3d", tmp_path / "turn.mp4")
        tracker.table("samples", ["pose", "kept", "picture"], [[3, True, grid], [4, None, grid]])
        tracker.table("frames", pd.DataFrame({"row": ["3d", None], "score": [0.25, float("nan")]}))
        tracker.artifact("robot-n1/stage1", tmp_path / "made", "checkpoint")
        assert tracker.active
    assert capfd.readouterr() == ("", "")

    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (summary,) = inspect(run, "--summary")
    assert summary["name"] == "robot-n1/stage1"
    assert summary["project"] == "cad"
    assert summary["exit_code"] == 0
    wanted = {**config, "stage": "stage1", "entry": "robot-n1", "inputs": {"refine": "d" * 64}}
    assert {key: summary["config"][key] for key in wanted} == wanted
    assert summary["config"]["git_commit"] == repository

    history = [record["history"]["item"] for record in inspect(run) if record["type"] == "history"]
    logged = {item["_step"]: item for item in history}
    assert {step: item["loss/g"] for step, item in logged.items()} == {8: 0.75, 16: 0.5}
    assert logged[16]["ada_p"] == 0.125
    assert logged[16]["late"] == 1.0
    media = run / "files" / "media"
    np.testing.assert_array_equal(read_image(next((media / "images").glob("preview_8_*.png"))), grid)
    assert len(list((media / "videos").rglob("*.mp4"))) == 1
    records = [record["artifact"] for record in inspect(run) if record["type"] == "artifact"]
    # W&B keeps a table as an artifact of its own: the rows, and the pictures beside them.
    files = {each["path"]: each.get("local_path") for record in records for each in record["manifest"]["contents"]}
    samples, frames = (read_json(Path(files[f"{name}.table.json"])) for name in ("samples", "frames"))
    assert samples["columns"] == ["pose", "kept", "picture"]
    assert [row[:2] for row in samples["data"]] == [[3, True], [4, None]]
    np.testing.assert_array_equal(read_image(Path(files[samples["data"][1][2]["path"]])), grid)
    assert frames["data"] == [["3d", 0.25], [None, None]]

    entry = read_json(run / "artifacts.json")["artifacts"]["robot-n1/stage1"]
    assert entry["sha256"] == digest(tmp_path / "made")
    assert entry["commit"] == repository
    (recorded,) = [record for record in records if record["type"] == "checkpoint"]
    assert recorded["name"] == "robot-n1-stage1"
    assert json.loads(recorded["metadata"])["sha256"] == digest(tmp_path / "made")
    assert recorded["manifest"]["contents"][0]["ref"] == (tmp_path / "made" / "weights").as_uri()


def test_a_failed_stage_is_a_failed_run(tmp_path):
    with pytest.raises(UserError), open_tracker(Settings("offline"), "prior", "robot", {}, {}):
        raise UserError("a: b; c")
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert inspect(run, "--summary")[0]["exit_code"] == 1


class Faulty:
    """A run whose every call fails."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("the service went away\nat some line")


def test_a_fault_warns_once_and_the_stage_goes_on(tmp_path, capsys):
    tracker = Tracker(Faulty(), None)
    tracker.log({"loss": 1.0}, 1)
    assert not tracker.active
    tracker.log({"loss": 1.0}, 2)
    tracker.image("a", np.zeros((2, 2, 3), np.uint8), 2)
    tracker.table("t", ["a"], [[1]])
    tracker.video("v", tmp_path / "v.mp4")
    tracker.artifact("x", tmp_path, "prior")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["warning: W&B failed (the service went away); this stage goes on without tracking"]


def test_a_fault_at_the_start_and_at_the_end_warns_too(monkeypatch, capsys):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **settings: Faulty())
    with open_tracker(Settings("offline"), "prior", "robot", {}, {}) as tracker:
        assert tracker.active
    assert capsys.readouterr().err.count("warning: W&B failed") == 1

    def refuse(**settings):
        raise wandb.errors.CommError("no network")

    monkeypatch.setattr(wandb, "init", refuse)
    with open_tracker(Settings("offline"), "prior", "robot", {}, {}) as tracker:
        assert not tracker.active
        tracker.log({"loss": 1.0}, 1)
    assert capsys.readouterr().err == "warning: W&B failed (no network); this stage goes on without tracking\n"


def test_disabled_needs_no_wandb_and_writes_nothing(tmp_path):
    program = (
        "import sys; from types import SimpleNamespace; from cad.tracking import open_tracker\n"
        "with open_tracker(SimpleNamespace(mode='disabled', project='cad'), 'prior', 'robot', {}, {}) as tracker:\n"
        "    tracker.log({'a': 1.0}, 1); assert not tracker.active\n"
        "assert 'wandb' not in sys.modules and 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cad.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []


def test_no_other_file_imports_wandb():
    folder = Path(cad.__file__).parent
    found = [
        p.name for p in folder.rglob("*.py") if any(f"{word} wandb" in p.read_text() for word in ("import", "from"))
    ]
    assert found == ["tracking.py"]


def test_online_without_a_key_is_one_line():
    with pytest.raises(UserError, match=r"tracking\.mode: online needs a key"):  # noqa: SIM117
        with open_tracker(Settings("online"), "prior", "robot", {}, {}):
            pass


def test_auto_is_online_with_a_key_only(monkeypatch):
    import wandb

    modes = []

    def init(**settings):
        modes.append(settings["mode"])
        raise RuntimeError("enough")

    monkeypatch.setattr(wandb, "init", init)
    for key in (None, "0" * 40):
        if key:
            monkeypatch.setenv("WANDB_API_KEY", key)
        with open_tracker(Settings("auto"), "prior", "robot", {}, {}):
            pass
    assert modes == ["offline", "online"]


@pytest.mark.parametrize(
    ("content", "server", "found"),
    [
        (None, None, False),
        ("machine api.wandb.ai login user password x", None, True),
        ("machine example.org login user password x", None, False),
        ("machine wandb.example.org login user password x", "https://wandb.example.org", True),
        ("machine api.wandb.ai login user password x", "https://wandb.example.org", False),
        ("machine", None, False),
    ],
)
def test_a_key_is_looked_for_where_wandb_looks(tmp_path, monkeypatch, content, server, found):
    if content is not None:
        (tmp_path / "netrc").write_text(content)
        (tmp_path / "netrc").chmod(0o600)
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert has_key() is found


def test_the_commit_says_when_files_differ_from_it(tmp_path, repository):
    assert git_commit() == repository
    (tmp_path / "a").write_text("1")
    subprocess.run(["git", "add", "a"], check=True)
    assert git_commit() == repository + "+"


def test_outside_a_repository_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
