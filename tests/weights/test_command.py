"""`cad weights`: the list without a network, and files that are on no hub."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cad.cli import weights as command
from cad.errors import UserError
from cad.weights import table
from cad.weights.table import find


def cad(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cad.cli.main", "weights", *arguments]
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | path | environment)


def test_the_command_lists_without_network_and_ends_with_2_for_a_fault(tmp_path: Path) -> None:
    listed = cad("list")
    assert listed.returncode == 0
    assert "DeepFloyd/IF-I-XL-v1.0" in listed.stdout
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    failed = cad("fetch", "controlnet-depth", "--lock", str(tmp_path / "lock.json"), **offline)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: controlnet-depth: cannot be fetched")
    assert failed.stderr.count("\n") == 1
    assert "Traceback" not in failed.stderr


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder in which the matting network is expected, under a digest that this test can write."""
    known = replace(find("u2net"), md5=hashlib.md5(b"the network").hexdigest())
    unchecked = replace(find("loftr"), place=str(tmp_path / "loftr.ckpt"))
    monkeypatch.setattr(table, "MODELS", (known, unchecked))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".u2net").mkdir()
    return tmp_path


def test_the_file_of_an_address_is_verified_at_its_place(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock, file = home / "lock.json", home / ".u2net/u2net.onnx"
    with pytest.raises(UserError, match=r"^u2net: is absent; download https://.*u2net\.onnx \(MD5 .*place it at ~/"):
        command.verify(["u2net"], None, lock)
    file.write_bytes(b"the network")
    command.verify(["u2net"], None, lock)
    assert capsys.readouterr().out == f"u2net: ok, {file}\n"
    file.write_bytes(b"another one")
    with pytest.raises(UserError, match=r"u2net\.onnx: is damaged or another file; remove it and download https://"):
        command.verify(["u2net"], None, lock)
    (home / "here").mkdir()
    (home / "here/u2net.onnx").write_bytes(b"the network")
    command.verify(["u2net"], home / "here", lock)
    assert "u2net: ok" in capsys.readouterr().out
    file.unlink()
    (home / "loftr.ckpt").write_bytes(b"anything")
    command.verify(None, None, lock)  # all: what is not there is no fault
    assert capsys.readouterr().out == f"u2net: absent\nloftr: here, unchecked, {home / 'loftr.ckpt'}\n"
