import itertools

import numpy as np
import pytest
import torch

from cad.config import CameraSettings, ElevationSettings
from cad.inputs.matching import Matches
from cad.inputs.polar import (
    NEIGHBOURS,
    collect_tracks,
    error,
    join_tracks,
    neighbour_cameras,
    project,
    search,
    triangulate,
    try_angles,
)

CAMERA = CameraSettings(fov_deg=49.1, radius=2.0, half_side=0.7, reference_azimuth_deg=180.0)
SETTINGS = ElevationSettings(
    matcher="patches", loftr=None, turn_deg=10.0, draws=1, white_threshold=240, patch_px=5, window=0.2,
    min_texture=0.01, min_correlation=0.8, max_return_px=1.0, join=0.004, outlier=0.03, min_tracks=30, max_error=0.01,
    min_contrast=0.05,
    score="points", ring_deg=[120.0, -120.0], hull_cells=32, max_uncovered=0.1, min_gap=0.02,
)  # fmt: skip
NONE = Matches(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0))


def seen_from(points: np.ndarray, polar_deg: float, azimuth_deg: float) -> np.ndarray:
    """Points [n, 3] as a pinhole at radius 2 sees them: its own look-at by cross products, its own focal length."""
    polar, azimuth = np.radians(polar_deg), np.radians(azimuth_deg)
    place = 2 * np.array([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)])
    forward = -place / np.linalg.norm(place)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    away = points - place
    focal = 1 / (2 * np.tan(np.radians(49.1 / 2)))
    return np.stack([0.5 + focal * (away @ axis) / (away @ forward) for axis in (right, down)], 1)


def exact_pairs(points: np.ndarray, polar_deg: float, turn_deg: float = 10.0) -> dict[tuple[int, int], Matches]:
    """Faultless correspondences of the four neighbours of a view."""
    offsets = [(-turn_deg, 0), (turn_deg, 0), (0, -turn_deg), (0, turn_deg)]
    views = [torch.tensor(seen_from(points, polar_deg + p, 200 + a)) for p, a in offsets]
    sure = torch.ones(len(points))
    return {(i, j): Matches(views[i], views[j], sure) for i, j in itertools.combinations(range(4), 2)}


def ball(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.35, 0.35, (count, 3))


def test_the_neighbours_are_one_two_three_forty_fives():
    assert NEIGHBOURS == ((-1, 0), (1, 0), (0, -1), (0, 1))


def test_cameras_see_as_an_independent_pinhole():
    points = ball(5)
    cameras = neighbour_cameras(70.0, 10.0, 2.0)
    for camera, (polar, azimuth) in zip(cameras, NEIGHBOURS, strict=True):
        found = project(camera.expand(5, 4, 4), torch.tensor(points), 0.5 / np.tan(np.radians(24.55)))
        np.testing.assert_allclose(found, seen_from(points, 70 + 10 * polar, 10 * azimuth), atol=1e-9)


def test_triangulation_returns_the_points_that_were_projected():
    points = ball(6)
    cameras = neighbour_cameras(55.0, 10.0, 2.0)
    first, second = (torch.tensor(seen_from(points, 55 + 10 * p, 10 * a)) for p, a in (NEIGHBOURS[0], NEIGHBOURS[3]))
    found = triangulate(
        cameras[0].expand(6, 4, 4), cameras[3].expand(6, 4, 4), first, second, 0.5 / np.tan(np.radians(24.55))
    )
    np.testing.assert_allclose(found, points, atol=1e-6)


def test_a_point_behind_a_camera_is_seen_nowhere():
    camera = neighbour_cameras(90.0, 10.0, 2.0)[2:3]
    assert project(camera, 3 * camera[:, :3, 3], 1.0).isinf().all()


@pytest.mark.parametrize("polar", [22, 30, 35, 47, 70, 90, 118, 150, 158])
def test_exact_correspondences_give_the_angle_to_the_degree(polar):
    """The ends of both searches among them: 30 and 150 of the first, 8 beyond them of the second."""
    found = search(collect_tracks(exact_pairs(ball(12), polar), 1e-6), SETTINGS, CAMERA)
    assert found.polar_deg == polar
    assert found.errors[polar] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("turn", [5.0, 20.0])
def test_neighbours_of_another_turn_give_the_angle_too(turn):
    settings = SETTINGS.model_copy(update={"turn_deg": turn})
    assert search(collect_tracks(exact_pairs(ball(12), 47, turn), 1e-6), settings, CAMERA).polar_deg == 47


def test_both_searches_try_their_ends():
    found = search(collect_tracks(exact_pairs(ball(12), 73), 1e-6), SETTINGS, CAMERA)
    assert set(range(30, 151, 10)) | set(range(60, 81)) == set(found.errors)


def test_every_point_is_a_track_from_each_view_and_each_other_pair():
    """4 anchors x 6 ordered pairs of the other three, for each of 5 points."""
    tracks = collect_tracks(exact_pairs(ball(5), 60), 1e-6)
    assert len(tracks) == 4 * 6 * 5
    assert {tuple(row) for row in tracks.views.tolist()} == set(itertools.permutations(range(4), 3))


def test_wrong_matches_do_not_decide():
    pairs = exact_pairs(ball(60), 64)
    rng = np.random.default_rng(1)
    for matches in pairs.values():
        wrong = rng.choice(60, 15, replace=False)
        matches.second[wrong] = torch.tensor(rng.uniform(0.2, 0.8, (15, 2)))
    found = search(collect_tracks(pairs, 1e-6), SETTINGS.model_copy(update={"max_error": 0.03}), CAMERA)
    assert found.polar_deg is not None
    assert abs(found.polar_deg - 64) <= 1


def test_confidence_weighs():
    """Half of the points say 50 deg, half say 110: the trusted ones win."""
    low, high = exact_pairs(ball(20, 0), 50), exact_pairs(ball(20, 1), 110)
    for trusted, answer in ((low, 50), (high, 110)):
        parts = []
        for part in (low, high):
            trust = 1.0 if part is trusted else 0.1
            pairs = {key: Matches(m.first, m.second, trust * m.confidence) for key, m in part.items()}
            parts.append(collect_tracks(pairs, 1e-6))
        assert search(join_tracks(parts), SETTINGS, CAMERA).polar_deg == answer


def undetermined(pairs: dict[tuple[int, int], Matches], join: float = 1e-6) -> str:
    found = search(collect_tracks(pairs, join), SETTINGS, CAMERA)
    assert found.polar_deg is None
    assert "undetermined" in found.sentence()
    return found.why


def test_without_a_match_the_angle_is_undetermined():
    assert "only 0 points" in undetermined(dict.fromkeys(itertools.combinations(range(4), 2), NONE))


def test_matches_that_share_no_view_are_undetermined():
    """One-2-3-45 scores all hypotheses 0 there and takes the first."""
    pairs = exact_pairs(ball(20), 60)
    alone = {key: pairs[key] if key in ((0, 1), (2, 3)) else NONE for key in pairs}
    assert "only 0 points" in undetermined(alone)


def test_too_few_points_are_undetermined():
    assert "only 24 points" in undetermined(exact_pairs(ball(1), 60))


def test_points_that_fit_every_angle_are_undetermined():
    """The point that all cameras look at is in the middle of every view, at every hypothesis."""
    assert "all angles fit alike" in undetermined(exact_pairs(np.zeros((10, 3)), 60))


def test_noise_is_undetermined():
    rng = np.random.default_rng(0)
    shared = torch.tensor(rng.uniform(0.2, 0.8, (4, 40, 2)))
    pairs = {(i, j): Matches(shared[i], shared[j], torch.ones(40)) for i, j in itertools.combinations(range(4), 2)}
    assert "points miss by" in undetermined(pairs)


def test_worthless_matches_are_undetermined():
    pairs = exact_pairs(ball(12), 60)
    undetermined({key: Matches(m.first, m.second, 0 * m.confidence) for key, m in pairs.items()})


def test_a_miss_counts_at_most_as_an_outlier():
    pairs = exact_pairs(ball(12), 60)
    tracks = collect_tracks(pairs, 1e-6)
    far = SETTINGS.model_copy(update={"outlier": 0.001})
    assert 0 < error(tracks, 120, far, CAMERA) <= 0.001 * (1 + 1e-9)
    assert error(tracks, 120, SETTINGS, CAMERA) > 0.005


def test_points_of_two_matches_are_one_within_the_tolerance():
    """Sub-pixel ends of two matches never coincide exactly."""
    pairs = exact_pairs(ball(12), 60)
    for key, matches in pairs.items():
        pairs[key] = Matches(matches.first + 0.0005 * key[1], matches.second, matches.confidence)
    assert len(collect_tracks(pairs, 1e-6)) < len(collect_tracks(pairs, 0.003)) == 4 * 6 * 12


def test_of_equally_good_angles_the_middle_one_is_taken():
    best, coarse, errors = try_angles(lambda polar: float(not 68 <= polar <= 74))
    assert best == 71
    assert set(coarse) == set(range(30, 151, 10))
    assert set(errors) - set(coarse) == set(range(60, 81)) - {60, 70, 80}
