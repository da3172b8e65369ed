"""From where a sample shows its object: true, mirrored, turned and missing views."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from cad.camera import Poses, angle_between
from cad.config import CameraSettings
from cad.errors import UserError
from cad.prior.truth import BANK, MIN_IOU, intersection_over_union, spiral_poses
from cad.toyworld import sdf
from cad.toyworld.dataset import Dataset
from cad.toyworld.families import Part
from cad.toyworld.measures.questions import Question, asked_poses, pictures, truths
from cad.toyworld.measures.sides import X, Y, directions, find_poses, right_side
from cad.toyworld.world import render_views

ASKED = [Question(subject, view) for subject in (0, 2, 6, 8) for view in range(4)]  # robot, car, chair, house


def seen_from(data: Dataset, asked: list[Question], poses: Poses, camera: CameraSettings) -> tuple[np.ndarray, ...]:
    """Images and silhouettes of the objects asked for, each from its own pose."""
    views = [
        render_views(data.instances[q.subject], Poses(poses.azimuth[k, None], poses.polar[k, None]), camera, 16)
        for k, q in enumerate(asked)
    ]
    return np.concatenate([v.images for v in views]), np.concatenate([v.silhouettes for v in views])


def test_directions_by_hand() -> None:
    angles = torch.tensor([[180.0, 90.0], [270.0, 90.0], [0.0, 30.0]], dtype=torch.float64).deg2rad()
    expected = [[-1, 0, 0], [0, -1, 0], [0.5, 0, math.sqrt(0.75)]]
    np.testing.assert_allclose(directions(Poses(angles[:, 0], angles[:, 1])), expected, atol=1e-12)


def test_true_views_are_found_where_they_are(held_out: Dataset, camera: CameraSettings) -> None:
    truth = truths(held_out, ASKED, camera)
    found = find_poses(pictures(held_out, ASKED), truth.silhouettes, held_out, ASKED, truth, camera)
    wanted = directions(asked_poses(held_out, ASKED))
    assert np.degrees(np.arccos((found.directions * wanted).sum(1))).max() < 20
    assert not found.bad.any()
    for axis in (X, Y):
        assert right_side(found.directions, wanted, axis, 0.2).all()


def test_views_from_the_other_side_are_found_there(held_out: Dataset, camera: CameraSettings) -> None:
    """The camera at -azimuth has the other y and the same x; the one at 180 deg - azimuth the other x."""
    truth, poses = truths(held_out, ASKED, camera), asked_poses(held_out, ASKED)
    wanted = directions(poses)
    for azimuth, right, wrong in ((-poses.azimuth, X, Y), (math.pi - poses.azimuth, Y, X)):
        samples, shapes = seen_from(held_out, ASKED, Poses(azimuth, poses.polar), camera)
        found = find_poses(samples, shapes, held_out, ASKED, truth, camera)
        assert right_side(found.directions, wanted, right, 0.3).all()
        assert not right_side(found.directions, wanted, wrong, 0.3).any()
        assert found.bad[np.abs(wanted[:, wrong]) > 0.5].all()  # over 60 deg off


def test_a_true_view_from_nearby_is_bad_by_its_silhouette_alone(held_out: Dataset, camera: CameraSettings) -> None:
    """The bank's own view nearest to each target, within 15 deg: it is found exactly, and never too far off."""
    truth, poses, bank = truths(held_out, ASKED, camera), asked_poses(held_out, ASKED), spiral_poses(BANK)
    turn, index = angle_between(poses, bank).min(1)
    assert turn.rad2deg().max() < 15
    near = Poses(bank.azimuth[index], bank.polar[index])
    samples, shapes = seen_from(held_out, ASKED, near, camera)
    found = find_poses(samples, shapes, held_out, ASKED, truth, camera)
    np.testing.assert_allclose(found.directions, directions(near))
    np.testing.assert_array_equal(found.bad, intersection_over_union(shapes, truth.silhouettes) < MIN_IOU)
    assert not found.bad.all()


def test_a_view_that_looks_the_same_from_elsewhere_is_right(held_out: Dataset, camera: CameraSettings) -> None:
    """A black ball looks the same from everywhere: the target comes first, so no sample of it is bad."""
    ball = Part(sdf.ELLIPSOID, (0, 0, 0), (0.5, 0.5, 0.5), (0, 0, 0)).row((0, 0, 0), 1.0)
    data = copy.copy(held_out)
    data.instances = [dataclasses.replace(item, scene=ball[None]) for item in held_out.instances]
    asked = [Question(0, view) for view in range(4)]
    images, shapes = seen_from(data, asked, asked_poses(data, asked), camera)
    data.images = held_out.images.copy()
    data.images[0] = images
    assert not find_poses(images, shapes, data, asked, truths(data, asked, camera), camera).bad.any()


def test_an_empty_sample_is_bad(held_out: Dataset, camera: CameraSettings) -> None:
    truth = truths(held_out, ASKED, camera)
    white, nothing = np.full((len(ASKED), 16, 16, 3), 255, np.uint8), np.zeros((len(ASKED), 16, 16), bool)
    assert find_poses(white, nothing, held_out, ASKED, truth, camera).bad.all()


def test_sides_by_hand() -> None:
    wanted = np.array([[-0.9, 0.1, 0.4], [0.0, 0.5, 0.8], [0.6, -0.8, 0.0], [0.1, 0.9, 0.4]])
    found = np.array([[-0.1, -0.9, 0.4], [0.0, 0.1, 0.9], [0.1, 0.2, 0.9], [0.0, 0.0, 1.0]])
    assert right_side(found, wanted, Y, 0.2).tolist() == [True, False, False]  # the first is too near to the plane
    assert right_side(found, wanted, X, 0.2).tolist() == [True, True]


def test_no_view_to_a_side_is_a_users_fault() -> None:
    with pytest.raises(UserError, match=r"check\.side_margin: no view lies farther than 0\.9 to a side; lower it"):
        right_side(np.zeros((2, 3)), np.array([[0.5, 0.5, 0.7]] * 2), Y, 0.9)
