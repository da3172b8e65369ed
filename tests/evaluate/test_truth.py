import math

import numpy as np
import pytest

from cad.camera import orbit_poses
from cad.evaluate.truth import chance_within, retrieved_azimuth_error

POSES = orbit_poses(12, math.radians(70), math.pi)
VIEWS = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)


def test_true_views_are_where_they_should_be():
    np.testing.assert_allclose(retrieved_azimuth_error(VIEWS, VIEWS, POSES, np.arange(12)), 0, atol=1e-9)


@pytest.mark.parametrize(("turn", "error"), [(1, 30), (6, 180), (11, 30)])
def test_a_turned_object_is_found_by_the_shorter_way(turn, error):
    shown = np.roll(VIEWS, -turn, axis=0)  # frame k shows what stands at frame k + turn
    np.testing.assert_allclose(retrieved_azimuth_error(shown, VIEWS, POSES, np.arange(12)), error, atol=1e-9)


def test_some_frames_only():
    frames = np.array([3, 9])
    np.testing.assert_allclose(retrieved_azimuth_error(VIEWS[[4, 9]], VIEWS, POSES, frames), [30, 0], atol=1e-9)


def test_chance():
    assert chance_within(orbit_poses(120, 1.2, math.pi)) == pytest.approx(
        21 / 120
    )  # 10 frames to each side, and itself
