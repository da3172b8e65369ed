import math

import numpy as np
import pytest
import torch

from cad.config import CameraSettings, ElevationSettings
from cad.inputs.outlines import agreed, ring_offsets, search_outlines, uncovered, visible_ball

CAMERA = CameraSettings(fov_deg=49.1, radius=2.0, half_side=0.7, reference_azimuth_deg=180.0)
SETTINGS = ElevationSettings(
    score="silhouettes", matcher="patches", loftr=None, turn_deg=10.0, ring_deg=[120.0, -120.0], draws=1,
    white_threshold=240, patch_px=5, window=0.2, min_texture=0.01, min_correlation=0.8, max_return_px=1.0, join=0.004,
    outlier=0.03, min_tracks=30, max_error=0.01, min_contrast=0.05, hull_cells=32, max_uncovered=0.1, min_gap=0.02,
)  # fmt: skip
RING = [0.0, -110.0, -70.0, -40.0, 40.0, 70.0, 110.0, 180.0]


def outlines(points: np.ndarray, polar_deg: float, ring: list[float], side: int = 64) -> np.ndarray:
    """Silhouettes [n, S, S] of a dense cloud, by an independent pinhole: look-at of cross products, its own focal."""
    masks = np.zeros((len(ring), side, side), bool)
    for mask, azimuth_deg in zip(masks, ring, strict=True):
        polar, azimuth = math.radians(polar_deg), math.radians(azimuth_deg)
        place = 2 * np.array([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)])
        forward = -place / np.linalg.norm(place)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        away = points - place
        focal = 1 / (2 * math.tan(math.radians(49.1 / 2)))
        x, y = (0.5 + focal * (away @ axis) / (away @ forward) for axis in (right, np.cross(forward, right)))
        mask[(y * side).astype(int), (x * side).astype(int)] = True
    return masks


def block(*half: float) -> np.ndarray:
    """A filled block of these half sides, denser than pixels are."""
    axes = [np.arange(-h, h + 1e-9, 0.02) for h in half]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def cross() -> np.ndarray:
    """Two blocks, one beside and above the other: as no symmetric thing looks."""
    return np.concatenate([block(0.35, 0.12, 0.1), block(0.1, 0.1, 0.25) + np.array([0.2, 0.1, 0.2])])


@pytest.mark.parametrize("polar", [35, 50, 70, 88, 110])
def test_true_outlines_give_the_angle(polar):
    found = search_outlines(outlines(cross(), polar, RING), RING, SETTINGS, CAMERA)
    assert found.polar_deg is not None
    assert abs(found.polar_deg - polar) <= 4


def test_a_larger_picture_gives_it_too():
    found = search_outlines(outlines(cross(), 60, RING, 128), RING, SETTINGS, CAMERA)
    assert found.polar_deg is not None
    assert abs(found.polar_deg - 60) <= 4


def test_a_true_hull_leaves_next_to_nothing_and_a_wrong_one_much():
    masks, ball = torch.from_numpy(outlines(cross(), 60, RING)), visible_ball(32, CAMERA)
    assert uncovered(masks, 60, RING, ball, CAMERA) < 0.03
    assert uncovered(masks, 120, RING, ball, CAMERA) > 0.15


def test_what_no_body_fills_is_counted():
    """A second view that shows an object elsewhere in its picture: the hull is empty, and all is uncovered."""
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 2:8, 30:34] = masks[1, 56:62, 30:34] = True  # above the middle from the front, below it from behind
    assert uncovered(masks, 90, [0.0, 180.0], visible_ball(32, CAMERA), CAMERA) == 1


def test_the_ball_touches_the_edges_of_the_view():
    """sin(24.55 deg) 2 = 0.831; and no cell's centre is beyond it."""
    ball = visible_ball(32, CAMERA)
    assert ball.side == pytest.approx(2 * 0.83097 / 32, rel=1e-3)
    assert ball.cells.norm(dim=-1).max() <= 0.831
    assert len(ball.cells) * ball.side**3 == pytest.approx(4 / 3 * math.pi * 0.83097**3, rel=0.02)


def test_offsets_turn_about_the_axis_alone():
    np.testing.assert_allclose(ring_offsets([90.0, -180.0]), [[0, math.pi / 2], [0, -math.pi]])


def test_a_ball_fits_every_angle():
    points = block(0.3, 0.3, 0.3)
    ball = points[np.linalg.norm(points, axis=1) <= 0.3]
    found = search_outlines(outlines(ball, 60, RING), RING, SETTINGS, CAMERA)
    assert found.polar_deg is None
    assert "fit every angle" in found.sentence()


def test_contradictory_outlines_are_undetermined():
    """A small square at another place of every view."""
    masks = np.zeros((8, 64, 64), bool)
    for mask, (row, column) in zip(masks, np.random.default_rng(0).integers(4, 54, (8, 2)), strict=True):
        mask[row : row + 6, column : column + 6] = True
    found = search_outlines(masks, RING, SETTINGS, CAMERA)
    assert found.polar_deg is None
    assert "no body explains" in found.why


@pytest.mark.parametrize(("shown", "why"), [(False, "a view shows no object"), (True, "a view shows no background")])
def test_a_view_of_nothing_or_of_nothing_else_is_undetermined(shown, why):
    masks = outlines(cross(), 60, RING)
    masks[3] = shown
    found = search_outlines(masks, RING, SETTINGS, CAMERA)
    assert (found.polar_deg, found.why) == (None, why)


def test_half_of_the_draws_decide():
    draws = np.array([[[[True, True, False]]], [[[True, False, False]]]])
    assert agreed(draws).tolist() == [[[True, True, False]]]
