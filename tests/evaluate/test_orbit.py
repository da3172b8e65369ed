import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cad.artifacts import Orbit, digest
from cad.errors import UserError
from cad.evaluate import orbit as subject
from cad.evaluate.orbit import missing_batches, render_orbit, to_views
from cad.models.generator import Generator
from cad.render.choice import use_renderer


@pytest.fixture
def rendered(orbit_settings, camera, stage2_dir, input_dir, tmp_path, context):
    out = tmp_path / "orbit"
    render_orbit(orbit_settings, camera, stage2_dir, input_dir, out, context)
    return out


def test_an_orbit_is_complete(rendered, context, input_dir):
    orbit = Orbit.open(rendered)
    assert (orbit.branches, orbit.seeds, len(orbit), orbit.resolution) == (["2d", "3d"], [0, 1], 6, 32)
    assert orbit.azimuth[0] == pytest.approx(math.pi)  # the reference view
    np.testing.assert_allclose(orbit.polar, math.radians(70))
    np.testing.assert_allclose(np.diff(orbit.azimuth), math.pi / 3)
    for branch in orbit.branches:
        for seed in orbit.seeds:
            video = (rendered / f"{branch}-seed-{seed:04d}.mp4").read_bytes()
            assert video[4:8] == b"ftyp"
            assert f"orbit/{branch}-seed-{seed:04d}" in context.tracker.seen
    assert not np.array_equal(orbit.frame("3d", 0, 0), orbit.frame("3d", 1, 0))  # seeds are different objects


def test_cameras_are_in_nerfs_layout_and_axes(rendered):
    """The second camera by hand: azimuth 240, polar 70, radius 2; NeRF's columns are right, up, backward, centre."""
    written = json.loads((rendered / "cameras.json").read_text())
    assert written["camera_angle_x"] == pytest.approx(math.radians(49.1))
    assert (rendered / written["frames"][1]["file_path"]).is_file()
    a, p = math.radians(240), math.radians(70)
    back = [math.sin(p) * math.cos(a), math.sin(p) * math.sin(a), math.cos(p)]  # away from the object
    right = [-math.sin(a), math.cos(a), 0]
    up = [-math.cos(p) * math.cos(a), -math.cos(p) * math.sin(a), math.sin(p)]
    expected = np.eye(4)
    expected[:3] = np.stack([right, up, back, 2 * np.array(back)], 1)
    np.testing.assert_allclose(written["frames"][1]["transform_matrix"], expected, atol=1e-9)
    assert up[2] > 0  # the image's up is the world's up
    assert np.linalg.det(expected[:3, :3]) == pytest.approx(1)


def test_an_orbit_tells_its_renderer_and_is_not_gone_on_with_by_another(
    orbit_settings, camera, stage2_dir, input_dir, tmp_path, context, rendered
):
    assert json.loads((rendered / "render.json").read_text()) == {
        **orbit_settings.model_dump(), "renderer": "reference", "device": "cpu",
    }  # fmt: skip
    assert subject.rendered_with(rendered) == orbit_settings
    (rendered / "3d/seed-0000/depth-001.png").unlink()
    with (
        use_renderer("fused"),
        pytest.raises(UserError, match="orbit: was begun with renderer reference, but renderer is fused now"),
    ):
        render_orbit(orbit_settings, camera, stage2_dir, input_dir, rendered, context)


def test_a_resumed_orbit_has_the_same_bits(orbit_settings, camera, stage2_dir, input_dir, tmp_path, context, rendered):
    """Killed at the fifth frame of the second seed, as if the rest had never been rendered."""
    before = digest(rendered)
    for k in range(4, 6):
        (rendered / f"2d/seed-0001/depth-{k:03d}.png").unlink()
    (rendered / "3d/seed-0000/depth-001.png").unlink()
    for leftover in (rendered / "cameras.json", rendered / "contact.png", rendered / "3d-seed-0000.mp4"):
        leftover.unlink()
    render_orbit(orbit_settings, camera, stage2_dir, input_dir, rendered, context)
    assert digest(rendered) == before


def test_a_finished_orbit_renders_nothing(
    orbit_settings, camera, stage2_dir, input_dir, context, rendered, monkeypatch
):
    monkeypatch.setattr(subject, "view_subject", lambda *_: pytest.fail("rendered again"))
    render_orbit(orbit_settings, camera, stage2_dir, input_dir, rendered, context)


def test_a_stage1_checkpoint_is_refused(orbit_settings, camera, stage2_dir, input_dir, tmp_path, context):
    with pytest.raises(UserError):
        render_orbit(orbit_settings, camera, tmp_path / "none", input_dir, tmp_path / "orbit", context)


@budget(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 10)), st.integers(1, 5))
def test_batches_do_not_depend_on_what_is_missing(missing, size):
    settings = type("Settings", (), {"batch": size, "frames": 11})()
    every = missing_batches(list(range(11)), settings)
    assert [k for batch in every for k in batch] == list(range(11))
    some = missing_batches(sorted(missing), settings)
    assert set(some) <= set(every)
    assert missing <= {k for batch in some for k in batch}


def test_views_take_the_background_out_of_depth():
    """Half-covered by a surface at 1.5 before far = 3: the renderer's mean is 2.25, the surface is at 1.5."""
    opacity = torch.tensor([[[[0.5, 0.0], [1.0, 1.0]]]])
    depth = torch.tensor([[[[2.25, 3.0], [1.25, 2.0]]]])
    image = torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 2, 2)
    views = to_views(image, opacity, depth, 3.0)
    np.testing.assert_allclose(views.depth[0], [[1.5, 0.0], [1.25, 2.0]], atol=1e-6)
    np.testing.assert_array_equal(views.alpha[0], [[128, 0], [255, 255]])
    np.testing.assert_array_equal(views.color[0, 0, 0], [0, 128, 255])


@pytest.mark.parametrize(("place", "said"), [(0, "colour"), (1, "opacity"), (2, "depth")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_rendering_that_is_not_finite_is_a_user_error(place, said, value):
    parts = [torch.ones(2, 3, 4, 4), torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4)]
    parts[place][1, 0, 2, 3] = value
    with pytest.raises(UserError, match=f"renders {said} that is not finite; train again"):
        to_views(*parts, 3.0)


@pytest.mark.parametrize("renderer", ["fused", "reference"])
def test_planes_that_are_not_finite_end_the_orbit_in_one_line(
    orbit_settings, camera, stage2_dir, input_dir, tmp_path, context, monkeypatch, renderer
):
    """One value of all, which few rays of the plain renderer would meet."""
    planes = Generator.planes

    def spoilt(self, w):
        found = planes(self, w)
        found[-1, -1, -1, -1, -1] = math.nan
        return found

    monkeypatch.setattr(Generator, "planes", spoilt)
    said = r"^stage2: its generator makes planes of the 2D branch that are not finite; train again with lower rates$"
    with use_renderer(renderer), pytest.raises(UserError, match=said):
        render_orbit(orbit_settings, camera, stage2_dir, input_dir, tmp_path / "orbit", context)
    assert not list((tmp_path / "orbit").rglob("*.png"))


def test_a_raw_alpha_is_resized_to_the_image():
    views = to_views(torch.ones(2, 3, 8, 8), torch.ones(2, 1, 4, 4), torch.full((2, 1, 4, 4), 1.7), 3.0)
    assert views.alpha.shape == views.depth.shape == (2, 8, 8)
    np.testing.assert_allclose(views.depth, 1.7, atol=1e-6)
