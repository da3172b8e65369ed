"""The toyworld's instances: pure, inside the box, asymmetric, rightly oriented and rightly described."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from cad.camera import Poses, camera_to_world, focal_length
from cad.config import CameraSettings
from cad.errors import UserError
from cad.toyworld import sdf
from cad.toyworld.families import FAMILIES, FRAMES, NAMED_PARTS, Part
from cad.toyworld.world import BOUND, COLORS, HELD_OUT, families, instance, render_views

SEEDS = (0, 7, HELD_OUT + 3)


def poses(*azimuth_polar_deg: tuple[float, float]) -> Poses:
    angles = torch.tensor(azimuth_polar_deg, dtype=torch.float64).deg2rad()
    return Poses(azimuth=angles[:, 0], polar=angles[:, 1])


def test_there_are_eight_families_each_fully_described() -> None:
    assert len(families()) >= 8
    assert set(FAMILIES) == set(FRAMES) == set(NAMED_PARTS)


@limits(max_examples=20, deadline=None)
@given(st.sampled_from(families()), st.integers(0, 2 * HELD_OUT))
def test_an_instance_is_a_pure_function_of_its_seed(family: str, seed: int) -> None:
    first = instance(family, seed)
    instance(family, seed + 1)
    again = instance(family, seed)
    np.testing.assert_array_equal(first.scene, again.scene)
    assert first.captions == again.captions
    assert not np.array_equal(first.scene, instance(family, seed + 1).scene)


def test_families_and_seeds_do_not_share_draws() -> None:
    colored = {instance(family, seed).captions.colored.rsplit(" ", 1)[0] for family in families() for seed in range(9)}
    assert len(colored) > 10


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(UserError, match="'rocket': unknown; choose one of robot, car"):
        instance("rocket", 0)


@pytest.mark.parametrize("family", families())
def test_every_family_stays_inside_the_box_and_the_sphere(family: str, camera: CameraSettings) -> None:
    """A shell of points on the paper's box and one on the sphere BOUND lie outside of every instance."""
    grid = np.linspace(-camera.half_side, camera.half_side, 25)
    faces = [
        np.roll((sign * camera.half_side, a, b), k) for k in range(3) for sign in (-1, 1) for a in grid for b in grid
    ]
    directions = np.random.default_rng(1).normal(size=(1500, 3))
    shell = BOUND * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    for seed in range(6):
        scene = instance(family, seed).scene
        assert min(sdf.nearest(scene, *point)[0] for point in faces) > 0
        assert min(sdf.nearest(scene, *point)[0] for point in shell) > 0


@pytest.mark.parametrize("family", families())
def test_front_and_back_left_and_right_differ(family: str, camera: CameraSettings) -> None:
    """Clearly: a tenth of the pixels that show the object change, and the mirror image does not explain it."""
    for seed in SEEDS:
        views = render_views(instance(family, seed), poses((180, 70), (0, 70), (90, 70), (270, 70)), camera, 32)
        for a, b in ((0, 1), (2, 3)):
            shown = views.silhouettes[a] | views.silhouettes[b]
            mirrored = views.images[b, :, ::-1].astype(int)
            for other in (views.images[b].astype(int), mirrored):
                changed = np.abs(views.images[a].astype(int) - other).sum(-1) > 60
                assert changed[shown | shown[:, ::-1]].mean() > 0.05, (family, seed, a)


def test_a_red_marker_on_the_objects_left_appears_where_it_must(camera: CameraSettings) -> None:
    """The object faces -x with up +z, so its left is -y. From the front it is on the picture's right side, from the
    back on the left; at azimuth 270 the camera stands on the left side itself and sees the marker in the middle, in
    front of the body, and at azimuth 90 it does not see it at all.
    """
    subject = instance("robot", 0)
    body = Part(sdf.BOX, (0, 0, 0), (0.2, 0.3, 0.3), (0.2, 0.2, 0.2)).row((0, 0, 0), 1.0)
    marker = Part(sdf.ELLIPSOID, (0, -0.4, 0), (0.12, 0.12, 0.12), (1.0, 0.0, 0.0)).row((0, 0, 0), 1.0)
    marked = type(subject)(subject.family, 0, np.stack([body, marker]), subject.captions)
    views = render_views(marked, poses((180, 90), (0, 90), (270, 90), (90, 90)), camera, 33)
    red = (views.images[..., 0] > 120) & (views.images[..., 1] < 60)
    front, back, left, right = (np.nonzero(mask)[1] for mask in red)
    assert len(front)
    assert front.min() > 16
    assert len(back)
    assert back.max() < 16
    assert left.mean() == pytest.approx(16, abs=0.5)
    assert len(right) == 0
    # and nowhere else than where the pinhole puts its centre
    centre = np.array([0, -0.4, 0, 1])
    for azimuth, columns in ((180, front), (0, back)):
        world = camera_to_world(torch.tensor(math.radians(azimuth)), torch.tensor(math.pi / 2), 2.0).numpy()
        x, _, z = (np.linalg.inv(world) @ centre)[:3]
        expected = (0.5 + focal_length(camera.fov_deg) * x / z) * 33 - 0.5
        assert (columns.min() + columns.max()) / 2 == pytest.approx(expected, abs=1.0)


def test_a_higher_camera_sees_the_top(camera: CameraSettings) -> None:
    top = Part(sdf.BOX, (0, 0, 0.3), (0.3, 0.3, 0.02), (1.0, 0.0, 0.0)).row((0, 0, 0), 1.0)
    body = Part(sdf.BOX, (0, 0, 0), (0.3, 0.3, 0.29), (0.2, 0.2, 0.2)).row((0, 0, 0), 1.0)
    subject = instance("robot", 0)
    marked = type(subject)(subject.family, 0, np.stack([body, top]), subject.captions)
    views = render_views(marked, poses((180, 20), (180, 160)), camera, 32)
    red = ((views.images[..., 0] > 120) & (views.images[..., 1] < 60)).sum((1, 2))
    assert red[0] > 50
    assert red[1] == 0


def test_captions_go_from_generic_to_specific() -> None:
    for family in families():
        for seed in range(20):
            captions = instance(family, seed).captions
            first, second = NAMED_PARTS[family]
            assert captions.all() == [captions.generic, captions.colored, captions.specific]
            assert captions.generic == f"a toy {family}"
            assert captions.specific.startswith(captions.colored)
            assert f" {first} and a" in captions.specific
            assert captions.specific.endswith(second)
            named = [color for color in COLORS if f" {color}" in captions.specific]
            assert len(named) == 3, captions.specific
            article, follower = captions.colored.split()[:2]
            assert (article == "an") == (follower[0] in "aeiou")


def test_the_caption_names_the_body_the_picture_shows() -> None:
    for seed in range(8):
        subject = instance("mug", seed)
        color = next(name for name in COLORS if name in subject.captions.colored)
        body = subject.scene[0, sdf.COLOR : sdf.COLOR + 3]
        assert np.abs(body - COLORS[color]).max() <= 0.04


def test_views_are_pictures_on_white_with_their_silhouette_and_depth(camera: CameraSettings) -> None:
    views = render_views(instance("duck", 3), poses((180, 70), (10, 120)), camera, 24)
    assert views.images.shape == (2, 24, 24, 3)
    assert views.images.dtype == np.uint8
    assert views.silhouettes.dtype == bool
    assert views.depth.dtype == np.float32
    assert (views.images[:, 0, 0] == 255).all()
    assert 0.1 < views.silhouettes.mean() < 0.6
    seen = np.isfinite(views.depth)
    assert (views.silhouettes & ~seen).sum() < 0.1 * seen.sum()
    assert ((views.depth[seen] > camera.radius - BOUND) & (views.depth[seen] < camera.radius + BOUND)).all()
