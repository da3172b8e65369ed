"""What of a plug-in's settings counts as a file or folder that it computes with."""

import hashlib
from pathlib import Path

import pytest

from cad.plugins import identities

CODE = "class Own: pass\n"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """A project with a plug-in, a file and a folder of weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/its_own.py").write_text(CODE)
    (tmp_path / "weights/mine").mkdir(parents=True)
    (tmp_path / "weights/mine/a.bin").write_bytes(b"abc")
    return tmp_path


def named(value: object) -> dict[str, str]:
    """The digests beside the code's, by what was named."""
    (found,) = identities([("its_own:Own", {"value": value})])
    return {key: text for key, text in found.items() if key not in ("kind", "code")}


def test_a_file_is_digested_wherever_it_is_named():
    expected = {"weights/mine/a.bin": hashlib.sha256(b"abc").hexdigest()}
    assert named("weights/mine/a.bin") == named([{"deep": ["weights/mine/a.bin"]}]) == expected


def test_a_folder_is_digested_where_a_slash_says_that_it_is_one():
    before = named("weights/mine/")
    assert list(before) == ["weights/mine/"]
    Path("weights/mine/a.bin").write_bytes(b"abd")
    assert named("weights/mine/") != before


@pytest.mark.parametrize("word", ["weights", ".", "..", "/", "./", "../", "", "none/", "a" * 300, "a\0b", "x/" * 3000])
def test_a_word_is_no_path(word):
    assert named(word) == {}
