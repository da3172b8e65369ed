"""`make clean` removes what can be made again in seconds, and no training that took hours."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_clean_leaves_small_models_tuning_and_results(tmp_path: Path) -> None:
    gone = [".work/0123456789abcdef/state.json", ".work/0123456789abcdef.lock", ".work/fedcba9876543210.failed"]
    gone += [".mypy_cache/x", "cad/__pycache__/a.pyc"]
    kept = [".work/toyworld/zero123/state.safetensors", ".work/tuning/runs/car3/stage1.made", ".work/0123/x"]
    kept += [".work/tuning/.work/0123456789abcdef/x", "runs/robot/prior/x", "tests/a.py", "cad/a.py"]
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    def clean() -> None:
        subprocess.run(["make", "-f", ROOT / "Makefile", "clean"], cwd=tmp_path, check=True, capture_output=True)

    clean()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    shutil.rmtree(tmp_path / ".work")
    clean()
