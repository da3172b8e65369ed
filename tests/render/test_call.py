"""What the compiled library is given: wrong inputs named, values that are not finite, any layout in memory."""

import pytest
import torch

from cad.render import call, fused
from cad.render.build import library
from tests.render.conftest import FAR, HALF_SIDE, SMALL, case

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


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
def test_a_wrong_input_is_named(place, name, spoil):
    planes, given, decoder = case(**SMALL, device=place.device)
    layers = [x.detach() for x in decoder.fused_layers()]
    with pytest.raises(ValueError, match=name):
        fused.render(*spoil(planes, given, layers), HALF_SIDE, FAR, False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", range(9))
def test_a_value_that_is_not_finite_never_becomes_a_picture(place, part, value):
    """Of planes, the four tensors of the rays and the four of the decoder, one value each."""
    planes, given, decoder = case(**SMALL, device=place.device)
    tensors = [planes, *given, *(x.detach().clone() for x in decoder.fused_layers())]
    tensors[part].view(-1)[-1] = value
    tensors[0].requires_grad_()
    outputs = fused.render(tensors[0], tensors[1:5], tensors[5:], HALF_SIDE, FAR, True)
    assert all(x.isnan().all() for x in outputs)
    assert torch.autograd.grad(outputs[0].sum(), tensors[0])[0].isnan().all()
    positions = torch.rand(2, 21, 6, device=place.device).sort(-1).values
    assert fused.refine(tensors[0], tensors[1:5], tensors[5:], positions, positions, HALF_SIDE).isnan().all()


def test_memory_layout_changes_no_bit(place):
    planes, given, decoder = case(**SMALL, device=place.device)
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


def test_planes_beyond_32_bit_offsets_are_refused(place):
    _, given, decoder = case(**SMALL, device=place.device)
    layers = [x.detach() for x in decoder.fused_layers()]
    planes = torch.zeros((), device=place.device).expand(2, 3, 8, 11000, 11000)  # 2.9e9 values a volume, in one number
    with pytest.raises(ValueError, match=r"planes: .* more values than 32-bit offsets reach"):
        fused.render(planes, given, layers, HALF_SIDE, FAR, False)


def test_another_device_than_cpu_and_cuda_is_refused():
    with pytest.raises(ValueError, match="planes: on meta, but the fused renderer runs on cpu and cuda"):
        call.launcher_for(torch.empty(1, 3, 4, 5, 5, device="meta"), [])


@pytest.mark.parametrize("channels", [1, 8, 19])
def test_packed_texels_have_their_channels_side_by_side(channels):
    planes = torch.randn(4, 5, 2, 3, channels, generator=torch.Generator().manual_seed(0)).permute(2, 3, 4, 0, 1)
    texels, finite = call.pack(planes)
    assert finite
    assert texels.shape[:4] == (2, 3, 4, 5)
    assert torch.equal(texels[..., :channels], planes.permute(0, 1, 3, 4, 2))
    planes[1, 2, 0, 3, 4] = torch.inf
    assert not call.pack(planes)[1]
