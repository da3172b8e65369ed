"""Poses, intrinsics, rays and orbits against numbers worked out by hand (FACTS section 2)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cad.camera import (
    Poses,
    angle_between,
    camera_to_world,
    focal_length,
    near_far,
    orbit_poses,
    pixel_centers,
    pose_label,
    rays,
    relative_pose,
    sphere_poses,
)
from cad.seeding import generator

ANGLE = st.floats(-4 * math.pi, 4 * math.pi)
POLAR = st.floats(0, math.pi)


def camera(azimuth_deg: float, polar_deg: float, radius: float = 2.0) -> torch.Tensor:
    """One camera-to-world matrix [4, 4], float64."""
    angles = torch.tensor([azimuth_deg, polar_deg], dtype=torch.float64).deg2rad()
    return camera_to_world(angles[0], angles[1], radius)


def look_at(centre: torch.Tensor) -> torch.Tensor:
    """Right, down, forward of a camera that looks at the origin, from cross products with Z up; columns of [3, 3]."""
    forward = -centre / centre.norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0], dtype=centre.dtype))
    right = right / right.norm()
    return torch.stack([right, torch.linalg.cross(forward, right), forward], 1)


def test_focal_length_of_the_papers_field_of_view() -> None:
    assert focal_length(49.1) == pytest.approx(1.0946, abs=5e-5)
    assert focal_length(90) == pytest.approx(0.5)
    blender = math.degrees(2 * math.atan(16 / 35))  # a lens of 35 mm before a sensor of 32 mm
    assert blender == pytest.approx(49.13, abs=5e-3)
    assert focal_length(blender) == pytest.approx(35 / 32)


def test_near_and_far_touch_the_corners_of_the_box() -> None:
    assert near_far(2.0, 0.7) == pytest.approx((0.788, 3.212), abs=5e-4)
    near, far = near_far(2.0, 0.7)
    corner = torch.full((3,), 0.7, dtype=torch.float64)
    centre = 2 * corner / corner.norm()  # the worst camera stands above a corner
    assert (centre - corner).norm().item() == pytest.approx(near)
    assert (centre + corner).norm().item() == pytest.approx(far)


def test_matrices_by_hand() -> None:
    side = torch.tensor([[0, 0, -1, 2], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(camera(0, 90), side)
    a, b = math.sqrt(3) / 2, 0.5  # azimuth 90, polar 60
    raised = torch.tensor([[-1, 0, 0, 0], [0, b, -a, 2 * a], [0, -a, -b, 1], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(camera(90, 60), raised)
    front = torch.tensor([[0, 0, 1, -2], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(camera(180, 90), front)  # the reference view stands on -x


@settings(max_examples=60, deadline=None)
@given(ANGLE, POLAR, st.floats(0.5, 5))
def test_axes_are_orthonormal_and_right_handed(azimuth: float, polar: float, radius: float) -> None:
    matrix = camera_to_world(torch.tensor(azimuth).double(), torch.tensor(polar).double(), radius)
    axes = matrix[:3, :3]
    torch.testing.assert_close(axes.T @ axes, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(axes).item() == pytest.approx(1)
    torch.testing.assert_close(matrix[:3, 3], -radius * axes[:, 2])  # it looks at the origin
    assert matrix[2, 1] <= 1e-6  # down never points up; at the pole it is level up to rounding
    if math.sin(polar) > 1e-3:
        torch.testing.assert_close(axes, look_at(matrix[:3, 3]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("azimuth", range(0, 360, 45))
@pytest.mark.parametrize("polar", [20, 70, 90, 160])
def test_a_growing_azimuth_moves_the_camera_to_its_own_right(azimuth: int, polar: int) -> None:
    here, there = camera(azimuth, polar), camera(azimuth + 0.01, polar)
    moved = here[:3, :3].T @ (there - here)[:3, 3]  # in its own axes: right, down, forward
    arc = 2 * math.sin(math.radians(polar)) * math.radians(0.01)
    torch.testing.assert_close(moved, torch.tensor([arc, 0, 0], dtype=torch.float64), atol=1e-6, rtol=0)


def test_what_lies_to_the_cameras_right_appears_on_the_right() -> None:
    """From the reference view (on -x, looking along +x) the right is -y and the upper half is +z."""
    matrix, focal = camera(180, 90), focal_length(49.1)
    local = matrix[:3, :3].T @ (torch.tensor([0.0, -0.3, 0.2], dtype=torch.float64) - matrix[:3, 3])
    x, y = (focal * local[:2] / local[2] + 0.5).tolist()
    assert (x, y) == pytest.approx((0.5 + 1.0946 * 0.15, 0.5 - 1.0946 * 0.1), abs=1e-5)


@pytest.mark.parametrize("polar", [0, 180])
def test_poles_are_well_defined_and_continuous(polar: int) -> None:
    pole, near = camera(30, polar), camera(30, abs(polar - 1e-6))
    torch.testing.assert_close(pole, near, atol=1e-7, rtol=0)
    height = 2.0 if polar == 0 else -2.0
    torch.testing.assert_close(pole[:3, 3], torch.tensor([0, 0, height], dtype=torch.float64), atol=1e-12, rtol=0)
    right = torch.tensor([-0.5, math.sqrt(3) / 2, 0], dtype=torch.float64)  # it follows the azimuth
    torch.testing.assert_close(pole[:3, 0], right)


def test_pixel_centres() -> None:
    assert pixel_centers(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert pixel_centers(1).tolist() == [[0.5, 0.5]]
    assert pixel_centers(64)[:, 0].min().item() == 0.5 / 64
    torch.testing.assert_close(pixel_centers(64).mean(0), torch.tensor([0.5, 0.5]))


def test_rays_of_a_known_camera() -> None:
    """Azimuth 90, polar 60: right (-1, 0, 0), down (0, 1/2, -0.866), forward (0, -0.866, -1/2)."""
    pixels = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=torch.float64)
    origins, directions = rays(camera(90, 60)[None], 0.5, pixels)
    torch.testing.assert_close(origins[0, 1], torch.tensor([0, math.sqrt(3), 1], dtype=torch.float64))
    middle = torch.tensor([0, -0.8660254, -0.5], dtype=torch.float64)
    torch.testing.assert_close(directions[0, 0], middle, atol=1e-7, rtol=0)
    # Image point (0.75, 0.25) at focal 1/2 is (1/2, -1/2, 1) in camera axes, of length sqrt(3/2):
    # (-0.5, -0.25 - 0.8660254, 0.4330127 - 0.5) / 1.2247449
    corner = torch.tensor([-0.4082483, -0.9112309, -0.0546949], dtype=torch.float64)
    torch.testing.assert_close(directions[0, 1], corner, atol=1e-7, rtol=0)


def test_the_outermost_rays_span_the_field_of_view() -> None:
    edges = torch.tensor([[0.0, 0.5], [1.0, 0.5], [0.5, 0.0], [0.5, 1.0]], dtype=torch.float64)
    _, directions = rays(camera(200, 70)[None], focal_length(49.1), edges)
    left, right, top, bottom = directions[0]
    for a, b in ((left, right), (top, bottom)):
        assert math.degrees(math.acos(float(a @ b))) == pytest.approx(49.1)
    assert top[2] > bottom[2]
    assert (right - left) @ camera(200, 70)[:3, 0] > 0


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 4), side=st.integers(1, 6), own=st.booleans(), focal=st.floats(0.3, 3))
def test_rays_have_unit_length_and_a_row_per_pixel(batch: int, side: int, own: bool, focal: float) -> None:
    poses = sphere_poses(batch, generator("rays", batch))
    pixels = pixel_centers(side)
    origins, directions = rays(poses.cameras(2.0), focal, pixels.expand(batch, -1, 2) if own else pixels)
    assert origins.shape == directions.shape == (batch, side * side, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(batch, side * side))
    torch.testing.assert_close(origins.norm(dim=-1), torch.full((batch, side * side), 2.0))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3), max_size=3))
def test_matrices_keep_the_shape_of_the_angles(shape: list[int]) -> None:
    angles = torch.rand(2, *shape)
    assert camera_to_world(angles[0], angles[1], 2.0).shape == (*shape, 4, 4)
    assert relative_pose(angles[0], angles[1], 0.0, 0.0).shape == (*shape, 4)


def test_the_pose_label_is_extrinsics_then_intrinsics() -> None:
    cameras = torch.stack([camera(0, 90), camera(90, 60)]).float()
    labels = pose_label(cameras, 1.25)
    assert labels.shape == (2, 25)
    assert labels[0, :16].tolist() == pytest.approx([0, 0, -1, 2, 1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0, 1], abs=1e-6)
    assert labels[1, 16:].tolist() == [1.25, 0, 0.5, 0, 1.25, 0.5, 0, 0, 1]
    assert torch.equal(labels[1, :16], cameras[1].flatten())


def test_relative_pose_is_target_minus_reference() -> None:
    target = torch.tensor([210.0, 40.0], dtype=torch.float64).deg2rad()
    found = relative_pose(target[0], target[1], math.radians(180), math.radians(70))
    # d_polar = -30 deg = -pi / 6; d_azimuth = +30 deg
    expected = torch.tensor([-0.5235988, 0.5, 0.8660254, 0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    same = relative_pose(target[0], target[1], target[0], target[1])
    torch.testing.assert_close(same, torch.tensor([0.0, 0, 1, 0], dtype=torch.float64))


def kolmogorov(values: torch.Tensor) -> float:
    """Largest distance between the distribution of values in [0, 1] and the uniform one."""
    ordered = values.sort().values
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    return max((ordered - steps[:-1]).abs().max().item(), (ordered - steps[1:]).abs().max().item())


def test_sphere_poses_are_uniform() -> None:
    """Equal areas have equal z (Archimedes): z and the azimuth are uniform and independent; 1 % level, fixed seed."""
    count = 20_000
    poses = sphere_poses(count, generator("uniform"))
    critical = 1.63 / math.sqrt(count)
    z, turn = poses.polar.cos(), poses.azimuth / (2 * math.pi)
    assert kolmogorov((z + 1) / 2) < critical
    assert kolmogorov(turn) < critical
    assert kolmogorov(poses.polar / math.pi) > 0.09  # the naive draw, uniform in the angle, would crowd the poles
    points = camera_to_world(poses.azimuth, poses.polar, 1.0)[:, :3, 3]
    assert points.mean(0).norm().item() < 4 / math.sqrt(count)
    second = points.T @ points / count
    torch.testing.assert_close(second, torch.eye(3, dtype=torch.float64) / 3, atol=0.01, rtol=0)


@pytest.mark.parametrize(("few", "many"), [(1, 2), (7, 16), (16, 500)])
def test_more_sphere_poses_keep_the_first(few: int, many: int) -> None:
    first, more = (sphere_poses(count, generator("prefix")) for count in (few, many))
    assert torch.equal(first.azimuth, more.azimuth[:few])
    assert torch.equal(first.polar, more.polar[:few])
    assert len(torch.unique(more.azimuth)) == many == len(more)
    assert first.azimuth.dtype == torch.float64


def test_an_orbit_is_one_turn_in_equal_steps() -> None:
    orbit = orbit_poses(120, math.radians(70), math.pi)
    degrees = orbit.azimuth.rad2deg()
    torch.testing.assert_close(degrees, 180 + 3 * torch.arange(120, dtype=torch.float64))  # ends before it is back
    torch.testing.assert_close(orbit.polar, torch.full((120,), math.radians(70), dtype=torch.float64))
    centres = orbit.cameras(2.0)[:, :3, 3]
    assert centres.dtype == torch.float32
    torch.testing.assert_close(centres[:, 2], torch.full((120,), 2 * math.cos(math.radians(70))))
    gaps = (centres - centres.roll(-1, 0)).norm(dim=-1)
    torch.testing.assert_close(gaps, gaps[:1].expand(120), atol=1e-5, rtol=0)


def test_angles_between_directions_by_hand() -> None:
    def directions(*pairs: tuple[float, float]) -> Poses:
        azimuth, polar = torch.tensor(pairs, dtype=torch.float64).deg2rad().unbind(1)
        return Poses(azimuth, polar)

    found = angle_between(directions((0, 90), (10, 0)), directions((90, 90), (180, 90), (0, 60), (200, 180)))
    expected = torch.tensor([[90.0, 180, 30, 90], [90, 90, 60, 180]], dtype=torch.float64)
    torch.testing.assert_close(found.rad2deg(), expected, atol=1e-5, rtol=0)
