"""`cad doctor` as a whole: settings that are broken, a sound project, an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cad.doctor import report
from cad.doctor.findings import BROKEN, MISSING
from cad.errors import UserError
from tests.doctor.conftest import BIN, ROOT


def test_settings_that_are_missing_or_broken_are_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    found, settings = report.examine_settings(path)
    assert settings is None
    assert (found[0].state, found[0].needed) == (MISSING, True)
    path.write_text("prior: [")
    assert report.examine_settings(path)[0][0].state == BROKEN
    spoilt, count = re.subn(r"(?m)^  poses: \d+$", "  poses: many", (ROOT / "params.yaml").read_text())
    assert count == 1
    path.write_text(spoilt)
    (fault,), _ = report.examine_settings(path)
    assert "prior.poses: input should be a valid integer" in fault.says
    assert fault.remedy == "correct it"
    with pytest.raises(UserError, match=r"prior\.poses.*; correct it \(and 1 more, see above\)"):
        report.refuse([fault, fault])


def doctor(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "cad.cli.main", "doctor", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


def tree(folder: Path) -> dict[str, int]:
    return {path.as_posix(): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_a_sound_project_gets_code_0_and_nothing_is_written(tmp_path: Path) -> None:
    for name in ("params.yaml", "data.dvc"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text((ROOT / ".dvc/config").read_text())
    for name in ("data", "store"):
        (tmp_path / name).symlink_to((ROOT / name).resolve())
    before = tree(tmp_path)
    ended = doctor(tmp_path, "--json")
    assert ended.returncode == 0, ended.stderr
    content = json.loads(ended.stdout)
    assert content["can_run"] is True
    areas = {finding["area"] for finding in content["findings"]}
    assert areas == {"device", "compiler", "renderer", "versions", "settings", "weights", "inputs", "W&B", "DVC"}
    assert {finding["name"] for finding in content["findings"] if finding["state"] == BROKEN} <= {"data.dvc"}
    assert tree(tmp_path) == before


def test_an_empty_folder_gets_the_table_one_line_and_code_2(tmp_path: Path) -> None:
    ended = doctor(tmp_path)
    assert ended.returncode == 2
    assert [line for line in ended.stderr.splitlines() if not line.startswith("cad: ")] == [
        "error: settings, params.yaml: params.yaml: does not exist; run from the repository's root or name it with "
        "--params (and 1 more, see above)"
    ]
    assert "versions: torch" in ended.stdout
    assert "DVC: data.dvc" in ended.stdout
    assert list(tmp_path.iterdir()) == []
