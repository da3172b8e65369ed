"""The prior cache: what a diffusion model sampled at many poses, in a few memory-mapped shards and one index.

cache.json                {schema, resolution, samples, poses, shards: {name: sha256}, index: sha256}
index.parquet             one row per pose: pose, azimuth, polar (float64 radians), shard, row, samples
images-00000.safetensors  one tensor `images`, uint8 [m, N, H, W, 3]: N samples at each of m poses
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cad.artifacts.files import (
    check_digest,
    check_schema,
    digest,
    read_json,
    read_parquet,
    write_atomic,
    write_json,
    write_parquet,
)
from cad.artifacts.tensors import faults_named, open_tensors
from cad.errors import UserError

if TYPE_CHECKING:
    from cad.camera import Poses

SCHEMA = 1
COLUMNS = ("pose", "azimuth", "polar", "shard", "row", "samples")
PROGRESS = "cache.partial.json"  # the shards that are done, while a stage still writes; gone from a finished cache


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"images-{index:05d}.safetensors"


def shard_positions(poses: int, shard_poses: int, shard: int) -> range:
    """The positions of the poses in a shard of a cache of so many poses."""
    return range(poses)[shard * shard_poses : (shard + 1) * shard_poses]


def store_shard(folder: Path, shard: int, images: NDArray[np.uint8]) -> str:
    """Write the file of one shard, uint8 [m, N, H, W, 3], and return its digest for `PriorCacheWriter.take_shard`.

    By itself, so that many processes can write shards of one cache.
    """
    from safetensors.numpy import save

    data = save({"images": np.ascontiguousarray(images)})
    write_atomic(folder / shard_name(shard), data)
    return hashlib.sha256(data).hexdigest()  # of what was written, whoever else writes there


class PriorCache:
    """A finished prior cache, checked when it is opened; each shard's digest is checked when it is first read."""

    def __init__(self, folder: Path, header: dict[str, Any], index: dict[str, NDArray[Any]]) -> None:
        """Hold a checked header and index; use `PriorCache.open`."""
        self.folder = folder
        self.samples: int = header["samples"]
        self.resolution: int = header["resolution"]
        self.pose_ids: list[int] = [int(pose) for pose in index["pose"]]
        self.azimuth: NDArray[np.float64] = index["azimuth"]
        self.polar: NDArray[np.float64] = index["polar"]
        self._digests: dict[str, str] = header["shards"]
        self._shard = index["shard"]
        self._row = index["row"]
        self._open: dict[int, Any] = {}

    @classmethod
    def open(cls, folder: Path) -> "PriorCache":
        """Open a cache; UserError names the file and the fault if anything but a shard's content is broken."""
        folder = Path(folder)
        path = folder / "cache.json"
        header = read_json(path, "schema", "resolution", "samples", "poses", "shards", "index")
        check_schema(path, header, SCHEMA)
        for key in ("resolution", "samples", "poses"):
            if type(header[key]) is not int or header[key] < (0 if key == "poses" else 1):
                raise UserError(f"{path}: '{key}' is {header[key]!r}, not a count; run its stage again")
        names = header["shards"]
        if not isinstance(names, dict) or sorted(names) != [shard_name(k) for k in range(len(names))]:
            raise UserError(f"{path}: 'shards' does not list images-00000, images-00001, ...; run its stage again")
        check_digest(folder / "index.parquet", header["index"])
        cache = cls(folder, header, _read_index(folder / "index.parquet", header))
        for k in range(len(names)):
            cache._slice(k)
        return cache

    def __len__(self) -> int:
        """Number of poses."""
        return len(self.pose_ids)

    @property
    def poses(self) -> "Poses":
        """The poses in the cache's order (imports torch)."""
        import torch

        from cad.camera import Poses

        return Poses(azimuth=torch.from_numpy(self.azimuth.copy()), polar=torch.from_numpy(self.polar.copy()))

    def read(self, position: int) -> NDArray[np.uint8]:
        """The samples at one pose, uint8 [N, H, W, 3]; `position` counts poses from 0 in the cache's order."""
        position = range(len(self))[position]
        return self._read(int(self._shard[position]), int(self._row[position]))

    def load(self) -> NDArray[np.uint8]:
        """All samples, uint8 [M, N, H, W, 3]."""
        images = np.empty((len(self), self.samples, self.resolution, self.resolution, 3), dtype=np.uint8)
        for position in range(len(self)):
            images[position] = self.read(position)
        return images

    def _slice(self, shard: int) -> Any:
        """The memory-mapped tensor of a shard, its dtype and shape checked."""
        path = self.folder / shard_name(shard)
        tensors = open_tensors(path, "numpy")
        if list(tensors.keys()) != ["images"]:
            raise UserError(f"{path}: holds {sorted(tensors.keys())}, not one tensor 'images'; run its stage again")
        images = tensors.get_slice("images")
        rows = int((self._shard == shard).sum())
        wanted = [rows, self.samples, self.resolution, self.resolution, 3]
        found = f"{images.get_dtype()} {list(images.get_shape())}"
        if found != f"U8 {wanted}":
            raise UserError(f"{path}: holds {found} where the index asks for U8 {wanted}; run its stage again")
        return images

    def _read(self, shard: int, row: int) -> NDArray[np.uint8]:
        path = self.folder / shard_name(shard)
        if shard not in self._open:
            check_digest(path, self._digests[path.name])
            self._open[shard] = self._slice(shard)
        with faults_named(path):
            images: NDArray[np.uint8] = self._open[shard][row]
        return images


def _read_index(path: Path, header: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """The index as arrays, checked against the header."""
    frame = read_parquet(path, *COLUMNS)
    if len(frame) != header["poses"]:
        raise UserError(f"{path}: {len(frame)} rows where cache.json says {header['poses']}; run its stage again")
    index: dict[str, NDArray[Any]] = {}
    for column in COLUMNS:
        wanted = np.float64 if column in ("azimuth", "polar") else np.int64
        if frame[column].dtype != wanted:
            raise UserError(f"{path}: the column '{column}' is {frame[column].dtype}, not {wanted.__name__}")
        index[column] = frame[column].to_numpy(copy=True)
    faults = {
        "the column 'pose' repeats a pose": len(np.unique(index["pose"])) != len(frame),
        "an angle is not finite": not np.isfinite(np.concatenate([index["azimuth"], index["polar"]])).all(),
        "the column 'samples' differs from cache.json": bool((index["samples"] != header["samples"]).any()),
        "shards and rows do not count up": not _counts_up(index["shard"], index["row"], len(header["shards"])),
    }
    for fault, present in faults.items():
        if present:
            raise UserError(f"{path}: {fault}; run its stage again")
    return index


def _counts_up(shard: NDArray[np.int64], row: NDArray[np.int64], shards: int) -> bool:
    """Whether the shards are 0 ... shards-1 in order and the rows of each 0, 1, 2, ..."""
    sizes = [int((shard == k).sum()) for k in range(shards)]
    return bool(
        np.array_equal(shard, np.repeat(np.arange(shards), sizes))
        and np.array_equal(row, np.concatenate([np.arange(size) for size in sizes] or [np.arange(0)]))
        and all(sizes)
    )


class PriorCacheWriter:
    """Writes a prior cache shard by shard; after a kill a new writer on the same folder goes on where it stopped.

    poses:       Poses of length M
    pose_ids:    M unique integers that name the poses for good (a pruned cache keeps its parent's)
    shard_poses: poses per shard; the last shard may hold fewer
    """

    def __init__(
        self, folder: Path, poses: "Poses", pose_ids: Sequence[int], samples: int, resolution: int, shard_poses: int
    ) -> None:
        """Go on in `folder` with what is there."""
        if len(poses) != len(pose_ids) or len(set(pose_ids)) != len(pose_ids):
            raise ValueError(f"{len(poses)} poses need as many unique ids, not {len(pose_ids)}")
        self.folder = Path(folder)
        self.samples = samples
        self.resolution = resolution
        self.shard_poses = shard_poses
        self._index: dict[str, NDArray[Any]] = {
            "pose": np.asarray(pose_ids, dtype=np.int64),
            "azimuth": np.asarray(poses.azimuth, dtype=np.float64),
            "polar": np.asarray(poses.polar, dtype=np.float64),
            "shard": np.arange(len(poses), dtype=np.int64) // shard_poses,
            "row": np.arange(len(poses), dtype=np.int64) % shard_poses,
            "samples": np.full(len(poses), samples, dtype=np.int64),
        }
        self.shards = -(-len(poses) // shard_poses)
        # Shards of an interrupted run count only if they were written for the very same poses and shapes. Their digest
        # is enough, and of 100 000 poses short enough to be written again with each shard.
        layout = hashlib.sha256(json.dumps([samples, resolution, shard_poses, len(poses)]).encode())
        for column in self._index.values():
            layout.update(column.tobytes())
        self._layout = layout.hexdigest()
        self._done: dict[str, str] = self._resume()

    def missing_shards(self) -> list[int]:
        """The shards still to be written, in order."""
        return [k for k in range(self.shards) if shard_name(k) not in self._done]

    def shard_range(self, shard: int) -> range:
        """The positions of a shard's poses."""
        return shard_positions(len(self._index["pose"]), self.shard_poses, shard)

    def write_shard(self, shard: int, images: NDArray[np.uint8]) -> None:
        """Write one shard, uint8 [m, N, H, W, 3]; ValueError for another dtype or shape."""
        wanted = (len(self.shard_range(shard)), self.samples, self.resolution, self.resolution, 3)
        if images.dtype != np.uint8 or images.shape != wanted:
            raise ValueError(f"shard {shard} is uint8 {wanted}, not {images.dtype} {images.shape}")
        self.take_shard(shard, store_shard(self.folder, shard, images))

    def take_shard(self, shard: int, checksum: str) -> None:
        """Count a shard that `store_shard` has written as done."""
        self._done[shard_name(shard)] = checksum
        write_json(self.folder / PROGRESS, {"layout": self._layout, "shards": self._done})

    def finish(self) -> None:
        """Write the index, then `cache.json`, which makes the cache finished; ValueError if a shard is missing."""
        import pandas as pd

        if self.missing_shards():
            raise ValueError(f"shards {self.missing_shards()} are not written yet")
        write_parquet(self.folder / "index.parquet", pd.DataFrame(self._index))
        header = {
            "schema": SCHEMA,
            "resolution": self.resolution,
            "samples": self.samples,
            "poses": len(self._index["pose"]),
            "shards": self._done,
            "index": digest(self.folder / "index.parquet"),
        }
        write_json(self.folder / "cache.json", header)
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def _resume(self) -> dict[str, str]:
        """Names and digests of the shards that a run with the same layout left whole."""
        progress = self.folder / PROGRESS
        if not progress.exists():
            return self._finished()
        try:
            done = read_json(progress, "layout", "shards")
        except UserError:  # our own scratch file: what cannot be read is done again
            return {}
        return self._whole(done["shards"]) if done["layout"] == self._layout else {}

    def _finished(self) -> dict[str, str]:
        """The shards of a cache that was finished just before the kill."""
        try:
            cache = PriorCache.open(self.folder)
        except UserError:
            return {}
        theirs = {"pose": cache.pose_ids, "azimuth": cache.azimuth, "polar": cache.polar, "shard": cache._shard}
        same = (cache.samples, cache.resolution) == (self.samples, self.resolution) and all(
            np.array_equal(self._index[column], np.asarray(values)) for column, values in theirs.items()
        )
        return self._whole(cache._digests) if same else {}

    def _whole(self, shards: dict[str, str]) -> dict[str, str]:
        paths = {name: self.folder / name for name in shards}
        return {name: shards[name] for name, path in paths.items() if path.exists() and digest(path) == shards[name]}
