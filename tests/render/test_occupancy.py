"""Occupancy grids of prepared volumes: no density is lost, and what is empty is known to be."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cad.render import inference, reference
from cad.render.build import library
from cad.render.inference import EMPTY, prepare
from tests.render.conftest import HALF_SIDE, ball, quick, random_field

pytestmark = [
    pytest.mark.skipif(library() is None, reason="needs a C++ compiler"),
    pytest.mark.usefixtures("fused_without_gradients"),
]


def density(planes, decoder, points):
    """Exact density at points in half sides."""
    return reference.field(planes.double(), copy.deepcopy(decoder).double(), points.double() * HALF_SIDE, HALF_SIDE)[0]


def marked(volume, points):
    """Whether the grids say that there may be density at points [B, P, 3] in half sides; plain arithmetic."""
    size, packed = volume.planes.shape[-1], volume.packed
    cell = ((points + 1) * size / 2 - 0.5).clamp(0, size - 1).floor().long() >> packed.shift
    place = (cell[..., 2] * packed.side + cell[..., 1]) * packed.side + cell[..., 0]
    return (packed.bits.gather(1, place >> 5) >> (place & 31)) & 1 == 1


@quick
@given(
    size=st.sampled_from([2, 3, 7, 16, 17, 32]),
    channels=st.sampled_from([1, 8, 17]),
    hidden=st.sampled_from([1, 7, 16, 33]),
    batch=st.integers(1, 2),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    grid=st.sampled_from([4, 128]),
    seed=st.integers(0, 2**31),
)
def test_no_density_above_the_threshold_is_lost(size, channels, hidden, batch, scale, grid, seed):
    planes, decoder = random_field(size, channels, hidden, seed, batch, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "GRID_SIDE", grid)
        volume = prepare(planes, decoder)
    assert volume.packed.side <= grid
    points = torch.rand(batch, 20_000, 3, generator=torch.Generator().manual_seed(seed + 1)) * 2 - 1
    dense = density(planes, decoder, points) > EMPTY
    assert marked(volume, points)[dense].all()


def test_empty_space_is_known_to_be_empty():
    """Marked are the cells of a ball, and its neighbours at most."""
    planes, decoder = ball(32, 0.5)
    volume = prepare(planes, decoder)
    points = torch.rand(1, 50_000, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found, cell = marked(volume, points), 2 / 32
    assert found[points.norm(dim=-1) < 0.5].all()
    assert not found[points.norm(dim=-1) > 0.5 + 3 * cell].any()  # a cell's diagonal, and what softplus adds


def test_a_bound_is_hardly_above_the_largest_density_of_a_corner():
    """On smooth planes, as a generator's are, the tangents cost next to nothing."""
    planes, decoder = random_field(6, 8, 16, 3)
    decoder.out.bias[0] -= 3
    planes = torch.nn.functional.interpolate(planes[0], (48, 48), mode="bicubic", align_corners=True)[None]
    bits = prepare(planes, decoder).packed.bits
    count = sum((word & 0xFFFFFFFF).bit_count() for word in bits[0].tolist())  # a Python number: no sign is lost
    centres = (torch.arange(48) + 0.5) / 48 * 2 - 1
    z, y, x = torch.meshgrid(centres, centres, centres, indexing="ij")
    corners = density(planes, decoder, torch.stack([x, y, z], -1).reshape(1, -1, 3)).view(1, 1, 48, 48, 48)
    largest = torch.nn.functional.max_pool3d(torch.nn.functional.pad(corners, (0, 1) * 3, mode="replicate"), 2, 1)
    least = int((largest > EMPTY).sum())
    assert 0.1 < least / 48**3 < 0.9
    assert least <= count < 1.05 * least
