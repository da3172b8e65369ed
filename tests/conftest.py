"""What slow tests share: two fresh clones in which the smoke profile has run, made once and side by side."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def killing() -> ModuleType:
    """benchmarks/kills.py as a module: benchmarks/ is no package."""
    spec = importlib.util.spec_from_file_location("kills", ROOT / "benchmarks/kills.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def clones(killing: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two clones of what is committed, each with its own data, code and run; only the first one writes bytecode."""
    place = tmp_path_factory.mktemp("clones")

    def make(name: str, without_bytecode: str) -> Path:
        folder = place / name
        killing.clone(folder)
        command = ("dvc", "exp", "run", "-S", "profile=smoke")
        killing.call(folder, *command, PYTHONDONTWRITEBYTECODE=without_bytecode)  # Python takes "" for unset
        return folder

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(make, ("first", "second"), ("", "1"))
    return first, second
