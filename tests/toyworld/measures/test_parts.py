"""Which part a pixel shows, against scenes worked out by hand, and the parts' colours."""

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from cad.camera import Poses
from cad.config import CameraSettings
from cad.toyworld import sdf
from cad.toyworld.families import Part
from cad.toyworld.measures.parts import color_distance, part_colors, part_ids, visible
from cad.toyworld.world import families, instance, render_views


def poses(*azimuth_polar_deg: tuple[float, float]) -> Poses:
    angles = torch.tensor(azimuth_polar_deg, dtype=torch.float64).deg2rad()
    return Poses(azimuth=angles[:, 0], polar=angles[:, 1])


def test_a_grey_body_with_a_red_marker_on_its_left(camera: CameraSettings) -> None:
    """Away from edges, the marker's pixels (part 1) are red and the body's (part 0) grey; from the right none is 1."""
    robot = instance("robot", 0)
    body = Part(sdf.BOX, (0, 0, 0), (0.2, 0.3, 0.3), (0.2, 0.2, 0.2)).row((0, 0, 0), 1.0)
    marker = Part(sdf.ELLIPSOID, (0, -0.4, 0), (0.12, 0.2, 0.12), (1.0, 0.0, 0.0)).row((0, 0, 0), 1.0)
    marked = type(robot)(robot.family, 0, np.stack([body, marker]), robot.captions)
    asked = poses((180, 90), (0, 90), (270, 60), (90, 90))
    views = render_views(marked, asked, camera, 32)
    parts = part_ids(marked.scene, views.depth, asked, camera)
    np.testing.assert_array_equal(parts >= 0, np.isfinite(views.depth))
    inner = np.ones(parts.shape, bool)
    for axis in (1, 2):
        for step in (-1, 1):
            inner &= np.roll(parts, step, axis) == parts
    red, green, blue = np.moveaxis(views.images.astype(int), -1, 0)
    assert ((red > 100) & (green == 0) & (blue == 0))[inner & (parts == 1)].all()
    assert ((red < 60) & (red == green) & (green == blue))[inner & (parts == 0)].all()
    assert (red == 255)[inner & (parts == -1)].all()
    assert ((parts == 1).sum((1, 2)) > 8).tolist() == [True, True, True, False]
    columns = [np.nonzero(ids == 1)[1] for ids in parts[:2]]
    assert columns[0].min() > 16  # the left side is on the right of a picture from the front
    assert columns[1].max() < 16


@pytest.mark.parametrize("family", families())
def test_parts_explain_what_a_renderer_of_single_parts_sees(family: str, camera: CameraSettings) -> None:
    """A pixel's part, rendered alone, has the same depth there."""
    subject, asked = instance(family, 5), poses((150, 65))
    depth = render_views(subject, asked, camera, 24).depth
    parts = part_ids(subject.scene, depth, asked, camera)[0]
    for part in visible(parts, 3):
        alone = type(subject)(family, 5, subject.scene[part : part + 1], subject.captions)
        own = render_views(alone, asked, camera, 24).depth[0]
        shown = parts == part
        assert np.median(np.abs(own[shown] - depth[0][shown])) < 5 * sdf.HIT


def test_visible_parts_by_hand() -> None:
    parts = np.array([[-1, -1, -1, 4], [4, 4, 2, 2], [0, -1, -1, -1]])
    assert visible(parts, 1) == [0, 2, 4]
    assert visible(parts, 2) == [2, 4]
    assert visible(parts, 3) == [4]
    assert visible(parts, 5) == []


def test_part_colours_by_hand() -> None:
    image = np.array([[[10, 0, 0], [30, 0, 0]], [[0, 200, 0], [255, 255, 255]]], np.uint8)
    parts = np.array([[3, 3], [3, 1]])
    shown = np.array([[True, True], [False, False]])
    np.testing.assert_array_equal(part_colors(image, parts, [3, 1, 7], shown), [[20, 0, 0], [255] * 3, [255] * 3])
    np.testing.assert_allclose(part_colors(image, parts, [3], np.ones((2, 2), bool)), [[40 / 3, 200 / 3, 0]])
    assert part_colors(image, parts, [], shown).shape == (0, 3)


def test_colour_distance_is_ciede2000() -> None:
    a, b = np.array([[200.0, 30, 40], [0, 0, 255]]), np.array([[190.0, 60, 40], [0, 0, 255]])
    expected = deltaE_ciede2000(rgb2lab(a / 255), rgb2lab(b / 255))
    np.testing.assert_allclose(color_distance(a, b), expected, atol=1e-3)
    assert expected[0] > 5
    assert len(color_distance(np.empty((0, 3)), np.empty((0, 3)))) == 0
