"""Too little memory: which exceptions are one, and that every command of the pipeline says so in one line."""

import pytest
import torch

from cad.cli import main as cli
from cad.cli import stage
from cad.errors import UserError
from cad.memory import ELSEWHERE, memory_named
from cad.stages import STAGES

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried ...")
COMMANDS = {
    "input": ("input",), "prior": ("prior", "sample"), "prune": ("prior", "prune"), "refine": ("prior", "refine"),
    "stage1": ("train", "stage1"), "stage2": ("train", "stage2"), "orbit": ("orbit",), "evaluate": ("evaluate",),
}  # fmt: skip


@pytest.mark.parametrize("fault", [CUDA, CPU, MemoryError()])
def test_lack_of_memory_is_one_line_that_names_what_did_not_fit(fault):
    with pytest.raises(UserError, match=r"^unet: too little memory; take a smaller `batch`"), memory_named("unet"):
        raise fault


def test_the_remedy_can_be_another():
    said = r"^cup: too little memory; close what else .*runtime\.device"
    with pytest.raises(UserError, match=said), memory_named("cup", ELSEWHERE):
        raise MemoryError


def test_other_faults_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), memory_named("unet"):
        raise RuntimeError("shapes differ")


def ended(monkeypatch, capsys, *arguments):
    """Exit code and lines on stderr of a command."""
    monkeypatch.setattr("sys.argv", ["cad", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_names_itself(monkeypatch, capsys, name):
    def run_stage(*arguments):
        raise CUDA

    monkeypatch.setattr(stage, "run_stage", run_stage)
    code, (line,) = ended(monkeypatch, capsys, *COMMANDS[name], "robot")
    assert code == 2
    assert line.startswith(f"error: {name} robot: too little memory; take a smaller `batch`")


@pytest.mark.parametrize(
    ("arguments", "function"),
    [
        (("object", "elevation", "robot"), "cad.inputs.elevation.estimate_named"),
        (("object", "imagine", "a cup", "--name", "cup"), "cad.inputs.drawing.draw"),
        (("object", "add", "cup.png"), "cad.inputs.objects.add_object"),
        (("run", "cup.png"), "cad.inputs.objects.add_object"),
    ],
)
def test_every_command_for_pictures_names_it(monkeypatch, capsys, tmp_path, arguments, function):
    """Whatever network it was: matting, caption, drawing or views."""
    import shutil
    from pathlib import Path

    from PIL import Image

    from cad.config.compose import composed_text

    root = Path(__file__).parents[1]
    shutil.copytree(root / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(composed_text("mini", ["robot"], Path("experiments")))
    Image.new("RGB", (300, 300), "white").save("cup.png")

    def fail(*arguments, **named):
        raise CPU

    monkeypatch.setattr(function, fail)
    code, (line,) = ended(monkeypatch, capsys, *arguments)
    assert code == 2
    assert line.startswith(("error: cup", "error: robot"))
    assert "too little memory; close what else uses it" in line
