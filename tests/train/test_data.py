import pytest
import torch

from cad.artifacts import PriorCacheWriter
from cad.camera import Poses, focal_length, pose_label
from cad.errors import UserError
from cad.seeding import generator
from cad.train.data import crop_places, draw_cameras, draw_reals, load_reals

CPU = torch.device("cpu")


def test_reals_come_back_as_they_were_cached_with_the_pose_they_belong_to(prior, camera):
    reals = load_reals(prior.folder, camera, 32)
    images, labels = draw_reals(reals, 64, generator("a"), CPU)
    assert images.shape == (64, 3, 32, 32)
    assert images.min() >= -1
    assert images.max() <= 1
    wanted = pose_label(prior.poses.cameras(2.0), focal_length(49.1))
    cached = torch.from_numpy(prior.images).permute(0, 1, 4, 2, 3)
    seen = set()
    for image, label in zip(((images + 1) * 127.5).round().to(torch.uint8), labels, strict=True):
        pose = int((wanted - label).abs().sum(1).argmin())
        assert torch.equal(wanted[pose], label)
        matches = [draw for draw in range(2) if torch.equal(cached[pose, draw], image)]
        assert len(matches) == 1
        seen.add((pose, matches[0]))
    assert len(seen) == 10  # every pose and every draw is used


def test_cameras_of_fakes_are_kept_poses_drawn_uniformly(prior, camera):
    reals = load_reals(prior.folder, camera, 32)
    cameras, labels = draw_cameras(reals, 5000, generator("b"), CPU)
    assert torch.equal(cameras.flatten(1), labels[:, :16])
    distance = torch.cdist(cameras.flatten(1), reals.cameras.flatten(1))
    assert distance.min(1).values.max() < 1e-5
    share = torch.bincount(distance.argmin(1), minlength=5) / 5000
    assert (share - 0.2).abs().max() < 0.03


def test_draws_depend_on_the_generator_alone(prior, camera):
    reals = load_reals(prior.folder, camera, 32)
    torch.manual_seed(1)
    first = draw_reals(reals, 8, generator(0, "thing", "stage1", 5), CPU)
    torch.manual_seed(2)
    again = draw_reals(reals, 8, generator(0, "thing", "stage1", 5), CPU)
    other = draw_reals(reals, 8, generator(0, "thing", "stage1", 6), CPU)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_a_prior_of_another_resolution_is_refused(prior, camera):
    with pytest.raises(UserError, match=r"refine: its images are 32 px but generator\.output_resolution is 64"):
        load_reals(prior.folder, camera, 64)


def test_an_empty_prior_is_refused(tmp_path, camera):
    none = Poses(azimuth=torch.zeros(0, dtype=torch.float64), polar=torch.zeros(0, dtype=torch.float64))
    PriorCacheWriter(tmp_path, none, [], samples=1, resolution=32, shard_poses=4).finish()
    with pytest.raises(UserError, match=r"no pose was kept; loosen prune"):
        load_reals(tmp_path, camera, 32)


def test_crop_places_cover_the_image_and_stay_inside():
    places = crop_places(2000, 32, 36, generator("c"))
    assert places.min() == 0
    assert places.max() == 4
    assert len(places.unique(dim=0)) == 25
