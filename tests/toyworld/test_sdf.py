"""The sphere tracer against distances and hits worked out by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from cad.camera import camera_to_world, focal_length, pixel_centers, rays
from cad.toyworld import sdf
from cad.toyworld.families import ALONG_X, Part, Triple

RED, BLUE = (0.8, 0.2, 0.1), (0.1, 0.2, 0.9)
FOCAL = focal_length(49.1)


def scene(*parts: Part) -> np.ndarray:
    return np.stack([part.row((0, 0, 0), 1.0) for part in parts])


def part(
    shape: int,
    size: Triple,
    center: Triple = (0, 0, 0),
    second: Triple | None = None,
    pattern: int = sdf.PLAIN,
    frequency: float = 0.0,
    rounding: float = 0.0,
) -> Part:
    return Part(shape, center, size, RED, rounding=rounding, second=second, pattern=pattern, frequency=frequency)


def distance(one: Part, x: float, y: float, z: float) -> float:
    return sdf.nearest(scene(one), x, y, z)[0]


@pytest.mark.parametrize(
    ("one", "point", "expected"),
    [
        # a sphere is the ellipsoid whose distance is exact, inside too
        (part(sdf.ELLIPSOID, (0.5, 0.5, 0.5)), (0.8, 0, 0), 0.3),
        (part(sdf.ELLIPSOID, (0.5, 0.5, 0.5)), (0.3, 0.4, 1.2), 0.8),
        (part(sdf.ELLIPSOID, (0.5, 0.5, 0.5)), (0, 0.2, 0), -0.3),
        (part(sdf.ELLIPSOID, (0.5, 0.4, 0.3)), (0, 0, 0), -0.3),
        (part(sdf.ELLIPSOID, (0.5, 0.4, 0.3)), (0, 0.4, 0), 0.0),
        # a box: face, edge, corner, inside
        (part(sdf.BOX, (0.3, 0.2, 0.1)), (0.5, 0, 0), 0.2),
        (part(sdf.BOX, (0.3, 0.2, 0.1)), (0.6, 0.6, 0), 0.5),
        (part(sdf.BOX, (0.3, 0.2, 0.1)), (0.4, 0.4, 0.3), 0.3),
        (part(sdf.BOX, (0.3, 0.2, 0.1)), (0, 0, 0), -0.1),
        # rounding keeps the faces and takes r (sqrt 3 - 1) off a corner
        (part(sdf.BOX, (0.3, 0.3, 0.3), rounding=0.1), (0.5, 0, 0), 0.2),
        (part(sdf.BOX, (0.3, 0.3, 0.3), rounding=0.1), (0.3, 0.3, 0.3), 0.1 * (math.sqrt(3) - 1)),
        # a cylinder about z: radius 0.3, half height 0.2
        (part(sdf.CYLINDER, (0.3, 0.2, 0)), (0.3, 0.4, 0), 0.2),
        (part(sdf.CYLINDER, (0.3, 0.2, 0)), (0, 0.1, 0.5), 0.3),
        (part(sdf.CYLINDER, (0.3, 0.2, 0)), (0.6, 0, 0.6), 0.5),
        (part(sdf.CYLINDER, (0.3, 0.2, 0)), (0, 0, 0), -0.2),
        # a cone with equal ends is a cylinder; a true one has its slanted side at 45 deg
        (part(sdf.CONE, (0.3, 0.3, 0.2)), (0.6, 0, 0.6), 0.5),
        (part(sdf.CONE, (0.4, 0.2, 0.1)), (0.3, 0, 0), 0.0),
        (part(sdf.CONE, (0.4, 0.2, 0.1)), (0.4, 0, 0.1), 0.1 * math.sqrt(2)),
        (part(sdf.CONE, (0.4, 0.2, 0.1)), (0.1, 0, 0.35), 0.25),
        (part(sdf.CONE, (0.4, 0.2, 0.1)), (0, 0, 0.06), -0.04),
        # a torus about z: ring 0.3, tube 0.1
        (part(sdf.TORUS, (0.3, 0.1, 0)), (0, 0, 0), 0.2),
        (part(sdf.TORUS, (0.3, 0.1, 0)), (0, 0.3, 0.4), 0.3),
        (part(sdf.TORUS, (0.3, 0.1, 0)), (0.3, 0, 0), -0.1),
        # a roof with base at z = 0: half length 0.5, half width 0.3, height 0.4 (slope 3-4-5)
        (part(sdf.ROOF, (0.5, 0.3, 0.4)), (0.9, 0, 0.1), 0.4),
        (part(sdf.ROOF, (0.5, 0.3, 0.4)), (0, 0, -0.2), 0.2),
        (part(sdf.ROOF, (0.5, 0.3, 0.4)), (0, 0.15, 0.2), 0.0),
        (part(sdf.ROOF, (0.5, 0.3, 0.4)), (0, 0.55, 0.5), 0.5),
    ],
)
def test_distances_by_hand(one: Part, point: Triple, expected: float) -> None:
    assert distance(one, *point) == pytest.approx(expected, abs=1e-12)


SHAPES = [
    part(sdf.ELLIPSOID, (0.4, 0.3, 0.2)),
    part(sdf.BOX, (0.3, 0.2, 0.1), rounding=0.03),
    part(sdf.CYLINDER, (0.3, 0.2, 0), rounding=0.02),
    part(sdf.CONE, (0.4, 0.1, 0.2)),
    part(sdf.TORUS, (0.3, 0.1, 0)),
    part(sdf.ROOF, (0.4, 0.3, 0.3)),
]
Coordinate = st.floats(-0.8, 0.8)


@limits(max_examples=60, deadline=None)
@given(st.sampled_from(SHAPES), Coordinate, Coordinate, Coordinate)
def test_a_step_never_leaps_over_a_surface(one: Part, x: float, y: float, z: float) -> None:
    """From outside, a ball of SAFETY * distance holds no point of the solid: what sphere tracing rests on."""
    here = distance(one, x, y, z)
    if here <= 0:
        return
    directions = np.random.default_rng(0).normal(size=(60, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    if one.shape == sdf.ELLIPSOID:
        here *= 0.5  # its distance is a bound only near the surface; the test below looks at whole rays
    for direction in directions:
        a, b, c = np.array([x, y, z]) + sdf.SAFETY * here * direction
        assert distance(one, a, b, c) >= -1e-9


def test_the_row_moves_turns_and_grows() -> None:
    """A cylinder laid along x at (0.2, 0, 0), in a scene whose (0.1, 0, 0) moves to the origin and that doubles."""
    one = Part(sdf.CYLINDER, (0.2, 0, 0), (0.1, 0.3, 0), RED, turn=ALONG_X)
    row = one.row((0.1, 0, 0), 2.0)[None]
    assert sdf.nearest(row, 0.2 + 0.6 + 0.25, 0, 0)[0] == pytest.approx(0.25)  # the cap, along x
    assert sdf.nearest(row, 0.2, 0, 0.5)[0] == pytest.approx(0.3)  # the side


def test_the_nearest_part_is_named() -> None:
    both = scene(part(sdf.BOX, (0.1, 0.1, 0.1), (-0.5, 0, 0)), part(sdf.ELLIPSOID, (0.1, 0.1, 0.1), (0.5, 0, 0)))
    assert sdf.nearest(both, 0.1, 0, 0) == (pytest.approx(0.3), 1)
    assert sdf.nearest(both, -0.1, 0, 0) == (pytest.approx(0.3), 0)


def look(azimuth_deg: float, polar_deg: float) -> np.ndarray:
    angles = torch.tensor([azimuth_deg, polar_deg], dtype=torch.float64).deg2rad()
    return camera_to_world(angles[0], angles[1], 2.0).numpy()


def sphere_depth(camera: np.ndarray, resolution: int, radius: float) -> np.ndarray:
    """Nearest root of |o + t d| = radius on the rays of `cad.camera`, inf where there is none, [H, W]."""
    origins, directions = rays(torch.from_numpy(camera)[None], FOCAL, pixel_centers(resolution).double())
    o, d = origins[0].numpy(), directions[0].numpy()
    along = (o * d).sum(1)
    inside = along**2 - (o * o).sum(1) + radius**2
    found = np.where(inside >= 0, -along - np.sqrt(np.maximum(inside, 0)), np.inf)
    return found.reshape(resolution, resolution)


@pytest.mark.parametrize(("azimuth", "polar"), [(180, 90), (30, 50), (250, 140)])
def test_a_sphere_is_hit_at_the_analytic_depth(azimuth: float, polar: float) -> None:
    camera = look(azimuth, polar)
    _, _, depth = sdf.render(scene(part(sdf.ELLIPSOID, (0.5, 0.5, 0.5))), camera, FOCAL, 33, 0.82)
    expected = sphere_depth(camera, 33, 0.5)
    seen = np.isfinite(sphere_depth(camera, 33, 0.49))  # off the rim, where a hit within HIT is far along the ray
    np.testing.assert_allclose(depth[seen], expected[seen], atol=8 * sdf.HIT)
    assert depth[16, 16] == pytest.approx(1.5, abs=sdf.HIT)
    assert np.isinf(depth[np.isinf(sphere_depth(camera, 33, 0.51))]).all()


def brute_force(one: Part, camera: np.ndarray, resolution: int) -> np.ndarray:
    """Which pixel centres see the part, by small steps along every ray, [H, W]."""
    origins, directions = rays(torch.from_numpy(camera)[None], FOCAL, pixel_centers(resolution).double())
    row = scene(one)
    steps = np.arange(1.1, 2.9, 0.004)
    hit = [
        any(sdf.nearest(row, *(o + t * d))[0] < 0 for t in steps)
        for o, d in zip(origins[0].numpy(), directions[0].numpy(), strict=True)
    ]
    return np.array(hit).reshape(resolution, resolution)


@pytest.mark.parametrize("one", SHAPES, ids=["ellipsoid", "box", "cylinder", "cone", "torus", "roof"])
def test_sphere_tracing_sees_what_small_steps_see(one: Part) -> None:
    camera = look(205, 65)
    _, _, depth = sdf.render(scene(one), camera, FOCAL, 12, 0.82)
    truth = brute_force(one, camera, 12)
    assert truth.sum() > 5
    # a ray that grazes the surface within HIT may go either way
    assert (np.isfinite(depth) != truth).sum() <= 2


def test_shading_stays_in_range_and_white_is_background() -> None:
    color, coverage, depth = sdf.render(scene(part(sdf.BOX, (0.3, 0.4, 0.5))), look(200, 60), FOCAL, 32, 0.82)
    assert color.min() >= 0
    assert color.max() <= 1
    assert (color[coverage == 0] == 1).all()
    assert np.isinf(depth[0, 0])
    assert coverage.max() == 1


def test_a_surface_is_ambient_plus_lambert() -> None:
    """Seen from above, the top of a box has normal +z: its colour is fixed by the sun's height."""
    color, _, _ = sdf.render(scene(part(sdf.BOX, (0.4, 0.4, 0.2))), look(180, 0.01), FOCAL, 16, 0.82)
    up = 0.80 / math.sqrt(0.45**2 + 0.40**2 + 0.80**2)
    np.testing.assert_allclose(color[8, 8], np.array(RED) * (0.58 + 0.42 * up), atol=1e-6)


def test_a_side_away_from_the_sun_has_the_ambient_share_alone() -> None:
    color, _, _ = sdf.render(scene(part(sdf.BOX, (0.3, 0.4, 0.4))), look(0, 90), FOCAL, 16, 0.82)
    np.testing.assert_allclose(color[8, 8], np.array(RED) * 0.58, atol=1e-6)


def test_coverage_is_the_fraction_of_four_subpixels() -> None:
    """A box edge through the middle of a pixel covers its left half: two of the four rays."""
    resolution, plane = 16, 0.3  # the box' near face at distance 2 - 0.3 from the camera at azimuth 180
    # pixel column 12 spans u = 12/16 to 13/16; its middle, u - 0.5 = 4.5/16, is a world offset along +y or -y
    offset = (4.5 / 16) / FOCAL * (2 - plane)
    right = camera_to_world(torch.tensor(math.pi), torch.tensor(math.pi / 2), 2.0)[:3, 0].numpy()
    assert abs(right[1]) == pytest.approx(1, abs=1e-6)
    box = part(sdf.BOX, (plane, offset, 0.6))
    color, coverage, _ = sdf.render(scene(box), look(180, 90), FOCAL, resolution, 2.0)
    assert set(np.unique(coverage)) <= {0, 0.25, 0.5, 0.75, 1}
    assert coverage[8, 12] == 0.5
    assert coverage[8, 3] == 0.5
    assert coverage[8, 11] == 1
    assert coverage[8, 13] == 0
    # half of it is the face's colour, half white
    np.testing.assert_allclose(color[8, 12], (color[8, 11] + 1) / 2, atol=1e-9)


def pattern_colors(pattern: int) -> set[tuple[float, ...]]:
    one = part(sdf.BOX, (0.3, 0.4, 0.4), second=BLUE, pattern=pattern, frequency=30.0)
    color, _, _ = sdf.render(scene(one), look(0, 90), FOCAL, 48, 0.82)
    return {tuple(np.round(pixel / 0.58, 3)) for pixel in color[16:32, 16:32].reshape(-1, 3)}


@pytest.mark.parametrize(
    ("pattern", "present"),
    [(sdf.PLAIN, lambda found: found == {RED}), (sdf.STRIPES, {RED, BLUE}.issubset), (sdf.DOTS, {RED, BLUE}.issubset)],
)
def test_patterns_mix_both_colours(pattern: int, present: Callable[[set[tuple[float, ...]]], bool]) -> None:
    assert present(pattern_colors(pattern))
