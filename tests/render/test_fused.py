"""The fused renderer against the reference in float64: outputs, every gradient, faults, registration."""

import copy

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cad.camera import focal_length, pixel_centers, rays, sphere_poses
from cad.models.decoder import TriplaneDecoder
from cad.render import fused, reference
from cad.render.build import library
from cad.render.choice import use_renderer
from cad.render.image import render_view
from tests.render.conftest import (
    FAR,
    HALF_SIDE,
    NEAR,
    SMALL,
    assert_near,
    by_layout,
    by_reference,
    case,
    decoder_of,
    gradients,
    quick,
    shapes,
)  # fmt: skip

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


@quick
@given(shapes, st.booleans())
@example(SMALL | {"batch": 1, "count": 1, "channels": 48}, False)
@example(SMALL | {"batch": 0}, False)
@example(SMALL | {"count": 0}, True)
def test_outputs_and_every_gradient_match_the_reference(place, shape, strided):
    planes, given, decoder = case(**place.fit(shape), device=place.device)
    exact = copy.deepcopy(decoder).double()
    inputs = [by_layout(x, strided).detach().requires_grad_() for x in (planes, *given)]
    doubles = [x.double().requires_grad_() for x in (planes, *given)]
    found = fused.render(inputs[0], inputs[1:], list(decoder.fused_layers()), HALF_SIDE, FAR, True)
    expected = by_reference(doubles[0], doubles[1:], exact)
    for x, y in zip(found, expected, strict=True):
        assert_near(x, y, 1e-5)
    grads = gradients(found, [*inputs, *decoder.parameters()])
    for x, y in zip(grads, gradients(expected, [*doubles, *exact.parameters()]), strict=True):
        assert_near(x, y, 1e-4)


@quick
@given(shapes, st.integers(1, 20), st.integers(0, 20), st.booleans())
def test_rays_through_the_box_match_the_reference(place, shape, coarse, fine, jittered):
    shape = place.fit(shape)
    draws = torch.Generator().manual_seed(shape["seed"])
    shape["height"], shape["width"] = max(shape["height"], 2), max(shape["width"], 2)
    planes = case(**shape, device=place.device)[0].requires_grad_()
    decoder = decoder_of(shape["channels"], shape["hidden"], shape["features"], draws).to(place.device)
    pixels = torch.rand(shape["count"], 2, generator=draws)
    cameras = sphere_poses(shape["batch"], draws).cameras(2.0)
    wide = focal_length(60.0)  # some rays miss the box
    origins, directions = rays(cameras.to(planes), wide, pixels.to(planes))
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, coarse, fine)
    jitters = [torch.Generator().manual_seed(3) if jittered else None for _ in range(2)]
    found = fused.render_rays(planes, decoder, origins, directions, sampling, jitters[0])
    exact, doubles = copy.deepcopy(decoder).double(), planes.detach().double().requires_grad_()
    expected = reference.render_rays(doubles, exact, origins.double(), directions.double(), sampling, jitters[1])
    for x, y in zip(found, expected, strict=True):
        assert_near(x, y, 1e-4)
    # Fine samples move with the rounding of the coarse weights, hence more room than above.
    grads = gradients(found, [planes, *decoder.parameters()])
    for x, y in zip(grads, gradients(expected, [doubles, *exact.parameters()]), strict=True):
        assert_near(x, y, 2e-3)


def test_camera_gradient_matches_the_reference(place):
    draws = torch.Generator().manual_seed(2)
    planes = torch.randn(2, 3, 8, 8, 8, generator=draws).to(place.device)
    decoder = decoder_of(8, 16, 3, draws).to(place.device)
    cameras = sphere_poses(2, draws).cameras(2.0).to(place.device)
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 9, 0)  # fine samples depend on no gradient, but on rounding
    grads = []
    for render_rays, dtype in ((fused.render_rays, torch.float32), (reference.render_rays, torch.float64)):
        posed = cameras.to(dtype, copy=True).requires_grad_()
        origins, directions = rays(posed, focal_length(49.1), pixel_centers(6).to(posed))
        out = render_rays(planes.to(dtype), copy.deepcopy(decoder).to(dtype), origins, directions, sampling, None)
        grads += gradients([out.features, out.depth], [posed])
    assert_near(*grads, 1e-3)


def test_a_ray_that_misses_the_box_sees_white(place):
    planes, (origins, directions, depths, leave), decoder = case(**SMALL, device=place.device)
    nowhere = [origins + 5, directions, torch.ones_like(depths), torch.ones_like(leave)]
    layers = list(decoder.fused_layers())
    features, opacity, depth, weights = fused.render(planes, nowhere, layers, HALF_SIDE, FAR, True)
    assert torch.equal(features.cpu(), torch.tensor([1.0, 1, 1, 0, 0]).expand(2, 21, 5))
    assert not opacity.any()
    assert not weights.any()
    assert torch.equal(depth.cpu(), torch.full((2, 21), FAR))


@pytest.mark.parametrize(("batch", "count"), [(0, 4), (2, 0)])
def test_nothing_gives_nothing(place, batch, count):
    planes, given, decoder = case(**(SMALL | {"batch": batch, "count": count}), device=place.device)
    planes.requires_grad_()
    features, opacity, _, _ = fused.render(planes, given, list(decoder.fused_layers()), HALF_SIDE, FAR, False)
    assert features.shape == (batch, count, 5)
    grads = torch.autograd.grad(features.sum() + opacity.sum(), [planes, *decoder.parameters()])
    assert not any(grad.any() for grad in grads)
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 4, 3)
    for renderer in (fused, reference):
        out = renderer.render_rays(planes, decoder, *given[:2], sampling, None)
        assert [tuple(x.shape) for x in out] == [(batch, count, 5), (batch, count, 1), (batch, count, 1)]
        assert not torch.autograd.grad(out.features.sum(), planes)[0].any()


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_change_no_bit(threads, batch):
    planes, given, decoder = case(**(SMALL | {"batch": batch, "count": 1100}))
    planes.requires_grad_()

    def everything(count):
        threads(count)
        outputs = fused.render(planes, given, list(decoder.fused_layers()), HALF_SIDE, FAR, True)
        return [*outputs, *gradients(outputs, [planes, *decoder.parameters()])]

    for one, many in zip(everything(1), everything(3), strict=True):
        assert torch.equal(one, many)


def test_sums_that_overflow_are_no_picture_either(place):
    """Finite weights whose products cancel as infinity minus infinity: only the compiled code meets NaN.

    Tensor cores may add up a few products before they round; then these cancel as they would without rounding.
    """
    planes, given, decoder = case(**SMALL, device=place.device)
    hidden, bias, out, offset = (x.detach().clone() for x in decoder.fused_layers())
    planes[:] = 1e3
    cancelled = fused.render(planes, given, [hidden * 0, bias, out, offset], HALF_SIDE, FAR, False)[:3]
    hidden[:] = torch.tensor([3e38, -3e38], device=place.device).repeat(4)
    found = fused.render(planes, given, [hidden, bias, out, offset], HALF_SIDE, FAR, False)[:3]
    seen = cancelled[1] > 0
    assert seen.any()
    for x, y in zip(found, cancelled, strict=True):
        assert (x[seen].isnan() | ((x - y)[seen].abs() < 1e-5) & (place.name != "cpu")).all()


def test_what_the_decoder_says_it_computes_it_computes():
    draws = torch.Generator().manual_seed(6)
    decoder, features = decoder_of(8, 16, 5, draws), torch.randn(2, 8, 9, generator=draws)
    hidden, bias, out, offset = decoder.fused_layers()
    softplus = torch.nn.functional.softplus
    raw = torch.einsum("od,bdp->bop", out, softplus(torch.einsum("dc,bcp->bdp", hidden, features) + bias[:, None]))
    raw = raw + offset[:, None]
    density, radiance = decoder(features)
    torch.testing.assert_close(density, softplus(raw[:, 0] - 1))
    torch.testing.assert_close(radiance, raw[:, 1:].sigmoid() * 1.002 - 0.001)


def test_a_decoder_that_only_happens_to_have_layers_is_the_reference_s():
    class Deep(torch.nn.Module):
        layers = torch.nn.ModuleList

    assert isinstance(TriplaneDecoder(4, 8, 3), fused.FusedDecoder)
    assert not isinstance(Deep(), fused.FusedDecoder)


def test_views_choose_the_renderer(monkeypatch):
    draws = torch.Generator().manual_seed(4)
    planes, decoder = torch.randn(1, 3, 8, 6, 6, generator=draws), decoder_of(8, 16, 3, draws)
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 4, 4)
    calls = []
    original = fused.render_rays
    monkeypatch.setattr(fused, "render_rays", lambda *a: calls.append(a) or original(*a))

    def view(planes, decoder):
        cameras = sphere_poses(1, torch.Generator().manual_seed(1)).cameras(2.0)
        return render_view(planes, decoder, cameras, focal_length(49.1), 5, sampling, None)[0]

    with use_renderer("fused"):
        fast = view(planes, decoder)
        assert len(calls) == 1
        view(planes.double(), copy.deepcopy(decoder).double())  # float64 is the reference's
        assert len(calls) == 1
    torch.testing.assert_close(view(planes, decoder), fast, rtol=0, atol=1e-4)
    assert len(calls) == 1
