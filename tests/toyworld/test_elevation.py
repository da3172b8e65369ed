import math
from pathlib import Path

import numpy as np
import pytest
import standins
import torch

from cad.camera import Poses
from cad.config.compose import compose
from cad.errors import UserError
from cad.toyworld import elevation
from cad.toyworld.world import HELD_OUT, instance, render_views

ROOT = Path(__file__).parents[2]


def test_errors_by_hand():
    """Errors -4, +12, +10 and one undetermined, of four."""
    found = elevation.summarize("x", [66.0, 92.0, None, 90.0], np.array([70.0, 80.0, 60.0, 80.0]))
    assert found == ("x", 10.0, 6.0, 0.5, 1, 4)


def test_nothing_determined_has_no_error_and_no_share():
    found = elevation.summarize("x", [None, None], np.array([70.0, 80.0]))
    assert math.isnan(found.median_deg)
    assert (found.near, found.undetermined) == (0.0, 2)


def test_subjects_are_held_out_and_of_every_family(settings):
    found = list(elevation.subjects(settings))
    assert len(found) == len({item.family for item, _ in found}) == 8
    assert all(item.seed >= HELD_OUT for item, _ in found)
    assert all(50 <= math.degrees(float(pose.polar[0])) <= 90 for _, pose in found)


def test_true_views_are_those_at_the_offsets(camera):
    item = instance("robot", 3)
    pose = Poses(azimuth=torch.tensor([3.0], dtype=torch.float64), polar=torch.tensor([1.2], dtype=torch.float64))
    offsets = torch.tensor([[0.0, 0.0], [-0.3, 0.0], [0.2, 1.0]], dtype=torch.float64)
    views = elevation.true_views(item, pose, offsets, camera, 32)
    azimuth, polar = torch.tensor([(3.0, 1.2), (3.0, 0.9), (4.0, 1.4)], dtype=torch.float64).T
    assert np.array_equal(views, render_views(item, Poses(azimuth, polar), camera, 32).images)


@pytest.fixture
def params():
    mini = compose("mini", ["robot"], ROOT / "experiments")
    values = mini.model_dump()
    values["prior"] |= {"steps": 2, "eta": 0.0, "bf16": False}
    values["elevation"] |= {"draws": 1}
    return type(mini).model_validate(values)


def test_the_report_shows_both_scores_of_both_views_and_the_blind_answer(settings, params, tmp_path):
    """An untrained Zero-1-to-3 at 16 px: numbers without worth, in the form that the trained one's have."""
    standins.write_zero123(tmp_path / "zero123")
    said: list[str] = []
    elevation.measure(settings, params, tmp_path, tmp_path / "reports", said.append)
    page = (tmp_path / "reports" / "elevation.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "estimated" not in line]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        "points, true views",
        "points, Zero-1-to-3's views",
        "silhouettes, true views",
        "silhouettes, Zero-1-to-3's views",
        elevation.BLIND,
    ]
    assert rows[4].endswith("0 of 8 |")
    assert len(said) == 5
    elevation.measure(settings, params, tmp_path, tmp_path / "again", said.append)
    assert (tmp_path / "again" / "elevation.md").read_text() == page


def test_more_instances_than_are_held_out_are_refused(settings, params, tmp_path):
    more = settings.model_copy(update={"elevation": settings.elevation.model_copy(update={"instances": 99})})
    with pytest.raises(UserError, match=r"elevation\.instances: 99 is more than"):
        elevation.measure(more, params, tmp_path, tmp_path, print)
