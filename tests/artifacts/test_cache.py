import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cad.artifacts import PriorCache, PriorCacheWriter, digest, read_json, read_parquet, write_json, write_parquet
from cad.artifacts.cache import store_shard
from cad.camera import Poses, sphere_poses
from cad.errors import UserError


def poses(count: int) -> Poses:
    return sphere_poses(count, torch.Generator().manual_seed(1))


def pixels(count: int, samples: int = 2, side: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, samples, side, side, 3), dtype=np.uint8)


def writer(folder, count=5, shard_poses=2, samples=2, side=4) -> PriorCacheWriter:
    return PriorCacheWriter(folder, poses(count), [10 + 3 * i for i in range(count)], samples, side, shard_poses)


def build(folder, count=5, shard_poses=2, samples=2, side=4) -> np.ndarray:
    images = pixels(count, samples, side)
    made = writer(folder, count, shard_poses, samples, side)
    for k in made.missing_shards():
        made.write_shard(k, images[made.shard_range(k)])
    made.finish()
    return images


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 7), st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 4]))
def test_what_was_written_is_read_for_every_shape(tmp_path_factory, count, shard_poses, samples, side):
    folder = tmp_path_factory.mktemp("cache")
    images = build(folder, count, shard_poses, samples, side)
    cache = PriorCache.open(folder)
    assert (len(cache), cache.samples, cache.resolution) == (count, samples, side)
    np.testing.assert_array_equal(cache.load(), images)
    for position in range(count):
        assert cache.read(position).dtype == np.uint8
        np.testing.assert_array_equal(cache.read(position), images[position])
    assert cache.pose_ids == [10 + 3 * i for i in range(count)]
    torch.testing.assert_close(cache.poses.azimuth, poses(count).azimuth, rtol=0, atol=0)
    torch.testing.assert_close(cache.poses.polar, poses(count).polar, rtol=0, atol=0)


def test_the_files_are_the_documented_ones_and_byte_identical(tmp_path):
    build(tmp_path / "a")
    build(tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "cache.json",
        *(f"images-0000{k}.safetensors" for k in range(3)),
        "index.parquet",
    ]


def test_an_interrupted_writer_goes_on_and_ends_with_the_same_bytes(tmp_path, kills):
    images = build(tmp_path / "whole")

    def write() -> None:
        made = writer(tmp_path / "cut")
        for k in made.missing_shards():
            made.write_shard(k, images[made.shard_range(k)])
        made.finish()

    n = 1
    while kills.before_rename(n, write):  # each time killed one rename later than where the former run began
        n += 1
    assert n > 3
    for partial in (tmp_path / "cut").glob("*.tmp"):
        partial.unlink()
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_done_shards_are_skipped_damaged_and_foreign_ones_are_not(tmp_path):
    images = pixels(5)
    made = writer(tmp_path)
    assert made.missing_shards() == [0, 1, 2]
    assert made.shard_range(2) == range(4, 5)
    made.write_shard(1, images[2:4])
    assert writer(tmp_path).missing_shards() == [0, 2]
    assert writer(tmp_path, samples=3).missing_shards() == [0, 1, 2]
    other = PriorCacheWriter(tmp_path, poses(5), range(5), 2, 4, 2)
    assert other.missing_shards() == [0, 1, 2]
    made.write_shard(0, images[:2])
    (tmp_path / "images-00001.safetensors").write_bytes(b"")
    assert writer(tmp_path).missing_shards() == [1, 2]
    (tmp_path / "cache.partial.json").write_text("{")
    assert writer(tmp_path).missing_shards() == [0, 1, 2]
    made = writer(tmp_path)
    made.write_shard(0, images[:2])
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        made.finish()


def test_a_shards_digest_is_of_what_was_written_whatever_lies_there_by_now(tmp_path, monkeypatch):
    images, replace = pixels(2), os.replace

    def other_then(source, target):
        replace(source, target)
        Path(target).write_bytes(b"another writer's")

    store_shard(tmp_path / "alone", 0, images)
    monkeypatch.setattr(os, "replace", other_then)
    found = store_shard(tmp_path / "raced", 0, images)
    assert found == hashlib.sha256((tmp_path / "alone" / "images-00000.safetensors").read_bytes()).hexdigest()


def test_progress_is_as_short_for_many_poses_as_for_few(tmp_path):
    for count in (4, 20_000):
        writer(tmp_path / str(count), count, shard_poses=count // 2).take_shard(0, "0" * 64)
    few, many = ((tmp_path / name / "cache.partial.json").stat().st_size for name in ("4", "20000"))
    assert few == many < 400


@pytest.mark.parametrize("column", ["azimuth", "polar"])
def test_shards_of_other_poses_are_done_again(tmp_path, column):
    writer(tmp_path).write_shard(0, pixels(2))
    moved = dataclasses.replace(poses(5), **{column: getattr(poses(5), column) + 1e-9})
    other = PriorCacheWriter(tmp_path, moved, [10, 13, 16, 19, 22], 2, 4, 2)
    assert (writer(tmp_path).missing_shards(), other.missing_shards()) == ([1, 2], [0, 1, 2])


def test_a_finished_cache_has_nothing_missing(tmp_path):
    build(tmp_path)
    assert writer(tmp_path).missing_shards() == []
    assert writer(tmp_path, shard_poses=3).missing_shards() == [0, 1]


@pytest.mark.parametrize("images", [pixels(2).astype(np.float32), pixels(1), pixels(2, samples=3), pixels(2, side=5)])
def test_a_wrong_shard_is_not_written(tmp_path, images):
    with pytest.raises(ValueError, match="shard 0 is uint8"):
        writer(tmp_path).write_shard(0, images)


def test_repeated_ids_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unique ids"):
        PriorCacheWriter(tmp_path, poses(2), [1, 1], 1, 4, 1)


def reindex(folder, change) -> None:
    """Break the index, with a digest that fits, so that the check behind the digest is reached."""
    write_parquet(folder / "index.parquet", change(read_parquet(folder / "index.parquet")))
    reheader(folder, index=digest(folder / "index.parquet"))


def reheader(folder, **values) -> None:
    write_json(folder / "cache.json", {**read_json(folder / "cache.json"), **values})


def reshard(folder, tensors) -> None:
    save_file(tensors, folder / "images-00001.safetensors")


SHARD = "images-00001.safetensors"
BROKEN = {
    "no header": (lambda f: (f / "cache.json").unlink(), "cache.json", "missing"),
    "header cut": (lambda f: (f / "cache.json").write_text('{"sch'), "cache.json", "not valid JSON"),
    "key gone": (lambda f: (f / "cache.json").write_text('{"schema": 1}'), "cache.json", "'resolution' is missing"),
    "other schema": (lambda f: reheader(f, schema=2), "cache.json", "schema version 2"),
    "no count": (lambda f: reheader(f, samples="2"), "cache.json", "'samples' is '2'"),
    "shards unnamed": (lambda f: reheader(f, shards={"../x": "0"}), "cache.json", "'shards'"),
    "index gone": (lambda f: (f / "index.parquet").unlink(), "index.parquet", "missing"),
    "index changed": (lambda f: (f / "index.parquet").write_bytes(b"x"), "index.parquet", "digest"),
    "column gone": (lambda f: reindex(f, lambda t: t.drop(columns="polar")), "index.parquet", "'polar' is missing"),
    "column type": (lambda f: reindex(f, lambda t: t.astype({"polar": "float32"})), "index.parquet", "float32"),
    "row gone": (lambda f: reindex(f, lambda t: t[1:]), "index.parquet", "4 rows where"),
    "pose twice": (lambda f: reindex(f, lambda t: t.assign(pose=1)), "index.parquet", "repeats a pose"),
    "angle": (lambda f: reindex(f, lambda t: t.assign(polar=np.inf)), "index.parquet", "not finite"),
    "samples": (lambda f: reindex(f, lambda t: t.assign(samples=9)), "index.parquet", "'samples' differs"),
    "rows": (lambda f: reindex(f, lambda t: t.assign(row=0)), "index.parquet", "do not count up"),
    "shard gone": (lambda f: (f / SHARD).unlink(), SHARD, "missing"),
    "shard cut": (lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-9]), SHARD, "truncated"),
    "shard empty": (lambda f: (f / SHARD).write_bytes(b""), SHARD, "truncated"),
    "shard dtype": (lambda f: reshard(f, {"images": pixels(2).astype(np.float32)}), SHARD, "F32"),
    "shard shape": (lambda f: reshard(f, {"images": pixels(2, side=3)}), SHARD, "[2, 2, 3, 3, 3]"),
    "shard tensor": (lambda f: reshard(f, {"pictures": pixels(2)}), SHARD, "['pictures']"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_cache_is_named_when_it_is_opened(tmp_path, case):
    damage, file, fault = BROKEN[case]
    build(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        PriorCache.open(tmp_path)
    text = str(error.value)
    assert str(tmp_path / file) in text
    assert fault in text
    assert "\n" not in text


def test_a_flipped_pixel_is_found_when_its_shard_is_read(tmp_path):
    images = build(tmp_path)
    data = bytearray((tmp_path / SHARD).read_bytes())
    data[-1] ^= 1
    (tmp_path / SHARD).write_bytes(data)
    cache = PriorCache.open(tmp_path)
    np.testing.assert_array_equal(cache.read(0), images[0])
    with pytest.raises(UserError, match=r"images-00001\.safetensors: damaged"):
        cache.read(2)


def test_reading_needs_no_torch(tmp_path):
    build(tmp_path)
    program = (
        "import sys; from cad.artifacts import PriorCache, Orbit, InputArtifact\n"
        f"PriorCache.open({str(tmp_path)!r}).load(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_header_holds_no_more_than_documented(tmp_path):
    build(tmp_path)
    header = json.loads((tmp_path / "cache.json").read_text())
    assert sorted(header) == ["index", "poses", "resolution", "samples", "schema", "shards"]
    assert list(pd.read_parquet(tmp_path / "index.parquet").columns) == [
        "pose",
        "azimuth",
        "polar",
        "shard",
        "row",
        "samples",
    ]
