"""What W&B holds after real stages, run through the command line and read back from the offline runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cad.artifacts import digest, read_image, read_json, read_parquet

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tracked(project: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The project with offline tracking, and no account of the person who runs the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DATA_DIR", str(project / "wandb"))
    monkeypatch.setenv("NETRC", str(project / "netrc"))
    project.change({"tracking.mode": "auto"})
    return project


def offline_run(project: Any) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """The folder of the only run, its summary and its records, by W&B's own program."""
    (run,) = (project / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json"]
    read = [
        subprocess.run([*command, *option, str(run)], check=True, capture_output=True, text=True).stdout
        for option in (["--summary"], [])
    ]
    return run, json.loads(read[0]), [json.loads(line) for line in read[1].splitlines() if line]


def test_a_training_is_tracked_whole(tracked: Any, cad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cad.train.loop.LOG_STEPS", 1)
    tracked.give_cache("refine")
    short = {"stage1.kimg": 0.008, "stage1.preview_seconds": 1e-6}
    tracked.change({**short, "stage1.r1_gamma": 0.3, "stage1.r1_interval": 2})
    assert cad("train", "stage1", "robot").code == 0
    run, summary, records = offline_run(tracked)
    assert (summary["name"], summary["exit_code"]) == ("robot/stage1", 0)

    config = summary["config"]
    assert config["settings"]["r1_gamma"] == 0.3
    assert config["networks"]["generator"]["plane_resolution"] == 8
    assert config["networks"]["discriminator"]["mbstd_group"] == 2
    assert config["inputs"] == {"refine": digest(tracked / "runs/robot/refine")}
    assert (config["seed"], config["object"], config["git_commit"]) == (0, "robot", None)  # no repository there

    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    wanted = {"loss_g", "loss_d", "d_real_sign", "d_fake_sign", "ada_p", "sec_per_kimg", "peak_memory_mb"}
    assert {item["_step"] for item in history} == {1, 2, 3, 4}
    assert all(wanted <= set(item) for item in history)
    assert [item["_step"] for item in history if "r1" in item] == [1, 3]  # every 2 steps, from the first
    assert [item["_step"] for item in history if "density" in item] == [1]  # every 4
    shown = sorted((run / "files/media/images").glob("preview_*.png"))
    assert len({path.name.split("_")[1] for path in shown}) == 4  # as often as its time has come, here each step
    last = max(shown, key=lambda path: int(path.name.split("_")[1]))
    assert (read_image(last) == read_image(tracked / "runs/robot/stage1/preview.png")).all()

    made = read_json(run / "artifacts.json")["artifacts"]["robot-stage1"]
    assert made["sha256"] == digest(tracked / "runs/robot/stage1")
    assert "commit" in made


def test_decisions_are_tracked_beside_the_samples(tracked: Any, cad: Any) -> None:
    tracked.give_input()
    tracked.give_cache("prior")
    tracked.change({"models.clip": str(ROOT / "data/weights/clip")})
    assert cad("prior", "prune", "robot").code == 0
    _, _, records = offline_run(tracked)
    contents = [
        each
        for record in records
        if record["type"] == "artifact"
        for each in record["artifact"]["manifest"]["contents"]
    ]
    places = {each["path"]: each.get("local_path") for each in contents}
    table = read_json(Path(places["prune/decisions.table.json"]))
    decisions = read_parquet(tracked / "runs/robot/prune/decisions.parquet")
    assert table["columns"] == [*decisions.columns, "samples"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["pose"] for row in rows] == decisions["pose"].tolist()
    assert [row["kept"] for row in rows] == decisions["kept"].tolist()
    assert [row["reason"] for row in rows] == decisions["reason"].tolist()
    assert read_image(Path(places[rows[0]["samples"]["path"]])).shape == (32, 64, 3)  # both samples side by side


def test_a_refused_input_is_one_line_and_a_failed_run(tracked: Any, cad: Any) -> None:
    (tracked / "data/objects/robot/prompt.txt").write_text("")
    ended = cad("input", "robot")
    assert ended.code == 2
    assert len(ended.err) == 1
    assert not (tracked / "runs").exists()
    assert offline_run(tracked)[1]["exit_code"] == 1
