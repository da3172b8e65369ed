"""The command line from outside: speed of help, exit codes, one-line errors, tracebacks of bugs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cad.cli import main as cli
from cad.errors import UserError

HEAVY = {"torch", "pandas", "numpy", "dvc", "wandb", "pydantic", "matplotlib", "transformers", "diffusers"}


def cad(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cad.cli.main", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    start = time.perf_counter()
    shown = cad("--help")
    seconds = time.perf_counter() - start
    assert shown.returncode == 0
    assert all(word in shown.stdout for word in ("input", "prior", "train", "orbit", "evaluate", "report", "toyworld"))
    assert seconds < 5  # 0.5 s on an idle machine; the imports below are what decides it
    code = "import sys, cad.cli.main; print(*{name.partition('.')[0] for name in sys.modules})"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(imported)


@pytest.mark.parametrize("group", [(), ("prior",), ("train",), ("report",), ("prior", "sample"), ("orbit",)])
def test_every_group_explains_itself(group: tuple[str, ...]) -> None:
    assert "Usage" in cad(*group, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prior", "sample", "robot"), "params.yaml: does not exist"),
        (("input", "robot", "--params", "other.yaml"), "other.yaml: does not exist"),
    ],
)
def test_a_users_fault_is_one_line_and_code_2(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = cad(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {said}")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_no_command_is_there_twice() -> None:
    groups = [cli.app, *(group.typer_instance for group in cli.app.registered_groups)]
    for group in groups:
        assert group is not None
        names = [str(each.name or each.callback.__name__) for each in group.registered_commands if each.callback]
        assert sorted(set(names)) == sorted(names)


def test_an_unknown_command_is_code_2() -> None:
    assert cad("prior", "smaple", "robot").returncode == 2


def test_several_lines_are_joined(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("file: is\n  wrong; mend it")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == "error: file: is wrong; mend it\n"


def test_an_interrupt_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    with pytest.raises(SystemExit, match="130"):
        cli.main()


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ValueError, match="a bug"):
        cli.main()
