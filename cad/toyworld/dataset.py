"""The views that the small models are trained on: rendered once, one safetensors shard per family, memory-mapped."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from cad.camera import Poses, sphere_poses
from cad.config import CameraSettings
from cad.errors import UserError
from cad.seeding import generator
from cad.toyworld.settings import DataSettings
from cad.toyworld.world import HELD_OUT, Instance, families, instance, render_views


def view_poses(family: str, seed: int, settings: DataSettings) -> Poses:
    """Poses of an instance's views: `references` of them near the front, the others uniform on the sphere.

    A reference is what a user would photograph [ours]: azimuth within `reference_spread_deg` of the front (180 deg),
    polar angle uniform between the two bounds.
    """
    stream = generator("toyworld-poses", family, seed)
    draws = torch.rand(settings.references, 2, generator=stream, dtype=torch.float64)
    azimuth = 180 + (2 * draws[:, 0] - 1) * settings.reference_spread_deg
    low, high = settings.reference_polar_deg
    polar = low + draws[:, 1] * (high - low)
    targets = sphere_poses(settings.targets, stream)
    return Poses(
        azimuth=torch.cat([azimuth * math.pi / 180, targets.azimuth]),
        polar=torch.cat([polar * math.pi / 180, targets.polar]),
    )


def instances(split: str, count: int, family: str) -> Iterator[Instance]:
    """The first `count` instances of a family in a split, "train" or "held-out"; no seed is in both."""
    start = {"train": 0, "held-out": HELD_OUT}[split]
    if start + count > HELD_OUT and split == "train":
        raise ValueError(f"{count} training instances reach into the held-out seeds from {HELD_OUT}")
    return (instance(family, start + k) for k in range(count))


def render_dataset(settings: DataSettings, camera: CameraSettings, split: str, count: int, folder: Path) -> None:
    """Write views-<family>.safetensors (uint8 [count, V, H, W, 3]) for every family; files already there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for family in families():
        path = folder / f"views-{family}.safetensors"
        if path.exists():
            continue
        views = [
            render_views(subject, view_poses(family, subject.seed, settings), camera, settings.resolution).images
            for subject in instances(split, count, family)
        ]
        partial = path.with_suffix(".partial")
        save_file({"images": np.stack(views)}, partial)
        partial.replace(path)


class Dataset:
    """Every view of a split: images uint8 [F * count, V, H, W, 3], their poses and their instances' captions."""

    def __init__(self, settings: DataSettings, split: str, count: int, folder: Path):
        """Read the shards that `render_dataset` wrote; raises UserError where one is missing."""
        shards = []
        for family in families():
            path = folder / f"views-{family}.safetensors"
            if not path.is_file():
                raise UserError(f"{path}: is missing; run `cad toyworld render` first")
            with safe_open(path, framework="np") as opened:
                shards.append(opened.get_tensor("images"))
        self.images = np.concatenate(shards)
        self.references = settings.references
        self.instances = [item for family in families() for item in instances(split, count, family)]
        poses = [view_poses(item.family, item.seed, settings) for item in self.instances]
        self.azimuth = torch.stack([pose.azimuth for pose in poses])  # [I, V] radians
        self.polar = torch.stack([pose.polar for pose in poses])

    def __len__(self) -> int:
        return len(self.images)

    @property
    def views(self) -> int:
        """Views per instance, references first."""
        return self.images.shape[1]

    def pick(self, subjects: Tensor, views: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of these instances' (positions, [B]) views (positions, [B])."""
        chosen = torch.from_numpy(self.images[subjects.numpy(), views.numpy()])
        return chosen.permute(0, 3, 1, 2).float() / 127.5 - 1
