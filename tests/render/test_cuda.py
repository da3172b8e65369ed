"""The fused renderer on a GPU beside what test_fused.py runs there too: half precision, sizes, streams, choice."""

import copy

import pytest
import torch

from cad.errors import UserError
from cad.render import call, cuda, fused, reference
from cad.render.build import library
from cad.render.choice import resolve_renderer
from tests.render.conftest import FAR, HALF_SIDE, SMALL, assert_near, by_reference, case, decoder_of, gradients

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
GPU = torch.device("cuda")


def compare(shape, dtype, device, outputs, grads, density=0.0):
    """Outputs and all gradients for planes of this dtype against the reference in float64, within these tolerances.

    density: what is added to the raw one, everywhere.
    """
    planes, given, decoder = case(**shape, device=device)
    planes = planes.to(dtype)
    with torch.no_grad():
        decoder.out.bias[0] += density
    exact = copy.deepcopy(decoder).double()
    inputs = [x.clone().requires_grad_() for x in (planes, *given)]
    doubles = [x.double().requires_grad_() for x in (planes, *given)]
    found = fused.render(inputs[0], inputs[1:], list(decoder.fused_layers()), HALF_SIDE, FAR, True)
    expected = by_reference(doubles[0], doubles[1:], exact)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == torch.float32
        assert_near(x, y, outputs)
    for x, y in zip(
        gradients(found, [*inputs, *decoder.parameters()]),
        gradients(expected, [*doubles, *exact.parameters()]),
        strict=True,
    ):
        assert_near(x, y, grads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "hidden", "features"), [(32, 64, 32), (48, 64, 48), (17, 33, 9), (48, 1, 3), (32, 17, 3)]
)
def test_large_sizes_match_the_reference(gpu, channels, hidden, features):
    shape = {"batch": 2, "count": 70, "samples": 19, "channels": channels, "hidden": hidden, "features": features}
    compare(shape | {"height": 12, "width": 9, "seed": channels}, torch.float32, gpu, 1e-5, 1e-4)


# What tf32 (11 bits), bfloat16's gradients (8 bits) and a sum of 12 rounded numbers leave. Channels of a texel are read
# 8 at once where there are 32, else 4.
@pytest.mark.parametrize(
    ("dtype", "channels"),
    [
        (torch.float16, 32),
        pytest.param(torch.float16, 8, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 32, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 16, marks=pytest.mark.slow),
    ],
)
def test_planes_of_half_precision_match_the_reference(gpu, dtype, channels):
    compare(SMALL | {"channels": channels, "count": 40}, dtype, gpu, 3e-3, 1e-2)


def test_the_decoder_s_gradient_has_the_same_bits_in_each_run(gpu):
    planes, given, decoder = case(**(SMALL | {"count": 200}), device=gpu)
    outputs = fused.render(planes, given, list(decoder.fused_layers()), HALF_SIDE, FAR, False)
    first, second = (
        torch.autograd.grad(outputs[0].square().sum(), [*decoder.parameters()], retain_graph=True) for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_samples_behind_opaque_ones_are_not_missed(gpu):
    """The kernels pass over what is hidden by an optical thickness of 20 or more."""
    compare(SMALL | {"samples": 17}, torch.float32, gpu, 1e-5, 1e-4, density=300.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": 49}, "planes: 49 channels, but .* room for 48"),
        ({"hidden": 65}, "hidden weight: 65 units, but .* room for 64"),
        ({"features": 49}, "output weight: 49 features, but .* room for 48"),
    ],
)
def test_sizes_without_room_are_named(gpu, change, said):
    planes, given, decoder = case(**(SMALL | change), device=gpu)
    with pytest.raises(ValueError, match=said):
        fused.render(planes, given, list(decoder.fused_layers()), HALF_SIDE, FAR, False)


def test_too_many_coarse_samples_are_named_and_the_most_are_refined(gpu):
    for samples in (512, 513):
        planes, given, decoder = case(**(SMALL | {"batch": 1, "count": 2, "samples": samples}), device=gpu)
        layers = [x.detach() for x in decoder.fused_layers()]
        positions = torch.linspace(0, 1, samples, device=gpu).expand(1, 2, -1)
        draws = torch.tensor([0.25, 0.75], device=gpu).expand(1, 2, -1)
        if samples > 512:
            with pytest.raises(ValueError, match=r"positions: 513 coarse samples, but .* room for 512"):
                fused.refine(planes, given, layers, positions, draws, HALF_SIDE)
        else:
            union = fused.refine(planes, given, layers, positions, draws, HALF_SIDE)
            assert union.shape == (1, 2, 514)
            assert (union.diff(dim=-1) >= 0).all()


def test_a_launch_that_fails_says_why(gpu, monkeypatch):
    planes, given, decoder = case(**SMALL, device=gpu)

    class Faulty:
        def __getattr__(self, name):
            return lambda *a: b"out of memory" if name == "cad_fault" else 16 if name == "cad_padded" else 2

    monkeypatch.setattr(cuda.Launcher, "compiled", lambda *a: Faulty())
    monkeypatch.setattr(cuda.Launcher, "stream", lambda self: 0)
    monkeypatch.setattr(call, "launcher_for", cuda.Launcher)
    with pytest.raises(RuntimeError, match="cad_pack: out of memory"):
        fused.render(planes, given, list(decoder.fused_layers()), HALF_SIDE, FAR, False)


@pytest.mark.parametrize(
    ("capability", "compiled", "said"),
    [
        (None, None, "there is no GPU of compute capability 8.0 or newer; set runtime.device to cpu, or"),
        ((7, 0), "library", "there is no GPU of compute capability 8.0"),
        ((9, 0), None, r"it could not be compiled \(see above\); install nvcc, or set it to auto"),
        ((9, 0), "library", None),
    ],
)
def test_the_gpu_is_chosen_where_it_can_be_compiled_for(monkeypatch, capability, compiled, said):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(cuda, "cuda_library", lambda *given: asked.append(given) or compiled)
    assert resolve_renderer("reference", GPU) == "reference"
    assert not asked
    if said is None:
        assert resolve_renderer("auto", GPU) == resolve_renderer("fused", GPU) == "fused"
        assert asked[0][0] == "sm_90"
        return
    assert resolve_renderer("auto", GPU) == "reference"
    with pytest.raises(UserError, match=f"^runtime.renderer: fused is asked for, but {said}"):
        resolve_renderer("fused", GPU)


def test_what_a_gpu_cannot_render_is_the_reference_s(monkeypatch):
    monkeypatch.setattr(cuda, "available", lambda device: True)
    assert cuda.can_render(torch.empty(1, 3, 48, 2, 2, dtype=torch.bfloat16))
    assert not cuda.can_render(torch.empty(1, 3, 48, 2, 2, dtype=torch.float64))
    assert not cuda.can_render(torch.empty(1, 3, 49, 2, 2))


@pytest.mark.gpu
def test_another_stream_gives_the_same_bits(hardware):
    planes, given, decoder = case(**(SMALL | {"count": 3000}), device=hardware)
    layers = [x.detach() for x in decoder.fused_layers()]
    expected = fused.render(planes, given, layers, HALF_SIDE, FAR, True)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(planes)
        busy = torch.randn(4096, 4096, device=hardware)
        for _ in range(20):
            busy = busy @ busy  # the planes come only after this; another stream would see zeros
        late += planes + 0 * busy[0, 0].nan_to_num()
        found = fused.render(late, given, layers, HALF_SIDE, FAR, True)
    stream.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.gpu
def test_a_call_does_not_wait_for_the_gpu_and_fits_in_a_graph(hardware):
    planes, given, decoder = case(**SMALL, device=hardware)
    layers = [x.detach() for x in decoder.fused_layers()]
    expected = fused.render(planes, given, layers, HALF_SIDE, FAR, True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = fused.render(planes, given, layers, HALF_SIDE, FAR, True)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.gpu
def test_half_precision_views_go_through_the_fused_renderer(hardware):
    from cad.camera import focal_length, near_far, sphere_poses
    from cad.render.choice import use_renderer
    from cad.render.image import render_view

    draws = torch.Generator().manual_seed(4)
    planes, decoder = torch.randn(1, 3, 32, 16, 16, generator=draws).to(hardware), decoder_of(32, 64, 3, draws)
    decoder.to(hardware)
    sampling = reference.Sampling(*near_far(2.0, HALF_SIDE), HALF_SIDE, 16, 16)
    cameras = sphere_poses(1, draws).cameras(2.0)
    images = []
    with torch.no_grad():
        for renderer, given in (("reference", planes), ("fused", planes), ("fused", planes.half())):
            with use_renderer(renderer):
                images.append(render_view(given, decoder, cameras, focal_length(49.1), 64, sampling, None)[0])
    assert (images[1] - images[0]).abs().mean() < 1e-4
    assert (images[2] - images[0]).abs().mean() < 1 / 255
