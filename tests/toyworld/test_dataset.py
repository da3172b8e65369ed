"""The rendered views: poses that depend on the instance alone, shards that are kept, splits that never meet."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from cad.config import CameraSettings
from cad.errors import UserError
from cad.toyworld.dataset import Dataset, instances, render_dataset, view_poses
from cad.toyworld.settings import DataSettings, ToyworldSettings
from cad.toyworld.world import HELD_OUT, families, instance, render_views


@limits(max_examples=20, deadline=None)
@given(st.sampled_from(families()), st.integers(0, 2 * HELD_OUT), st.integers(1, 4), st.integers(1, 9))
def test_poses_are_a_function_of_the_instance(family: str, seed: int, references: int, targets: int) -> None:
    wanted = DataSettings(
        resolution=16, train_instances=1, held_out_instances=1, references=references, targets=targets,
        reference_spread_deg=45.0, reference_polar_deg=(50.0, 90.0),
    )  # fmt: skip
    poses, again = view_poses(family, seed, wanted), view_poses(family, seed, wanted)
    assert torch.equal(poses.azimuth, again.azimuth)
    assert torch.equal(poses.polar, again.polar)
    assert len(poses) == references + targets
    assert not torch.equal(poses.azimuth, view_poses(family, seed + 1, wanted).azimuth)
    front = poses.azimuth[:references].rad2deg()
    assert ((front - 180).abs() <= 45).all()
    polar = poses.polar[:references].rad2deg()
    assert ((polar >= 50) & (polar <= 90)).all()
    assert ((poses.polar >= 0) & (poses.polar <= math.pi)).all()


def test_targets_are_uniform_on_the_sphere(settings: ToyworldSettings) -> None:
    wanted = settings.data.model_copy(update={"targets": 4000})
    poses = view_poses("robot", 0, wanted)
    height = poses.polar[wanted.references :].cos()
    # Archimedes: the height is uniform on [-1, 1]; 4000 draws of it are this close
    assert height.mean().item() == pytest.approx(0, abs=0.04)
    assert height.var().item() == pytest.approx(1 / 3, abs=0.02)


def test_splits_share_no_seed() -> None:
    train = {item.seed for item in instances("train", 4, "car")}
    held_out = {item.seed for item in instances("held-out", 4, "car")}
    assert train == {0, 1, 2, 3}
    assert held_out == {HELD_OUT, HELD_OUT + 1, HELD_OUT + 2, HELD_OUT + 3}


def test_training_never_reaches_into_the_held_out_seeds() -> None:
    with pytest.raises(ValueError, match="held-out"):
        instances("train", HELD_OUT + 1, "car")


def test_shards_that_are_there_are_kept(tmp_path: Path, settings: ToyworldSettings, camera: CameraSettings) -> None:
    kept = tmp_path / f"views-{families()[0]}.safetensors"
    kept.write_bytes(b"already here")
    render_dataset(settings.data, camera, "train", 1, tmp_path)
    assert kept.read_bytes() == b"already here"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"views-{f}.safetensors" for f in families())


def test_rendering_twice_gives_the_same_bytes(
    tmp_path: Path, work: Path, settings: ToyworldSettings, camera: CameraSettings
) -> None:
    render_dataset(settings.data, camera, "train", settings.data.train_instances, tmp_path)
    for family in families():
        name = f"views-{family}.safetensors"
        assert (tmp_path / name).read_bytes() == (work / "train" / name).read_bytes()


def test_a_missing_shard_is_named(tmp_path: Path, settings: ToyworldSettings, camera: CameraSettings) -> None:
    render_dataset(settings.data, camera, "train", 1, tmp_path)
    (tmp_path / "views-duck.safetensors").unlink()
    with pytest.raises(UserError, match=r"views-duck\.safetensors: is missing; run `cad toyworld render`"):
        Dataset(settings.data, "train", 1, tmp_path)


def test_every_picture_lies_beside_its_pose_and_caption(
    data: Dataset, settings: ToyworldSettings, camera: CameraSettings
) -> None:
    """The order of families, instances and views is what training relies on to pair them."""
    assert len(data) == len(families()) * settings.data.train_instances
    assert data.views == settings.data.references + settings.data.targets
    assert data.azimuth.shape == data.polar.shape == (len(data), data.views)
    for position, (family, seed) in enumerate((f, s) for f in families() for s in range(2)):
        item = data.instances[position]
        assert (item.family, item.seed) == (family, seed)
    for position in (0, 5, len(data) - 1):
        item = data.instances[position]
        views = render_views(
            instance(item.family, item.seed), view_poses(item.family, item.seed, settings.data), camera, 16
        )
        np.testing.assert_array_equal(data.images[position], views.images)


def test_picked_images_are_in_the_networks_range(data: Dataset) -> None:
    picked = data.pick(torch.tensor([3, 0]), torch.tensor([1, 2]))
    assert picked.shape == (2, 3, 16, 16)
    assert picked.dtype == torch.float32
    assert picked.max() == 1  # white is exactly 1
    expected = data.images[3, 1].transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(picked[0].numpy(), expected, atol=1e-6)
