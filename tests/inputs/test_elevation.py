import math
from pathlib import Path

import numpy as np
import pytest
import standins
import torch
from PIL import Image

from cad.camera import Poses
from cad.config import Params
from cad.config.compose import compose
from cad.errors import UserError
from cad.inputs.elevation import (
    ESTIMATORS,
    by_silhouettes,
    draw_views,
    estimate_from_views,
    estimate_named,
    estimate_polar,
)
from cad.inputs.matching import Matches
from cad.inputs.polar import neighbour_offsets
from cad.prior.pictures import to_network, to_picture
from cad.prior.zero123 import Zero123
from cad.seeding import generator
from cad.toyworld.elevation import true_views
from cad.toyworld.world import instance

CPU = torch.device("cpu")
SIDE = standins.RESOLUTION
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """Mini's settings with a random Zero-1-to-3 of 16 px and two draws of two steps."""
    folder = standins.write_zero123(tmp_path_factory.mktemp("weights") / "zero123")
    values = compose("mini", ["robot"], EXPERIMENTS).model_dump()
    values["models"]["zero123"] = str(folder)
    values["prior"] |= {"steps": 2, "eta": 0.0, "bf16": False}
    values["elevation"] |= {"draws": 2}
    values["input"]["resolution"] = values["generator"]["output_resolution"] = SIDE
    values["input"]["min_side"] = 8
    values["generator"]["raw_resolution"] = 8
    values["stage2"]["branch_3d"] = False  # its patches are larger than these pictures
    values["objects"]["robot"]["image"] = str(folder.parent / "robot.png")
    Image.fromarray(picture()).save(folder.parent / "robot.png")
    return Params.model_validate(values)


def picture() -> np.ndarray:
    """A red patch on white, uint8 [16, 16, 3]."""
    pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
    pixels[4:12, 5:11] = (200, 30, 30)
    return pixels


def test_neighbours_are_the_models_own(params):
    """The fourth, ten degrees to the right, drawn alone by hand from its own stream."""
    model = Zero123.load(params.models.zero123, CPU, torch.float32)
    drawn = draw_views(model, picture(), neighbour_offsets(10.0), (0, "robot", "elevation", 1), params.prior, CPU)
    assert drawn.shape == (4, SIDE, SIDE, 3)
    turn = np.radians(10)
    pose = torch.tensor([[0.0, np.sin(turn), np.cos(turn), 0.0]], dtype=torch.float32)
    noise = torch.randn(1, 4, 8, 8, generator=generator(0, "robot", "elevation", 1, 3))
    embedding, latent = model.condition(to_network(picture()[None], CPU))
    alone = to_picture(model.sample(embedding, latent, pose, noise, None, 2, params.prior.guidance, 0.0))
    assert np.abs(alone[0].astype(int) - drawn[3].astype(int)).max() <= 1


@pytest.mark.parametrize("score", ["points", "silhouettes"])
def test_an_untrained_models_views_determine_nothing(params, score):
    """And say so, the same again."""
    params = params.model_copy(update={"elevation": params.elevation.model_copy(update={"score": score})})
    found = estimate_polar(picture(), "robot", params, CPU)
    assert found.polar_deg is None
    assert "undetermined" in found.sentence()
    assert estimate_polar(picture(), "robot", params, CPU) == found


def test_draws_are_matched_among_themselves_alone(params):
    asked = []

    class Recorder:
        def match(self, first, second, masks):
            asked.append((int(first[0, 0, 0]), int(second[0, 0, 0]), masks[0].any(), masks[1].all()))
            return Matches(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0))

    seen = [np.stack([np.full((4, 4, 3), 10 * draw + k, np.uint8) for k in range(4)]) for draw in (1, 2)]
    assert estimate_from_views(seen, Recorder(), params.elevation, params.camera).polar_deg is None
    expected = [(10 * d + i, 10 * d + j) for d in (1, 2) for i in range(4) for j in range(i + 1, 4)]
    assert [pair[:2] for pair in asked] == expected
    assert all(pair[2] and pair[3] for pair in asked)  # all of these pictures are foreground


@pytest.mark.parametrize("score", ["points", "silhouettes"])
@pytest.mark.parametrize("polar", [55.0, 80.0])
def test_true_views_of_a_toy_give_its_angle(score, polar):
    """The whole estimator but for the diffusion model, with mini's settings."""
    mini = compose("mini", ["robot"], EXPERIMENTS)
    pose = Poses(azimuth=torch.tensor([3.0], dtype=torch.float64), polar=torch.tensor([polar]).double().deg2rad())

    def draw(offsets):
        return [true_views(instance("car", 51), pose, offsets, mini.camera, 64)]

    found = ESTIMATORS[score](mini.elevation, mini.camera, CPU)(draw(torch.zeros(1, 2).double())[0][0], draw)
    assert found.polar_deg is not None
    assert abs(found.polar_deg - polar) <= 7


def test_draws_vote_on_silhouettes_and_the_picture_is_its_own(params):
    """One draw of three is wrong everywhere: the two others outvote it. The ring's first view is the picture."""
    asked = []
    scene, azimuth = instance("car", 51), torch.tensor([3.0], dtype=torch.float64)
    pose = Poses(azimuth=azimuth, polar=torch.tensor([1.1], dtype=torch.float64))

    def draw(offsets):
        asked.append(offsets)
        true = true_views(scene, pose, offsets, params.camera, 64)
        return [true, np.full_like(true, 0), true]

    own = true_views(scene, pose, torch.zeros(1, 2).double(), params.camera, 64)[0]
    found = by_silhouettes(params.elevation, params.camera, CPU)(own, draw)
    assert found.polar_deg is not None
    assert abs(found.polar_deg - math.degrees(1.1)) <= 7
    assert f"by {1 + len(params.elevation.ring_deg)} silhouettes" in found.sentence()
    np.testing.assert_allclose(asked[0][:, 1].rad2deg(), params.elevation.ring_deg)
    assert not asked[0][:, 0].any()


def test_objects_and_pictures_are_found_by_name(params, tmp_path):
    by_name = estimate_named("robot", params)
    Image.fromarray(picture()).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "robot.png")
    by_file = estimate_named(str(tmp_path / "robot.png"), params)
    assert {by_name.polar_deg, by_file.polar_deg} == {None}


def test_neither_object_nor_file_is_one_line(params):
    with pytest.raises(UserError, match=r"teapot: is no object of the settings \(robot\) and no file"):
        estimate_named("teapot", params)


def test_a_picture_of_another_size_is_refused(params):
    with pytest.raises(UserError, match=r"does not fit models\.zero123"):
        estimate_polar(np.full((32, 32, 3), 255, np.uint8), "robot", params, CPU)
