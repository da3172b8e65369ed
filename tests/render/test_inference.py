"""Views of prepared volumes are the plain views, but for what may be skipped; test_occupancy.py tests their grids."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cad.camera import focal_length, orbit_poses, rays, sphere_poses
from cad.models.decoder import TriplaneDecoder
from cad.render import inference, reference
from cad.render.build import library
from cad.render.choice import use_renderer
from cad.render.image import render_view
from cad.render.inference import prepare
from tests.render.conftest import FAR, HALF_SIDE, NEAR, SAMPLING, ball, by_layout, quick, random_field

pytestmark = [
    pytest.mark.skipif(library() is None, reason="needs a C++ compiler"),
    pytest.mark.usefixtures("fused_without_gradients"),
]

FOCAL = focal_length(49.1)
GREY = 1 / 255


def views(planes, decoder, count=2, resolution=24, sampling=SAMPLING, jitter=None):
    """Views of a volume, and the same from its planes as they are."""
    cameras = orbit_poses(count, 1.1, 0.4).cameras(2.0)
    jitters = [jitter and torch.Generator().manual_seed(jitter) for _ in range(2)]
    volume = prepare(planes, decoder)
    found = render_view(volume, decoder, cameras, FOCAL, resolution, sampling, jitters[0])
    plain = planes.expand(count, -1, -1, -1, -1)
    return found, render_view(plain, decoder, cameras, FOCAL, resolution, sampling, jitters[1])


def test_an_object_looks_the_same():
    found, plain = views(*ball(32, 0.6), resolution=48)
    assert plain[1].max() > 0.99
    assert plain[1].min() < 0.02
    for x, y, largest in zip(found, plain, (2, 2, 4), strict=True):
        assert x.shape == y.shape
        assert (x - y).abs().mean() < GREY / 10
        assert (x - y).abs().max() < largest * GREY


@quick
@given(
    size=st.sampled_from([2, 5, 16, 33]),
    hidden=st.sampled_from([1, 16, 37]),
    scale=st.sampled_from([0.1, 1.0]),
    fine=st.sampled_from([0, 1, 8, 19]),
    jitter=st.sampled_from([None, 4]),
    seed=st.integers(0, 2**31),
)
def test_random_planes_look_the_same(size, hidden, scale, fine, jitter, seed):
    planes, decoder = random_field(size, 9, hidden, seed, scale=scale)
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 7, fine)
    found, plain = views(planes, decoder, resolution=9, sampling=sampling, jitter=jitter)
    for x, y in zip(found, plain, strict=True):
        assert (x - y).abs().mean() < GREY


def constant(raw, features=3):
    """A volume whose raw density is the same everywhere."""
    decoder = TriplaneDecoder(2, 4, features)
    for parameter in decoder.parameters():
        parameter.zero_()
    decoder.out.bias[0] = raw
    return torch.zeros(1, 3, 2, 8, 8), decoder


def test_an_empty_volume_is_white_and_a_full_one_is_as_dense_as_it_is():
    empty, plain = views(*constant(-20.0))
    assert not prepare(*constant(-20.0)).packed.bits.any()
    assert torch.equal(empty[0], torch.ones_like(plain[0]))
    assert not empty[1].any()
    assert torch.equal(empty[2], torch.full_like(plain[2], FAR))
    full, plain = views(*constant(2.0))  # of which e^-3 and less of the light pass
    assert 0.9 < plain[1].max() < 1 - 1e-3
    for x, y in zip(full, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-6)


def test_a_ray_ends_where_less_than_a_thousandth_of_the_light_passes():
    """Density 19 and samples 1.4 / 16 apart, by hand: the light that is left falls to e^-1.66 at each."""
    planes, decoder = constant(20.0)
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 16, 0)
    origins, directions = torch.tensor([[[2.0, 0.1, 0.1]]]), torch.tensor([[[-1.0, 0.0, 0.0]]])
    opacity = inference.render_rays(prepare(planes, decoder), origins, directions, sampling, None).opacity.item()
    samples = 1
    while torch.exp(torch.tensor(-19 * 1.4 / 16 * samples)) >= 1e-3:
        samples += 1
    assert samples < 8
    assert opacity == pytest.approx(1 - torch.exp(torch.tensor(-19 * 1.4 / 16 * samples)).item(), abs=1e-6)
    everything = reference.render_rays(planes, decoder, origins, directions, sampling, None).opacity.item()
    assert 1e-6 < everything - opacity < 1e-3


def test_only_marked_cells_are_evaluated():
    planes, decoder = ball(16, 0.6)
    volume = prepare(planes, decoder)
    cameras = orbit_poses(1, 1.1, 0.4).cameras(2.0)
    seen = render_view(volume, decoder, cameras, FOCAL, 16, SAMPLING, None)[1]
    assert seen.max() > 0.9
    volume.packed.bits.zero_()
    assert not render_view(volume, decoder, cameras, FOCAL, 16, SAMPLING, None)[1].any()


def test_many_volumes_are_each_one():
    planes, decoder = random_field(9, 8, 16, 5, batch=3)
    cameras = sphere_poses(3, torch.Generator().manual_seed(2)).cameras(2.0)
    together = render_view(prepare(planes, decoder), decoder, cameras, FOCAL, 11, SAMPLING, None)
    for i in range(3):
        alone = render_view(prepare(planes[i : i + 1], decoder), decoder, cameras[i : i + 1], FOCAL, 11, SAMPLING, None)
        for x, y in zip(together, alone, strict=True):
            assert torch.equal(x[i : i + 1], y)


def test_a_view_does_not_depend_on_its_neighbours():
    """A resumed orbit and a whole one have the same bits, whatever rays lie beside one another."""
    planes, decoder = ball(16, 0.6)
    volume, cameras = prepare(planes, decoder), orbit_poses(5, 1.1, 0.4).cameras(2.0)
    together = render_view(volume, decoder, cameras, FOCAL, 13, SAMPLING, None)
    alone = render_view(volume, decoder, cameras[3:4], FOCAL, 13, SAMPLING, None)
    assert all(torch.equal(x[3:4], y) for x, y in zip(together, alone, strict=True))


def test_threads_change_no_bit(threads):
    planes, decoder = random_field(33, 8, 16, 5)
    cameras = orbit_poses(2, 1.1, 0.4).cameras(2.0)

    def everything(count):
        threads(count)
        volume = prepare(planes, decoder)
        return [volume.packed.bits, *render_view(volume, decoder, cameras, FOCAL, 40, SAMPLING, None)]

    assert all(torch.equal(one, many) for one, many in zip(everything(1), everything(3), strict=True))


def test_memory_layout_changes_no_bit():
    planes, decoder = random_field(9, 8, 16, 5)
    strided = by_layout(planes, True)
    assert not strided.is_contiguous()
    cameras = orbit_poses(1, 1.1, 0.4).cameras(2.0)
    whole, other = (
        render_view(prepare(x, decoder), decoder, cameras, FOCAL, 9, SAMPLING, None) for x in (planes, strided)
    )
    assert all(torch.equal(x, y) for x, y in zip(whole, other, strict=True))


@pytest.mark.parametrize(("cameras", "count"), [(1, 1), (0, 4), (2, 0)])
def test_one_ray_and_none(cameras, count):
    planes, decoder = ball(16, 0.6)
    origins, directions = rays(orbit_poses(cameras, 1.1, 0.4).cameras(2.0), FOCAL, torch.full((count, 2), 0.45))
    found = inference.render_rays(prepare(planes, decoder), origins, directions, SAMPLING, None)
    many = planes.expand(cameras, -1, -1, -1, -1)
    expected = reference.render_rays(many, decoder, origins, directions, SAMPLING, None)
    assert not count or (expected.opacity > 0.9).all()
    for x, y, largest in zip(found, expected, (2, 2, 4), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=largest * GREY)


def test_no_volumes_at_all():
    planes, decoder = random_field(9, 8, 16, 5, batch=0)
    nowhere = torch.zeros(0, 4, 3)
    found = inference.render_rays(prepare(planes, decoder), nowhere, nowhere, SAMPLING, None)
    assert [tuple(x.shape) for x in found] == [(0, 4, 5), (0, 4, 1), (0, 4, 1)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_never_becomes_a_picture(value):
    cameras = orbit_poses(1, 1.1, 0.4).cameras(2.0)
    for spoil in (lambda p, d: p, lambda p, d: d.hidden.bias):
        planes, decoder = ball(8, 0.5)
        spoil(planes, decoder).view(-1)[-1] = value
        assert all(x.isnan().all() for x in views(planes, decoder)[0])
    planes, decoder = ball(8, 0.5)
    cameras[0, 0, 3] = value
    found = render_view(prepare(planes, decoder), decoder, cameras, FOCAL, 5, SAMPLING, None)
    assert all(x.isnan().all() for x in found)


def test_sums_that_overflow_are_no_picture_either():
    """Finite weights whose products cancel as infinity minus infinity."""
    planes, decoder = random_field(8, 8, 16, 1)
    decoder.hidden.weight[:] = torch.tensor([3e38, -3e38]).repeat(4)
    found, _ = views(planes * 1e3, decoder)
    assert found[0].isnan().any()


def test_what_is_no_volume_of_the_fused_renderer_is_rendered_from_its_planes():
    planes, decoder = random_field(8, 8, 16, 1)
    cameras = orbit_poses(2, 1.1, 0.4).cameras(2.0)
    with use_renderer("reference"):
        volume = prepare(planes, decoder)
        found = render_view(volume, decoder, cameras, FOCAL, 7, SAMPLING, None)
        plain = render_view(planes.expand(2, -1, -1, -1, -1), decoder, cameras, FOCAL, 7, SAMPLING, None)
    assert volume.packed is None
    assert all(torch.equal(x, y) for x, y in zip(found, plain, strict=True))
    assert prepare(planes.double(), decoder).packed is None
    assert prepare(planes[..., 1:], decoder).packed is None
    with pytest.raises(ValueError, match="not packed"):
        inference.render_rays(volume, *rays(cameras, FOCAL, torch.full((1, 2), 0.5)), SAMPLING, None)


def test_a_volume_is_for_inference_and_its_own_decoder():
    planes, decoder = random_field(8, 8, 16, 1)
    volume, cameras = prepare(planes, decoder), orbit_poses(2, 1.1, 0.4).cameras(2.0)
    with pytest.raises(ValueError, match="by the decoder that it is made with"):
        render_view(volume, copy.deepcopy(decoder), cameras, FOCAL, 7, SAMPLING, None)
    with torch.enable_grad(), pytest.raises(ValueError, match="without gradients"):
        render_view(volume, decoder, cameras, FOCAL, 7, SAMPLING, None)
    many = prepare(planes.expand(3, -1, -1, -1, -1), decoder)
    with pytest.raises(ValueError, match="for 2 volumes, but there are 3"):
        render_view(many, decoder, cameras, FOCAL, 7, SAMPLING, None)
