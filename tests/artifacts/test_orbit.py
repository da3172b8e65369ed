import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cad.artifacts import Orbit, OrbitWriter, digest, read_json, write_image, write_json
from cad.artifacts.orbit import opengl_matrix
from cad.camera import camera_to_world, orbit_poses
from cad.errors import UserError

SIDE, FRAMES = 4, 3
POSES = orbit_poses(FRAMES, math.radians(70), math.pi)


def writer(folder) -> OrbitWriter:
    return OrbitWriter(folder, POSES, 2.0, 49.1, SIDE, ["2d", "3d"], [0, 5])


def picture(branch: str, seed: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng([len(branch), seed, k])
    color = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return color, rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8), rng.uniform(0, 3.2, (SIDE, SIDE))


def build(folder) -> None:
    made = writer(folder)
    for branch in made.branches:
        for seed in made.seeds:
            for k in made.missing(branch, seed):
                made.write(branch, seed, k, *picture(branch, seed, k))
    made.finish()


def test_frames_on_white_and_depth_come_back(tmp_path):
    build(tmp_path)
    orbit = Orbit.open(tmp_path)
    assert (orbit.branches, orbit.seeds, len(orbit), orbit.resolution) == (["2d", "3d"], [0, 5], FRAMES, SIDE)
    torch.testing.assert_close(orbit.poses.azimuth, POSES.azimuth, rtol=0, atol=0)
    torch.testing.assert_close(orbit.poses.polar, POSES.polar, rtol=0, atol=0)
    for branch in orbit.branches:
        for seed in orbit.seeds:
            for k in range(FRAMES):
                color, alpha, depth = picture(branch, seed, k)
                np.testing.assert_array_equal(orbit.frame(branch, seed, k), color)
                assert (orbit.alpha(branch, seed, k) >= alpha).all()
                np.testing.assert_allclose(orbit.depth(branch, seed, k), depth, atol=0.5e-4 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.uint8, (2, 2, 3)), arrays.arrays(np.uint8, (2, 2)))
def test_what_is_scored_survives_any_alpha(tmp_path_factory, color, alpha):
    folder = tmp_path_factory.mktemp("orbit")
    made = OrbitWriter(folder, orbit_poses(1, 1.0, 0.0), 2.0, 49.1, 2, ["3d"], [0])
    made.write("3d", 0, 0, color, alpha, np.zeros((2, 2)))
    made.finish()
    orbit = Orbit.open(folder)
    np.testing.assert_array_equal(orbit.frame("3d", 0, 0), color)
    possible = alpha >= 255 - color.min(-1)
    np.testing.assert_array_equal(orbit.alpha("3d", 0, 0)[possible], alpha[possible])


@given(st.floats(-7, 7), st.floats(0.01, 3.13))
def test_nerf_matrices_are_the_cameras_with_two_axes_turned(azimuth, polar):
    angles = torch.tensor([azimuth], dtype=torch.float64), torch.tensor([polar], dtype=torch.float64)
    opencv = camera_to_world(*angles, 2.0)[0].numpy()
    np.testing.assert_allclose(opengl_matrix(azimuth, polar, 2.0), opencv @ np.diag([1, -1, -1, 1]), atol=1e-12)
    assert np.linalg.det(opengl_matrix(azimuth, polar, 2.0)) == pytest.approx(1)


def test_cameras_json_is_what_nerf_programs_read(tmp_path):
    build(tmp_path)
    cameras = read_json(tmp_path / "cameras.json")
    assert cameras["camera_angle_x"] == pytest.approx(math.radians(49.1))
    assert len(cameras["frames"]) == FRAMES
    for k, frame in enumerate(cameras["frames"]):
        assert frame["file_path"] == f"3d/seed-0000/rgba-00{k}.png"
        assert (tmp_path / frame["file_path"]).is_file()
        assert np.shape(frame["transform_matrix"]) == (4, 4)


def test_an_interrupted_orbit_goes_on_and_ends_with_the_same_bytes(tmp_path, kills):
    build(tmp_path / "whole")
    assert kills.before_rename(8, lambda: build(tmp_path / "cut"))
    assert writer(tmp_path / "cut").missing("2d", 0) == []
    assert writer(tmp_path / "cut").missing("2d", 5) == [0, 1, 2]  # its colour is there, its depth is not
    with pytest.raises(ValueError, match="frames are missing"):
        writer(tmp_path / "cut").finish()
    build(tmp_path / "cut")
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_a_wrong_frame_is_not_written(tmp_path):
    color, alpha, depth = picture("2d", 0, 0)
    for wrong in ((color[:2], alpha, depth), (color / 255, alpha, depth), (color, alpha[:2], depth)):
        with pytest.raises(ValueError, match="a frame has side 4"):
            writer(tmp_path).write("2d", 0, 0, *wrong)


def change(folder, **values) -> None:
    write_json(folder / "cameras.json", {**read_json(folder / "cameras.json"), **values})


FRAME = "2d/seed-0005/rgba-001.png"
OPENED = {
    "no cameras": (lambda f: (f / "cameras.json").unlink(), "cameras.json", "missing"),
    "schema": (lambda f: change(f, schema="1"), "cameras.json", "schema version '1'"),
    "no list": (lambda f: change(f, seeds=3), "cameras.json", "'seeds' is int"),
    "lengths": (lambda f: change(f, polar=[1.0]), "cameras.json", "differ in length"),
    "angles": (lambda f: change(f, polar=["a", 1.0, 1.0]), "cameras.json", "something else than radians"),
    "seed unlisted": (lambda f: change(f, seeds=[0, 1]), "cameras.json", "'files'"),
    "frame gone": (lambda f: (f / FRAME).unlink(), FRAME, "missing"),
}


@pytest.mark.parametrize("case", OPENED)
def test_a_broken_orbit_is_named_when_it_is_opened(tmp_path, case):
    damage, file, fault = OPENED[case]
    build(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        Orbit.open(tmp_path)
    assert str(tmp_path / file) in str(error.value)
    assert fault in str(error.value)


def test_a_changed_frame_is_found_when_it_is_read(tmp_path):
    build(tmp_path)
    write_image(tmp_path / FRAME, np.zeros((SIDE, SIDE, 4), np.uint8))
    orbit = Orbit.open(tmp_path)
    orbit.frame("2d", 0, 1)
    with pytest.raises(UserError, match=r"2d/seed-0005: damaged"):
        orbit.frame("2d", 5, 1)


def test_a_frame_of_another_size_is_found_when_it_is_read(tmp_path):
    build(tmp_path)
    write_image(tmp_path / FRAME, np.zeros((2, 2, 4), np.uint8))
    files = read_json(tmp_path / "cameras.json")["files"]
    change(tmp_path, files={**files, "2d/seed-0005": digest(tmp_path / "2d/seed-0005")})
    with pytest.raises(UserError, match=r"rgba-001\.png: uint8 \(2, 2, 4\), not uint8 \(4, 4, 4\)"):
        Orbit.open(tmp_path).frame("2d", 5, 1)


def test_an_unknown_seed_is_one_line(tmp_path):
    build(tmp_path)
    with pytest.raises(UserError, match="no such branch and seed"):
        Orbit.open(tmp_path).depth("2d", 1, 0)
