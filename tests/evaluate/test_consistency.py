"""Scenes whose warp is known in closed form: a plane that moves by whole pixels, a painted sphere, a billboard."""

import numpy as np
import pytest
import torch

from cad.artifacts import InputArtifact
from cad.camera import focal_length, orbit_poses, pixel_centers, rays
from cad.evaluate.consistency import View, cross_view_error, through_depth_of, view, warp_differences
from cad.evaluate.controls import Row, copied_row

SIDE = 32
FOCAL = 1.25
DISTANCE = 2.0
RADIUS = 0.5  # of the sphere, in scene units


def plane(shift: int, pattern: torch.Tensor, mask: torch.Tensor, error: float = 0.0) -> View:
    """A painted plane that faces the camera, seen from a camera moved to the right by `shift` pixels of the plane.

    The pattern [3, H, 2 H] and the mask [H, 2 H] lie on the plane; moved so, the image is cut `shift` columns later.
    """
    camera = torch.eye(4, dtype=torch.float64)
    camera[0, 3] = shift / SIDE * DISTANCE / FOCAL
    across = ((pixel_centers(SIDE).double() - 0.5) / FOCAL).square().sum(-1).reshape(SIDE, SIDE)
    depth = DISTANCE * (1 + across).sqrt() + error
    part = slice(shift, shift + SIDE)
    return View(pattern[..., part].double(), mask[:, part], depth, camera)


@pytest.fixture
def pattern() -> torch.Tensor:
    return torch.randint(0, 256, (3, SIDE, 2 * SIDE), generator=torch.Generator().manual_seed(0))


def test_a_plane_that_moves_by_whole_pixels(pattern: torch.Tensor) -> None:
    """Noise that is carried to its very place: no error, whatever it looks like; unmoved, the error of the noise."""
    whole = torch.ones(SIDE, 2 * SIDE, dtype=torch.bool)
    first, second = plane(0, pattern, whole), plane(3, pattern, whole)
    warped, still = warp_differences(first, second, FOCAL, 0.05)
    # Three columns have left the image. Rounding may put a border pixel's centre a hair outside, where zeros begin.
    assert (SIDE - 5) * (SIDE - 2) <= len(warped) <= (SIDE - 3) * SIDE
    np.testing.assert_allclose(warped, 0, atol=1e-2)
    assert still.mean() > 50
    backwards, _ = warp_differences(second, first, FOCAL, 0.05)
    np.testing.assert_allclose(backwards, 0, atol=1e-2)


def test_the_difference_without_warp_by_hand(pattern: torch.Tensor) -> None:
    mask = torch.zeros(SIDE, 2 * SIDE, dtype=torch.bool)
    mask[10:13, 10:13] = True  # only its middle pixel has eight solid neighbours
    warped, still = warp_differences(plane(0, pattern, mask), plane(3, pattern, mask), FOCAL, 0.05)
    expected = (pattern[:, 11, 11] - pattern[:, 11, 14]).abs().double().mean()
    np.testing.assert_allclose(still, [expected])
    np.testing.assert_allclose(warped, [0], atol=1e-2)


def test_what_the_target_hides_is_left_out(pattern: torch.Tensor) -> None:
    whole = torch.ones(SIDE, 2 * SIDE, dtype=torch.bool)
    first, nearer = plane(0, pattern, whole), plane(3, pattern, whole, error=-0.2)
    assert len(warp_differences(first, nearer, FOCAL, 0.05)[0]) == 0
    assert len(warp_differences(first, nearer, FOCAL, 0.3)[0]) > 0


def test_what_the_target_does_not_hold_is_left_out(pattern: torch.Tensor) -> None:
    left = torch.ones(SIDE, 2 * SIDE, dtype=torch.bool)
    right = left.clone()
    right[:, SIDE // 2 :] = False  # of the plane, this half is not there in the target
    warped, _ = warp_differences(plane(0, pattern, left), plane(3, pattern, right), FOCAL, 0.05)
    assert len(warped) <= SIDE * (SIDE // 2 - 3)
    np.testing.assert_allclose(warped, 0, atol=1e-2)


def test_between_pixels_all_neighbours_must_be_solid(pattern: torch.Tensor) -> None:
    """Moved by 2.5 pixels, column x falls between the columns x - 3 and x - 2 of the target."""
    whole = torch.ones(SIDE, 2 * SIDE, dtype=torch.bool)
    first, second = plane(0, pattern, whole), plane(0, pattern, whole.clone())
    second.camera[0, 3] = 2.5 / SIDE * DISTANCE / FOCAL
    second.solid[:, 16:] = False
    warped, _ = warp_differences(first, second, FOCAL, 0.05)
    assert len(warped) == 15 * SIDE  # columns 3 to 17: column 2 would need -1, column 18 would need 16


def sphere_row(camera, poses, glued_to_camera=False, depth_error=0.0, seeds=1) -> Row:
    """A sphere at the origin with a smooth painting, traced by the quadratic formula.

    glued_to_camera: the painting turns with the camera, as on a fake that shows every side the same picture.
    """
    matrices = poses.cameras(camera.radius).double()
    origins, directions = rays(matrices, focal_length(camera.fov_deg), pixel_centers(SIDE))
    along = (origins * directions).sum(-1)
    inside = along**2 - (origins**2).sum(-1) + RADIUS**2
    hit = inside > 0
    depth = -along - inside.clamp(min=0).sqrt()
    points = origins + depth[..., None] * directions
    painted = points @ matrices[:, :3, :3] if glued_to_camera else points
    color = torch.where(hit[..., None], 127.5 + 100 * torch.sin(5 * painted + 1), 255.0)
    shape = (len(poses), SIDE, SIDE)
    images = color.round().byte().reshape(*shape, 3).numpy()
    known = torch.where(hit, depth + depth_error, torch.inf).reshape(shape).numpy()
    copies = [np.repeat(part[None], seeds, 0) for part in (images, hit.reshape(shape).numpy(), known)]
    return Row(copies[0], copies[1], copies[2], np.arange(len(poses)))


POSES = orbit_poses(40, 1.2, np.pi)  # frames are 9 deg apart


def test_a_painted_sphere_survives_and_fakes_do_not(camera) -> None:
    error = cross_view_error(sphere_row(camera, POSES), POSES, camera, 1, 0.05)
    assert error.warp_error < 1  # rounding of colours, and their interpolation
    assert error.still_error > 8
    wrong_depth = cross_view_error(sphere_row(camera, POSES, depth_error=0.15), POSES, camera, 1, 0.05)
    assert wrong_depth.warp_error > 4 * error.warp_error
    glued = cross_view_error(sphere_row(camera, POSES, glued_to_camera=True), POSES, camera, 1, 0.05)
    assert glued.warp_error > 8
    assert (glued.still_error, glued.ratio) == (0, None)
    assert error.ratio == pytest.approx(error.warp_error / error.still_error)
    assert error.ratio < 0.1
    assert wrong_depth.ratio > 4 * error.ratio


@pytest.fixture
def billboard(camera, tmp_path) -> Row:
    """The sphere's first view copied to all, on a plane that faces every camera."""
    row = sphere_row(camera, POSES)
    InputArtifact.write(tmp_path, row.images[0, 0], row.silhouettes[0, 0], "a ball", "ball", 180.0, 70.0, "0" * 64)
    return copied_row(InputArtifact.open(tmp_path), camera, len(POSES), SIDE)


def test_a_billboards_points_lie_on_a_plane_through_the_origin(billboard, camera) -> None:
    matrices = POSES.cameras(camera.radius).double()
    origins, directions = rays(matrices, focal_length(camera.fov_deg), pixel_centers(SIDE))
    points = origins + torch.from_numpy(billboard.depth[0].reshape(40, -1).copy())[..., None] * directions
    # Camera-to-world columns: right, down, forward, centre.
    np.testing.assert_allclose((points * matrices[:, None, :3, 2]).sum(-1), 0, atol=1e-6)


def test_a_picture_on_a_billboard_has_a_small_error_and_no_ratio(billboard, camera) -> None:
    """By the error alone, one picture for all views would pass for an object with a slightly wrong depth."""
    fake = cross_view_error(billboard, POSES, camera, 1, 0.05)
    honest = cross_view_error(sphere_row(camera, POSES, depth_error=0.15), POSES, camera, 1, 0.05)
    assert fake.share > 0.5
    assert fake.warp_error < honest.warp_error
    assert fake.ratio is None
    assert honest.ratio < 1


def test_noise_on_a_billboard_does_not_make_a_ratio_below_one(billboard, camera) -> None:
    """What changes is nothing that a depth explains."""
    noise = np.random.default_rng(0).integers(-4, 5, billboard.images.shape)
    noisy = billboard._replace(images=(billboard.images.astype(int) + noise).clip(0, 255).astype(np.uint8))
    assert cross_view_error(noisy, POSES, camera, 1, 0.05).ratio > 1


def test_the_share_is_of_the_pixels_inside(camera) -> None:
    row = sphere_row(camera, POSES)
    whole = cross_view_error(row, POSES, camera, 1, 0.05)
    solid = row.silhouettes[0]
    around = [np.roll(solid, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]  # the border is empty
    assert whole.share == pytest.approx(whole.pixels / np.logical_and.reduce(around).sum())
    assert 0.8 < whole.share < 1
    half = row._replace(depth=row.depth + 0.2 * (np.arange(40) % 3 == 0)[:, None, None])  # every third view is off
    assert cross_view_error(half, POSES, camera, 1, 0.05).share == pytest.approx(whole.share / 3, rel=0.1)


def test_through_one_depth_only_the_colours_count(camera) -> None:
    """Equal colours with a wrong depth are equal once they share the right one, at the same pixels."""
    right, wrong = sphere_row(camera, POSES), sphere_row(camera, POSES, depth_error=0.15)
    wrong.silhouettes[:, :, 15] = False
    one, two = (cross_view_error(each, POSES, camera, 1, 0.05) for each in through_depth_of(right, wrong))
    assert one == two
    assert one.pixels < cross_view_error(right, POSES, camera, 1, 0.05).pixels
    glued = sphere_row(camera, POSES, glued_to_camera=True)
    one, two = (cross_view_error(each, POSES, camera, 1, 0.05) for each in through_depth_of(right, glued))
    assert two.pixels == one.pixels
    assert two.warp_error > 8 * one.warp_error


def test_frames_go_round_and_seeds_count(camera) -> None:
    row, two = sphere_row(camera, POSES), sphere_row(camera, POSES, seeds=2)
    single, double = (cross_view_error(each, POSES, camera, 3, 0.05) for each in (row, two))
    assert double[:2] == (pytest.approx(single.warp_error), pytest.approx(single.still_error))
    assert (double.pixels, double.share) == (2 * single.pixels, pytest.approx(single.share))
    last = Row(row.images[:, [1, 38]], row.silhouettes[:, [1, 38]], row.depth[:, [1, 38]], np.array([1, 38]))
    assert cross_view_error(last, POSES, camera, 3, 0.05).pixels > 0  # from frame 38 to frame 41, which is frame 1
    assert cross_view_error(last, POSES, camera, 2, 0.05) is None
    assert cross_view_error(last, POSES, camera, 40, 0.05) is None  # a whole turn would compare a view with itself


def test_what_cannot_be_measured_is_absent(camera) -> None:
    row = sphere_row(camera, POSES)
    assert cross_view_error(row._replace(depth=None), POSES, camera, 1, 0.05) is None
    contradicting = row._replace(depth=row.depth + 0.2 * (np.arange(40) % 2)[:, None, None])  # every second view
    assert cross_view_error(contradicting, POSES, camera, 1, 0.05) is None
    assert cross_view_error(contradicting, POSES, camera, 1, 0.5).pixels > 0
    fog = row._replace(silhouettes=np.zeros_like(row.silhouettes))
    assert cross_view_error(fog, POSES, camera, 1, 0.05) is None


@pytest.mark.parametrize("nothing", [0.0, np.inf, np.nan])
def test_a_pixel_without_depth_is_not_solid(nothing: float) -> None:
    depth = np.full((2, 2), 2.0)
    depth[0, 1] = nothing
    seen = view(np.zeros((2, 2, 3), np.uint8), np.array([[True, True], [True, False]]), depth, torch.eye(4))
    assert seen.solid.tolist() == [[True, False], [True, False]]
    assert seen.depth[0, 1] == 0
