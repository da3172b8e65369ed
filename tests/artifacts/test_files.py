import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cad.artifacts import (
    Checkpoint,
    PriorCacheWriter,
    digest,
    read_json,
    read_parquet,
    write_atomic,
    write_image,
    write_json,
    write_parquet,
)
from cad.artifacts.files import check_digest, check_schema
from cad.camera import sphere_poses
from cad.errors import UserError


def one_line(error: pytest.ExceptionInfo[UserError], *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert ";" in text  # the remedy
    for part in parts:
        assert str(part) in text


def test_digest_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_digest_of_a_folder_depends_on_names_and_contents_only(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
    for folder, order in (("one", ["b", "sub/a"]), ("two", ["sub/a", "b"])):
        for file in order:
            (tmp_path / folder / file).write_text(file)
    same = digest(tmp_path / "one")
    assert digest(tmp_path / "two") == same
    (tmp_path / "two" / "half.tmp").write_text("still being written")
    assert digest(tmp_path / "two") == same
    (tmp_path / "two" / "b").write_text("other")
    assert digest(tmp_path / "two") != same
    (tmp_path / "one" / "b").rename(tmp_path / "one" / "c")
    assert digest(tmp_path / "one") != same


def test_digest_of_nothing_is_an_error(tmp_path):
    with pytest.raises(UserError) as error:
        digest(tmp_path / "gone")
    one_line(error, tmp_path / "gone", "missing")


def test_a_killed_write_leaves_the_old_content(tmp_path, kills):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    assert kills.before_rename(1, lambda: write_atomic(path, b"new"))
    assert path.read_bytes() == b"old"
    assert not kills.before_rename(2, lambda: write_atomic(path, b"new"))
    assert path.read_bytes() == b"new"
    left = [p.name for p in tmp_path.iterdir() if p.name != "file"]
    assert len(left) == 1
    assert left[0].endswith(".tmp"), "the killed write's rest shows by its name that it is one"


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """The second one writes all of it while the first one is between its write and its rename."""
    replace = os.replace

    def late(source, target):
        monkeypatch.setattr(os, "replace", replace)
        write_atomic(tmp_path / "file", b"second")
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    write_atomic(tmp_path / "file", b"first")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_no_rest(tmp_path, monkeypatch, code):
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(code, "full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError) as error:
        write_json(tmp_path / "x.json", {"a": 1})
    one_line(error, tmp_path / "x.json", "no space left")
    assert list(tmp_path.iterdir()) == []


WRITERS = {
    "a.json": lambda f: write_json(f / "a.json", {}),
    "a.parquet": lambda f: write_parquet(f / "a.parquet", pd.DataFrame({"a": [1]})),
    "a.png": lambda f: write_image(f / "a.png", np.zeros((2, 2), np.uint8)),
    "model.safetensors": lambda f: Checkpoint.write(f, "stage1", {"generator": {"w": torch.zeros(1)}}, {}),
    "images-00000.safetensors": lambda f: PriorCacheWriter(
        f, sphere_poses(1, torch.Generator()), [0], 1, 2, 1
    ).write_shard(0, np.zeros((1, 1, 2, 2, 3), np.uint8)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_names_its_file_when_the_disk_is_full(tmp_path, monkeypatch, name):
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError) as error:
        WRITERS[name](tmp_path)
    one_line(error, tmp_path / name, "no space left")
    assert list(tmp_path.iterdir()) == []


def test_other_faults_of_the_disk_keep_their_traceback(tmp_path, monkeypatch):
    def broken(self: Path, data: bytes) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(OSError, match="broken"):
        write_atomic(tmp_path / "x", b"")


def test_json_is_sorted_and_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "ü"})
    write_json(tmp_path / "b.json", {"a": "ü", "b": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_text(encoding="utf-8").startswith('{\n  "a": "ü",\n')
    assert read_json(tmp_path / "a.json", "a", "b") == {"a": "ü", "b": [1, 2.5, None]}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": number})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'{"a": 1', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a": NaN}', "NaN"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "list, not an object"),
        (b'{"b": 1}', "'a' is missing"),
    ],
)
def test_broken_json_is_one_line(tmp_path, content, fault):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(tmp_path / "a.json", "a")
    one_line(error, tmp_path / "a.json", fault)


def test_missing_json_is_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        read_json(tmp_path / "a.json")
    one_line(error, tmp_path / "a.json", "missing")


def test_schema_and_digest_are_checked(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"schema": 2}))
    with pytest.raises(UserError) as error:
        check_schema(path, read_json(path), 1)
    one_line(error, path, "schema version 2, this program reads 1")
    check_digest(path, digest(path))
    with pytest.raises(UserError) as error:
        check_digest(path, "0" * 64)
    one_line(error, path, "digest")


def test_parquet_has_equal_bytes_for_equal_frames(tmp_path):
    frame = pd.DataFrame({"pose": [3, 1], "score": [0.5, float("nan")], "reason": ["kept", "overlap"]})
    write_parquet(tmp_path / "a.parquet", frame)
    write_parquet(tmp_path / "b.parquet", frame.set_axis([7, 8]))  # the index is no content
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert b"pandas" not in (tmp_path / "a.parquet").read_bytes()
    pd.testing.assert_frame_equal(read_parquet(tmp_path / "a.parquet", "pose", "reason"), frame)


def test_broken_parquet_is_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, pd.DataFrame({"pose": [1]}))
    with pytest.raises(UserError) as error:
        read_parquet(path, "score")
    one_line(error, path, "'score' is missing")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError) as error:
        read_parquet(path)
    one_line(error, path, "not a readable Parquet file")
    path.unlink()
    with pytest.raises(UserError) as error:
        read_parquet(path)
    one_line(error, path, "missing")
