"""What `cad doctor` says of DVC and W&B: programs off PATH, a store elsewhere, stages not run, runs not uploaded."""

import json
from pathlib import Path

import pytest

from cad.config import TABLES, Params
from cad.doctor import data, services
from cad.doctor.findings import BROKEN, MISSING, OK, UNKNOWN, Finding
from tests.doctor.conftest import BIN, only, program


def test_programs_off_path_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = services.program()
    assert (found.state, found.name, found.needed) == (MISSING, "dvc", True)
    assert f"source {BIN}/activate" in found.remedy
    for name in ("dvc", "cad"):
        program(tmp_path, name, "exit 0")
        assert services.program().name == {"dvc": "cad", "cad": "dvc"}[name]
    assert services.program().state == OK


def test_the_remote_is_looked_for_where_the_configuration_says(project: Params) -> None:
    record = data.read_record()
    Path("store").rename("elsewhere")
    found = services.remote(record)
    assert (found.state, found.needed) == (MISSING, False)
    assert str(Path("store").resolve()) in found.says
    Path(".dvc/config.local").write_text("['remote \"bundled\"']\n    url = ../elsewhere\n")
    assert services.remote(record).state == OK
    Path(".dvc/config.local").write_text("['remote \"bundled\"']\n    url = s3://bucket/store\n")
    assert services.remote(record).state == UNKNOWN
    Path(".dvc/config").write_text("[core]\n")
    assert services.remote(record).says == "none is configured"


def test_without_data_and_remote_the_job_cannot_run(project: Params) -> None:
    Path("store").rename("elsewhere")
    Path("data").rename("former")
    record = data.read_record()
    assert services.remote(record).needed
    assert services.pulled(record).needed


def test_the_lock_file_is_compared_with_the_settings(params: Params) -> None:
    never = services.lock(params)
    assert (never.state, never.needed) == (MISSING, False)
    assert "16 never run (input@robot, input@car, prior@robot and 13 more)" in never.says
    recorded = {"params": {"params.yaml": {"seed": 0}}}
    stages = {f"{stage}@{entry}": recorded for stage in TABLES for entry in ("robot", "car")}
    stages["stage1@car"] = {"params": {"params.yaml": {"seed": 1}}}
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    assert services.lock(params).says == "15 of 16 stages are up to date; 1 outdated (stage1@car)"
    stages["stage1@car"] = recorded
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    assert services.lock(params).state == OK


def test_a_full_disk_is_needed_space(monkeypatch: pytest.MonkeyPatch) -> None:
    assert services.disk().state == OK or services.disk().needed
    monkeypatch.setattr(services, "LEAST_DISK", 1e12)
    assert (services.disk().state, services.disk().needed) == (MISSING, True)


def test_tracking_is_told_without_starting_it(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(mode: str) -> Finding:
        changed = params.model_copy(update={"tracking": params.tracking.model_copy(update={"mode": mode})})
        return only(services.examine_wandb(changed), "mode")

    assert said("auto").says == "offline (of auto); no API key"
    assert said("disabled").says == "disabled; no API key"
    assert (said("online").state, said("online").needed) == (BROKEN, True)
    assert "set WANDB_API_KEY" in said("online").remedy
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert said("auto").says == "online (of auto); an API key is found"
    assert only(services.examine_wandb(None), "mode").state == UNKNOWN
    assert "wandb" not in {path.name for path in Path().iterdir()}


def test_offline_runs_wait_until_they_are_synced() -> None:
    for name in ("offline-run-1", "offline-run-2", "run-3"):
        Path("wandb", name).mkdir(parents=True)
        Path("wandb", name, "run-a.wandb").write_bytes(b"")
    assert "2 offline runs are not uploaded" in only(services.examine_wandb(None), "offline runs").says
    for number in (1, 2):
        Path(f"wandb/offline-run-{number}/run-a.wandb.synced").touch()
    assert only(services.examine_wandb(None), "offline runs").says == "none"
