"""The renderer's ops as torch.library knows them: opcheck, torch.compile, and derivatives that there are not."""

import pytest
import torch

from cad.render import fused, reference
from cad.render.build import library
from cad.render.hierarchical import render_hierarchical
from cad.render.reference import chord, strata
from tests.render.conftest import FAR, HALF_SIDE, NEAR, SAMPLING, SMALL, case

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


def small(device="cpu"):
    """Planes, rays, a decoder's layers, ascending positions [B, R, 6] and draws [B, R, 4]."""
    planes, given, decoder = case(**SMALL, device=device)
    draws = torch.Generator().manual_seed(2)
    positions, wanted = (torch.rand(2, 21, count, generator=draws).sort(-1).values.to(device) for count in (6, 4))
    return planes, given, [x.detach() for x in decoder.fused_layers()], positions, wanted


def with_gradients(*tensors):
    return [x.detach().requires_grad_() for x in tensors]


def test_render_passes_opcheck(place):
    planes, given, layers, *_ = small(place.device)
    arguments = (planes.requires_grad_(), with_gradients(*given), with_gradients(*layers), HALF_SIDE, FAR, True)
    torch.library.opcheck(torch.ops.cad.render.default, arguments)


@pytest.mark.parametrize("needs_rays", [True, False])
def test_the_backward_pass_passes_opcheck(place, needs_rays):
    planes, given, layers, *_ = small(place.device)
    rendered = list(fused.render(planes, given, layers, HALF_SIDE, FAR, needs_rays))
    grads = [torch.ones_like(x) for x in rendered]
    arguments = (grads, rendered, planes, given, layers, HALF_SIDE, FAR, needs_rays)
    torch.library.opcheck(torch.ops.cad.render_backward.default, arguments)


def test_refine_passes_opcheck(place):
    planes, given, layers, positions, wanted = small(place.device)
    torch.library.opcheck(torch.ops.cad.refine.default, (planes, given, layers, positions, wanted, HALF_SIDE))


def hierarchical():
    """Arguments of `cad::render_hierarchical`, without gradients."""
    planes, (origins, directions, *_), layers, *_ = small()
    enter, leave = chord(origins, directions, SAMPLING)
    draws = torch.Generator().manual_seed(3)
    coarse, fine = (strata(enter, count, draws) for count in (4, 3))
    return planes, [origins, directions, enter[..., None], leave], layers, coarse, fine, HALF_SIDE, FAR


def test_hierarchical_sampling_passes_opcheck():
    planes, given, layers, *others = hierarchical()
    for arguments in (
        (planes, given, layers, *others, False),
        (*with_gradients(planes), given, with_gradients(*layers), *others, True),
    ):
        torch.library.opcheck(torch.ops.cad.render_hierarchical.default, arguments)


def compiled_alike(function, planes, backend):
    """Compiled without a break, the function gives the same numbers and gradients of the planes."""
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    planes.requires_grad_()
    found, expected = compiled(planes), function(planes)
    torch.testing.assert_close(found, expected)
    losses = [sum(x.sum() for x in outputs if x.requires_grad) for outputs in (found, expected)]
    torch.testing.assert_close(*(torch.autograd.grad(loss, planes) for loss in losses))


def test_the_compiler_takes_each_op(place):
    planes, given, layers, positions, wanted = small(place.device)

    def everything(planes):
        refined = fused.refine(planes.detach(), given, layers, positions, wanted, HALF_SIDE)
        return *fused.render(planes * 2, given, layers, HALF_SIDE, FAR, True), refined

    compiled_alike(everything, planes, "aot_eager")
    if place.name == "cpu":
        _, *others = hierarchical()
        compiled_alike(lambda planes: render_hierarchical(planes * 2, *others, True)[:3], planes, "aot_eager")


@pytest.mark.parametrize("fine", [0, 3])
def test_the_compiler_takes_a_whole_rendering(place, fine):
    planes, given, decoder = case(**SMALL, device=place.device)
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 4, fine)

    def outputs(planes):
        return tuple(fused.render_rays(planes, decoder, *given[:2], sampling, None))

    with torch.no_grad():
        alike = torch.compile(outputs, backend="aot_eager", fullgraph=True)(planes), outputs(planes)
    torch.testing.assert_close(*alike)
    compiled_alike(outputs, planes, "aot_eager")


@pytest.mark.slow
def test_generated_code_around_the_ops_gives_the_same_numbers():
    planes, given, decoder = case(**SMALL)
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 4, 3)

    def outputs(planes):
        out = fused.render_rays(planes.sin(), decoder, *given[:2], sampling, None)
        return (out.features.sigmoid() * out.opacity,)

    compiled_alike(outputs, planes, "inductor")


def test_a_second_derivative_is_refused():
    planes, given, layers, *_ = small()
    planes.requires_grad_()
    features = fused.render(planes, given, layers, HALF_SIDE, FAR, False)[0]
    (grad,) = torch.autograd.grad(features.square().sum(), planes, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()
