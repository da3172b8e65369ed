"""The fused renderer against the reference in float64: outputs, every gradient, faults, registration."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cad.camera import focal_length, near_far, pixel_centers, rays, sphere_poses
from cad.models.decoder import TriplaneDecoder
from cad.render import fused, reference
from cad.render.build import library
from cad.render.choice import use_renderer
from cad.render.image import render_view

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")

HALF_SIDE = 0.7
NEAR, FAR = near_far(2.0, HALF_SIDE)
quick = settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "count": st.sampled_from([1, 2, 15, 16, 17, 50]),
        "samples": st.sampled_from([1, 3, 4, 5, 16, 17, 37]),
        "channels": st.sampled_from([1, 8, 16, 32, 48]),
        "hidden": st.sampled_from([1, 7, 32, 64]),
        "features": st.sampled_from([1, 3, 6, 32]),
        "height": st.integers(1, 9),
        "width": st.integers(1, 9),
        "seed": st.integers(0, 2**31),
    }
)
SMALL = {
    "batch": 2, "count": 21, "samples": 6, "channels": 8, "hidden": 16, "features": 5,
    "height": 5, "width": 6, "seed": 1,
}  # fmt: skip


def decoder_of(channels, hidden, features, draws):
    decoder = TriplaneDecoder(channels, hidden, features)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
        decoder.out.bias[0] += 2  # rays end inside the box, so that what lies behind a sample matters
    return decoder


def case(batch, count, samples, channels, hidden, features, height, width, seed):
    """Inputs of the op whose samples lie inside and outside the box: planes, rays, decoder."""
    draws = torch.Generator().manual_seed(seed)
    planes = torch.randn(batch, 3, channels, height, width, generator=draws)
    origins = torch.randn(batch, count, 3, generator=draws) * 0.3
    directions = torch.nn.functional.normalize(torch.randn(batch, count, 3, generator=draws), dim=-1)
    origins = origins - 2 * directions
    depths = (torch.rand(batch, count, samples, generator=draws) * 2.4 + 0.8).sort(-1).values
    leave = depths[..., -1] + torch.rand(batch, count, generator=draws) * 0.2
    return planes, [origins, directions, depths, leave], decoder_of(channels, hidden, features, draws)


def by_reference(planes, given, decoder):
    """What the op computes, in the dtype of its inputs, from the parts of the reference."""
    origins, directions, depths, leave = given
    distances = depths.transpose(1, 2)
    points = origins[:, None] + distances[..., None] * directions[:, None]
    density, radiance = reference.field(planes, decoder, points.flatten(1, 2), HALF_SIDE)
    weights = reference.compositing_weights(density.reshape(distances.shape), distances, leave)
    features = (radiance.reshape(len(planes), -1, *distances.shape[1:]) * weights[:, None]).sum(2)
    passed = 1 - weights.sum(1)
    features = torch.cat([features[:, :3] + passed[:, None], features[:, 3:]], 1)
    depth = (weights * distances).sum(1) + passed * FAR
    return features.transpose(1, 2), 1 - passed, depth, weights.transpose(1, 2)


def assert_near(found, expected, tolerance):
    """Equal within `tolerance` of the largest expected value."""
    assert found.shape == expected.shape
    if expected.numel():
        limit = tolerance * max(expected.abs().max().item(), 1e-2)
        torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=limit)


def gradients(outputs, inputs, seed=5):
    draws = torch.Generator().manual_seed(seed)
    loss = sum((x * torch.randn(x.shape, generator=draws).to(x)).sum() for x in outputs)
    return torch.autograd.grad(loss, inputs)


@quick
@given(shapes)
def test_outputs_and_every_gradient_match_the_reference(shape):
    planes, given, decoder = case(**shape)
    exact = copy.deepcopy(decoder).double()
    inputs = [x.clone().requires_grad_() for x in (planes, *given)]
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
def test_rays_through_the_box_match_the_reference(shape, coarse, fine, jittered):
    draws = torch.Generator().manual_seed(shape["seed"])
    shape["height"], shape["width"] = max(shape["height"], 2), max(shape["width"], 2)
    planes = case(**shape)[0].requires_grad_()
    decoder = decoder_of(shape["channels"], shape["hidden"], shape["features"], draws)
    pixels = torch.rand(shape["count"], 2, generator=draws)
    cameras = sphere_poses(shape["batch"], draws).cameras(2.0)
    origins, directions = rays(cameras, focal_length(60.0), pixels)  # wide: some rays miss the box
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


def test_camera_gradient_matches_the_reference():
    draws = torch.Generator().manual_seed(2)
    planes, decoder = torch.randn(2, 3, 8, 8, 8, generator=draws), decoder_of(8, 16, 3, draws)
    cameras = sphere_poses(2, draws).cameras(2.0)
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 9, 0)  # fine samples depend on no gradient, but on rounding
    grads = []
    for render_rays, dtype in ((fused.render_rays, torch.float32), (reference.render_rays, torch.float64)):
        posed = cameras.to(dtype, copy=True).requires_grad_()
        origins, directions = rays(posed, focal_length(49.1), pixel_centers(6).to(dtype))
        out = render_rays(planes.to(dtype), copy.deepcopy(decoder).to(dtype), origins, directions, sampling, None)
        grads += gradients([out.features, out.depth], [posed])
    assert_near(*grads, 1e-3)


def test_a_ray_that_misses_the_box_sees_white():
    planes, (origins, directions, depths, _), decoder = case(**SMALL)
    nowhere = [origins + 5, directions, torch.ones_like(depths), torch.ones(2, 21)]
    layers = list(decoder.fused_layers())
    features, opacity, depth, weights = fused.render(planes, nowhere, layers, HALF_SIDE, FAR, True)
    assert torch.equal(features, torch.tensor([1.0, 1, 1, 0, 0]).expand(2, 21, 5))
    assert not opacity.any()
    assert not weights.any()
    assert torch.equal(depth, torch.full((2, 21), FAR))


@pytest.mark.parametrize(("batch", "count"), [(0, 4), (2, 0)])
def test_nothing_gives_nothing(batch, count):
    planes, given, decoder = case(**(SMALL | {"batch": batch, "count": count}))
    planes.requires_grad_()
    features, opacity, _, _ = fused.render(planes, given, list(decoder.fused_layers()), HALF_SIDE, FAR, False)
    assert features.shape == (batch, count, 5)
    grads = torch.autograd.grad(features.sum() + opacity.sum(), [planes, *decoder.parameters()])
    assert not any(grad.any() for grad in grads)


def test_memory_layout_changes_no_bit():
    planes, given, decoder = case(**SMALL)
    layers = list(decoder.fused_layers())
    expected = fused.render(planes, given, layers, HALF_SIDE, FAR, True)
    strided = planes.permute(4, 2, 0, 3, 1).contiguous().permute(2, 4, 1, 3, 0)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in given]
    weights = [x.repeat_interleave(2, 0)[::2] for x in layers]
    assert not any(x.is_contiguous() for x in (strided, *turned))
    for x, y in zip(fused.render(strided, turned, weights, HALF_SIDE, FAR, True), expected, strict=True):
        assert torch.equal(x, y)
    alike = planes[:1].expand(2, -1, -1, -1, -1)
    assert torch.equal(
        fused.render(alike, given, layers, HALF_SIDE, FAR, False)[0],
        fused.render(alike.contiguous(), given, layers, HALF_SIDE, FAR, False)[0],
    )


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("planes: shape", lambda p, r, d: (p[:, :2], r, d)),
        ("planes: torch.float64", lambda p, r, d: (p.double(), r, d)),
        ("origins: shape", lambda p, r, d: (p, [r[0][..., :2], *r[1:]], d)),
        ("directions: shape", lambda p, r, d: (p, [r[0], r[1][:, 1:], *r[2:]], d)),
        ("depths: torch.float16", lambda p, r, d: (p, [*r[:2], r[2].half(), r[3]], d)),
        ("depths: shape", lambda p, r, d: (p, [*r[:2], r[2][..., :0], r[3]], d)),
        ("leave: shape", lambda p, r, d: (p, [*r[:3], r[3][:1]], d)),
        ("leave: on meta", lambda p, r, d: (p, [*r[:3], r[3].to("meta")], d)),
        ("hidden weight: shape", lambda p, r, d: (p, r, [d[0][:, 1:], *d[1:]])),
        ("output bias: shape", lambda p, r, d: (p, r, [*d[:3], d[3][1:]])),
        ("rays and layers", lambda p, r, d: (p, r[:3], d)),
    ],
)
def test_a_wrong_input_is_named(name, spoil):
    planes, given, decoder = case(**SMALL)
    layers = [x.detach() for x in decoder.fused_layers()]
    with pytest.raises(ValueError, match=name):
        fused.render(*spoil(planes, given, layers), HALF_SIDE, FAR, False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", range(9))
def test_a_value_that_is_not_finite_never_becomes_a_picture(part, value):
    """Of planes, the four tensors of the rays and the four of the decoder, one value each."""
    planes, given, decoder = case(**SMALL)
    tensors = [planes, *given, *(x.detach().clone() for x in decoder.fused_layers())]
    tensors[part].view(-1)[-1] = value
    tensors[0].requires_grad_()
    outputs = fused.render(tensors[0], tensors[1:5], tensors[5:], HALF_SIDE, FAR, True)
    assert all(x.isnan().all() for x in outputs)
    assert torch.autograd.grad(outputs[0].sum(), tensors[0])[0].isnan().all()
    positions = torch.rand(2, 21, 6).sort(-1).values
    assert fused.refine(tensors[0], tensors[1:5], tensors[5:], positions, positions, HALF_SIDE).isnan().all()


def test_sums_that_overflow_are_no_picture_either():
    """Finite weights whose products cancel as infinity minus infinity: only the compiled code meets NaN."""
    planes, given, decoder = case(**SMALL)
    hidden, bias, out, offset = (x.detach().clone() for x in decoder.fused_layers())
    hidden[:] = torch.tensor([3e38, -3e38]).repeat(4)
    planes[:] = 1e3
    features, opacity, depth, _ = fused.render(planes, given, [hidden, bias, out, offset], HALF_SIDE, FAR, False)
    seen = fused.render(planes, given, list(decoder.fused_layers()), HALF_SIDE, FAR, False)[1] > 0
    assert seen.any()
    assert all(x[seen].isnan().all() for x in (features, opacity, depth))


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


def test_a_second_derivative_is_refused():
    planes, given, decoder = case(**SMALL)
    planes.requires_grad_()
    features = fused.render(planes, given, list(decoder.fused_layers()), HALF_SIDE, FAR, False)[0]
    (grad,) = torch.autograd.grad(features.square().sum(), planes, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_registration_passes_opcheck():
    planes, given, decoder = case(**SMALL)
    layers = [x.detach().requires_grad_() for x in decoder.fused_layers()]
    given = [x.requires_grad_() for x in given]
    arguments = (planes.requires_grad_(), given, layers, HALF_SIDE, FAR, True)
    torch.library.opcheck(torch.ops.cad.render.default, arguments)


def test_refine_passes_opcheck_and_the_compiler_takes_both():
    planes, given, decoder = case(**SMALL)
    layers = [x.detach() for x in decoder.fused_layers()]
    positions = torch.rand(2, 21, 6).sort(-1).values
    torch.library.opcheck(
        torch.ops.cad.refine.default, (planes, given, layers, positions, positions[..., :4].contiguous(), HALF_SIDE)
    )
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 4, 3)

    def features(planes):
        return fused.render_rays(planes, decoder, *given[:2], sampling, None).features

    compiled = torch.compile(features, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(planes), features(planes))
    planes.requires_grad_()
    grads = [torch.autograd.grad(function(planes).sum(), planes)[0] for function in (compiled, features)]
    torch.testing.assert_close(*grads)


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
