"""Hierarchical sampling at one go against the reference in float64, and against its two steps."""

import copy
import os

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cad.render import build, call, fused, reference
from cad.render.build import library
from cad.render.hierarchical import render_hierarchical
from cad.render.reference import chord
from tests.render.conftest import (
    FAR,
    HALF_SIDE,
    SAMPLING,
    SMALL,
    assert_near,
    by_layout,
    by_reference,
    case,
    gradients,
    quick,
    shapes,
)  # fmt: skip

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


def at_one_go(planes, rays, layers, coarse, fine, keep_depths=True):
    return render_hierarchical(planes, rays, layers, coarse, fine, HALF_SIDE, FAR, keep_depths)


def in_two_steps(planes, rays, layers, coarse, fine):
    """What `at_one_go` computes, by `refine` and `render`."""
    origins, directions, enter, leave = rays

    def distances(positions):
        return torch.minimum(enter + positions * (leave[..., None] - enter), leave[..., None])

    positions, draws = coarse.transpose(1, 2), fine.transpose(1, 2)
    with torch.no_grad():
        given = [origins, directions, distances(positions), leave]
        positions = fused.refine(planes, given, layers, positions, draws, HALF_SIDE)
    depths = distances(positions)
    outputs = fused.render(planes, [origins, directions, depths, leave], layers, HALF_SIDE, FAR, False)
    return *outputs[:3], depths


def drawn(shape, coarse, fine):
    """Planes, rays that enter and leave the box, some of which miss it, decoder and draws."""
    planes, (origins, directions, *_), decoder = case(**shape)
    draws = torch.Generator().manual_seed(shape["seed"] + 1)
    enter, leave = chord(origins, directions, SAMPLING)
    counts = (torch.rand(shape["batch"], count, shape["count"], generator=draws) for count in (coarse, fine))
    positions = [((torch.arange(x.shape[1])[:, None] + x) / x.shape[1]).clamp(max=1) for x in counts]
    return planes, [origins, directions, enter[..., None], leave], decoder, *positions


def depths_by_reference(planes, rays, decoder, coarse, fine):
    """Depths of the coarse and fine samples [B, R, S + T], ascending, by the parts of the reference."""
    origins, directions, enter, leave = rays
    enter = enter.transpose(1, 2)
    distances = enter + coarse * (leave[:, None] - enter)
    points = origins[:, None] + distances[..., None] * directions[:, None]
    density, _ = reference.field(planes, decoder, points.flatten(1, 2), HALF_SIDE)
    weights = reference.compositing_weights(density.unflatten(1, distances.shape[1:]), distances, leave)
    chosen = enter + reference.importance(weights, fine) * (leave[:, None] - enter)
    return torch.cat([distances, chosen], 1).sort(1).values.transpose(1, 2)


@quick
@given(shapes, st.integers(1, 21), st.integers(1, 21), st.booleans())
@example(SMALL | {"batch": 1, "count": 1, "channels": 48}, 1, 1, False)
@example(SMALL | {"batch": 0}, 3, 2, False)
@example(SMALL | {"count": 0}, 3, 2, True)
def test_outputs_depths_and_every_gradient_match_the_reference(shape, coarse, fine, strided):
    planes, rays, decoder, *positions = drawn(shape, coarse, fine)
    exact, doubles = copy.deepcopy(decoder).double(), planes.double().requires_grad_()
    origins, directions, enter, leave, *draws = (by_layout(x, strided) for x in (*rays, *positions))
    planes = by_layout(planes, strided).requires_grad_()
    found = at_one_go(planes, [origins, directions, enter, leave], list(decoder.fused_layers()), *draws)
    with torch.no_grad():
        depths = depths_by_reference(doubles, [x.double() for x in rays], exact, *(x.double() for x in positions))
    hits = leave > enter[..., 0]
    # Where samples are unlikely, the rounding of the coarse weights moves them.
    torch.testing.assert_close(found[3][hits].double(), depths[hits], rtol=0, atol=1e-3)
    given = [x.double() for x in (origins, directions, found[3], leave)]
    expected = by_reference(doubles, given, exact)[:3]
    for x, y in zip(found[:3], expected, strict=True):
        assert_near(x, y, 1e-5)
    grads = gradients(found[:3], [planes, *decoder.parameters()])
    for x, y in zip(grads, gradients(expected, [doubles, *exact.parameters()]), strict=True):
        assert_near(x, y, 1e-4)


@quick
@given(shapes, st.integers(1, 21), st.integers(1, 21))
def test_it_is_the_two_steps(shape, coarse, fine):
    planes, rays, decoder, *positions = drawn(shape, coarse, fine)
    planes.requires_grad_()
    inputs = [planes, *decoder.parameters()]
    found = at_one_go(planes, rays, list(decoder.fused_layers()), *positions)
    expected = in_two_steps(planes, rays, list(decoder.fused_layers()), *positions)
    assert (found[3].diff(dim=-1) >= 0).all()
    for x, y in zip(found[:3], expected[:3], strict=True):
        assert_near(x, y, 1e-5)
    hits = rays[3] > rays[2][..., 0]
    torch.testing.assert_close(found[3][hits], expected[3][hits], rtol=0, atol=1e-4)  # fine ones move with rounding
    grads = gradients(found[:3], inputs)
    for x, y in zip(grads, gradients(expected[:3], inputs), strict=True):
        assert_near(x, y, 1e-3)


def test_a_ray_that_misses_the_box_sees_white():
    planes, (origins, directions, enter, leave), decoder, *positions = drawn(SMALL, 4, 5)
    nowhere = [origins + 5, directions, torch.ones_like(enter), torch.ones_like(leave)]
    features, opacity, depth, depths = at_one_go(planes, nowhere, list(decoder.fused_layers()), *positions)
    assert torch.equal(features, torch.tensor([1.0, 1, 1, 0, 0]).expand(2, 21, 5))
    assert not opacity.any()
    assert torch.equal(depth, torch.full((2, 21), FAR))
    assert torch.equal(depths, torch.ones(2, 21, 9))


@pytest.mark.parametrize(("batch", "count"), [(0, 4), (2, 0)])
def test_nothing_gives_nothing(batch, count):
    planes, rays, decoder, *positions = drawn(SMALL | {"batch": batch, "count": count}, 3, 2)
    features = at_one_go(planes.requires_grad_(), rays, list(decoder.fused_layers()), *positions)[0]
    assert features.shape == (batch, count, 5)
    assert not any(grad.any() for grad in torch.autograd.grad(features.sum(), [planes, *decoder.parameters()]))


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_change_no_bit(threads, batch):
    planes, rays, decoder, *positions = drawn(SMALL | {"batch": batch, "count": 1100}, 5, 7)
    planes.requires_grad_()

    def everything(count):
        threads(count)
        outputs = at_one_go(planes, rays, list(decoder.fused_layers()), *positions)
        return [*outputs, *gradients(outputs[:3], [planes, *decoder.parameters()])]

    for one, many in zip(everything(1), everything(3), strict=True):
        assert torch.equal(one, many)


def test_memory_layout_changes_no_bit():
    planes, rays, decoder, *positions = drawn(SMALL, 5, 7)
    layers = list(decoder.fused_layers())
    expected = at_one_go(planes, rays, layers, *positions)
    strided = planes.permute(4, 2, 0, 3, 1).contiguous().permute(2, 4, 1, 3, 0)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (*rays, *positions)]
    assert not any(x.is_contiguous() for x in (strided, *turned))
    for x, y in zip(at_one_go(strided, turned[:4], layers, *turned[4:]), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("planes: shape", lambda p, r, c, f: (p[:, :2], r, c, f)),
        ("leave: shape", lambda p, r, c, f: (p, [*r[:3], r[3][:1]], c, f)),
        ("coarse: shape", lambda p, r, c, f: (p, r, c[:, :, 1:], f)),
        ("coarse: shape", lambda p, r, c, f: (p, r, c[:, :0], f)),
        ("fine: shape", lambda p, r, c, f: (p, r, c, f[1:])),
        ("fine: torch.float64", lambda p, r, c, f: (p, r, c, f.double())),
        ("coarse: on meta", lambda p, r, c, f: (p, r, c.to("meta"), f)),
        ("one depth", lambda p, r, c, f: (p, [*r[:2], r[2].expand(-1, -1, 2), r[3]], c, f)),
    ],
)
def test_a_wrong_input_is_named(name, spoil):
    planes, rays, decoder, *positions = drawn(SMALL, 3, 2)
    layers = [x.detach() for x in decoder.fused_layers()]
    planes, rays, coarse, fine = spoil(planes, rays, *positions)
    with pytest.raises(ValueError, match=name):
        at_one_go(planes, rays, layers, coarse, fine)


@pytest.mark.parametrize("part", range(7))
def test_a_value_that_is_not_finite_never_becomes_a_picture(part):
    """Of planes, the four tensors of the rays and the draws, one value each."""
    planes, rays, decoder, *positions = drawn(SMALL, 3, 2)
    tensors = [planes, *(x.clone() for x in rays), *positions]
    tensors[part].view(-1)[-1] = torch.nan
    tensors[0].requires_grad_()
    outputs = at_one_go(tensors[0], tensors[1:5], list(decoder.fused_layers()), *tensors[5:])
    assert all(x.isnan().all() for x in outputs)
    assert torch.autograd.grad(outputs[0].sum(), tensors[0])[0].isnan().all()


def test_without_depths_there_is_no_gradient():
    planes, rays, decoder, *positions = drawn(SMALL, 3, 2)
    with torch.no_grad():
        found = at_one_go(planes, rays, list(decoder.fused_layers()), *positions, keep_depths=False)
    expected = at_one_go(planes, rays, list(decoder.fused_layers()), *positions)
    assert all(torch.equal(x, y) for x, y in zip(found[:3], expected[:3], strict=True))
    assert not found[3].numel()
    with pytest.raises(RuntimeError, match="only if it keeps the depths"):
        at_one_go(planes.requires_grad_(), rays, list(decoder.fused_layers()), *positions, keep_depths=False)


@pytest.mark.slow
@pytest.mark.parametrize("narrower", ["-mno-avx512f", "-mno-avx -mno-fma"])
def test_narrower_vectors_give_the_same_numbers(narrower, tmp_path, monkeypatch):
    """Compiled for the 8 or 4 floats at once of other processors."""
    planes, rays, decoder, *positions = drawn(SMALL | {"channels": 19, "hidden": 37, "features": 21}, 9, 7)
    inputs = [planes.requires_grad_(), *decoder.parameters()]

    def everything():
        outputs = at_one_go(planes, rays, list(decoder.fused_layers()), *positions)
        return [*outputs, *gradients(outputs[:3], inputs)]

    expected = everything()
    monkeypatch.setenv("CXX", f"{os.environ.get('CXX', 'g++')} {narrower}")
    monkeypatch.setenv("CAD_CACHE", str(tmp_path))
    other = build.library.__wrapped__()
    assert other is not None
    assert other._name != library()._name
    monkeypatch.setattr(call, "library", lambda: other)
    for x, y in zip(everything(), expected, strict=True):
        assert_near(x, y, 1e-4)
