"""What tests share: GPU tests are skipped without a GPU; two clones in which the smoke profile has run, made once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kills
import pytest
import torch

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where torch sees no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))


@pytest.fixture(scope="session")
def clones(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two clones of what is committed, each with its own data, code and run; only the first one writes bytecode."""
    place = tmp_path_factory.mktemp("clones")

    def make(name: str, without_bytecode: str) -> Path:
        folder = place / name
        kills.clone(folder)
        command = ("dvc", "exp", "run", "-S", "profile=smoke")
        kills.call(folder, *command, PYTHONDONTWRITEBYTECODE=without_bytecode)  # Python takes "" for unset
        return folder

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(make, ("first", "second"), ("", "1"))
    return first, second
