import numpy as np
import pandas as pd
import pytest

from cad.camera import orbit_poses
from cad.evaluate.summary import flattened, relative_image, seed_statistics, truth_summary

POSES = orbit_poses(12, 1.2, 3.0)


def test_std_is_over_the_seeds_means():
    part = pd.DataFrame({"seed": [0, 0, 1, 1], "x": [1.0, 3.0, 4.0, 6.0]})  # means 2 and 5
    assert seed_statistics(part, "x", "image") == {"image": 3.5, "image_std": pytest.approx(4.5**0.5, abs=1e-6)}


def test_each_seeds_azimuths_are_told():
    errors = [0.0, 40.0, 30.0, 20.0]  # the first seed has one of two within 30 deg, the second both
    ours = pd.DataFrame({"row": "3d", "seed": [0, 0, 1, 1], "azimuth_error_deg": errors, "silhouette_iou": 0.5})
    other = pd.DataFrame({"row": "other", "seed": [0], "azimuth_error_deg": [99.0], "silhouette_iou": [0.25]})
    rows = truth_summary(pd.concat([ours, other]), POSES)["rows"]
    assert rows["3d"]["azimuth_right_seeds"] == [0.5, 1.0]
    assert rows["3d"]["azimuth_right"] == 0.75
    assert rows["other"] == {"azimuth_right": 0.0, "azimuth_right_seeds": [0.0], "silhouette_iou": 0.25}


def scored(**image):
    return {"a CLIP": {"rows": {row: {"image": value, "text": 0.0} for row, value in image.items()}}}


def test_relative_image_by_hand():
    found = relative_image(scored(**{"3d": 70.0, "2d": 20.0, "truth": 80.0, "other": 30.0, "copied": 100.0}))
    assert found == {"a CLIP": {"3d": pytest.approx(0.8), "2d": pytest.approx(-0.2)}}


@pytest.mark.parametrize(
    "image",
    [
        {"3d": 70.0},
        {"3d": 70.0, "truth": 80.0},
        {"3d": 70.0, "truth": 80.0, "other": 80.0},
        {"3d": 70.0, "truth": 80.0, "other": 75.1},  # 4.9 points: a change of one would be a fifth
        {"3d": 70.0, "truth": 60.0, "other": 80.0},  # the wrong way round, where the worst would have the most
    ],
)
def test_without_two_ends_well_apart_nothing_is_relative(image):
    assert relative_image(scored(**image)) == {}


def test_just_apart_is_relative_and_more_than_the_truth_is_more_than_one():
    found = relative_image(scored(**{"3d": 82.5, "truth": 80.0, "other": 75.0}))
    assert found == {"a CLIP": {"3d": 1.5}}


def test_the_tracker_gets_plain_numbers():
    parts = {"diversity": {"rows": {"3d": {"lpips": 0.5}}, "refined": 0.7}, "truth": {"rows": {"3d": {"seeds": [1.0]}}}}
    assert flattened({"scorers": scored(truth=80.0), **parts, "frames": 3}) == {
        "a CLIP/truth/image": 80.0,
        "a CLIP/truth/text": 0.0,
        "diversity/3d/lpips": 0.5,
    }
    assert np.isfinite(list(flattened({"scorers": {}}).values())).all()
