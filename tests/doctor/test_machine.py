"""What `cad doctor` says of processor, compiler and GPUs, where their programs are there, gone or broken."""

import os
from pathlib import Path

import pytest
import torch

from cad.config import Params
from cad.doctor import machine
from cad.doctor.findings import BROKEN, MISSING
from tests.doctor.conftest import program


def test_the_processor_and_its_memory_are_named() -> None:
    assert f"{len(os.sched_getaffinity(0))} threads" in machine.processor().says
    assert "GiB" in machine.memory().says


def test_a_compiler_that_does_not_run_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "mycc", "exit 3")
    monkeypatch.setenv("CXX", str(tmp_path / "bin/mycc"))
    found = machine.cpp_compiler()
    assert (found.name, found.state) == ("mycc", BROKEN)
    program(tmp_path / "bin", "mycc", "echo mycc 4.2\necho more")
    assert machine.cpp_compiler().says == "mycc 4.2"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_torch_cannot_use_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params) -> None:
    cuda = params.model_copy(update={"runtime": params.runtime.model_copy(update={"device": "cuda"})})
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    program(tmp_path / "bin", "nvidia-smi", "exit 9")
    assert machine.visible_gpus() == []
    (none,) = machine.examine_gpus([], params)
    assert (none.state, none.needed, none.remedy) == (MISSING, False, "")
    (lost,) = machine.examine_gpus([], cuda)
    assert lost.needed
    program(tmp_path / "bin", "nvidia-smi", 'echo "NVIDIA T1, 8192 MiB, 580.1"')
    (found,) = machine.examine_gpus(machine.visible_gpus(), cuda)
    assert (found.name, found.state, found.needed) == ("GPU 0", BROKEN, True)
    assert found.says.startswith("NVIDIA T1, 8192 MiB, 580.1; torch ")
