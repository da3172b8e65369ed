"""Prepared volumes on a GPU: their grids, and that views of them are the plain views; run by an emulator everywhere."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cad.camera import focal_length, orbit_poses, rays, sphere_poses
from cad.render import call, cuda, fused, inference, reference
from cad.render.build import library
from cad.render.image import render_view
from cad.render.inference import EMPTY, prepare
from tests.render.conftest import FAR, HALF_SIDE, NEAR, ball, by_layout, decoder_of, quick, random_field

pytestmark = [
    pytest.mark.skipif(library() is None, reason="needs a C++ compiler"),
    pytest.mark.usefixtures("fused_without_gradients"),
]

FOCAL = focal_length(49.1)
GREY = 1 / 255
SAMPLING = reference.Sampling(NEAR, FAR, HALF_SIDE, 6, 6)
few = settings(quick, max_examples=5)


@pytest.fixture
def gpu(gpu, monkeypatch):
    """Where it is emulated, planes are taken that a GPU takes."""
    if gpu.type == "cpu":
        monkeypatch.setattr(fused, "can_render", lambda planes: planes.dtype in cuda.PLANES)
    return gpu


def placed(device, planes, decoder, dtype=torch.float32):
    return planes.to(device, dtype), decoder.to(device)


def orbit(device, count=2):
    return orbit_poses(count, 1.1, 0.4).cameras(2.0).to(device)


def views(planes, decoder, count=2, resolution=9, sampling=SAMPLING, jitter=None):
    """Views of a volume, and the same from its planes as they are."""
    cameras = orbit(planes.device, count)
    jitters = [jitter and torch.Generator().manual_seed(jitter) for _ in range(2)]
    volume = prepare(planes, decoder)
    assert volume.packed is not None
    found = render_view(volume, decoder, cameras, FOCAL, resolution, sampling, jitters[0])
    plain = planes.expand(count, -1, -1, -1, -1)
    return found, render_view(plain, decoder, cameras, FOCAL, resolution, sampling, jitters[1])


def places(points, volume):
    """Where points [P, 3] in half sides lie in the grid; plain arithmetic."""
    size, packed = volume.planes.shape[-1], volume.packed
    cell = ((points + 1) * size / 2 - 0.5).clamp(0, size - 1).floor().long() >> packed.shift
    return (cell[..., 2] * packed.side + cell[..., 1]) * packed.side + cell[..., 0]


def marked(volume, points):
    """Whether the grid of the first volume says that there may be density at these points; plain arithmetic."""
    place, bits = places(points, volume), volume.packed.bits[0]
    return (bits[place >> 5] >> (place & 31)) & 1 == 1


@quick
@given(
    size=st.sampled_from([1, 2, 7, 16, 21]),
    channels=st.sampled_from([1, 8, 16]),
    hidden=st.sampled_from([1, 7, 33]),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    grid=st.sampled_from([4, 128]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_no_density_above_the_threshold_is_lost(gpu, size, channels, hidden, scale, grid, dtype, seed):
    planes, decoder = placed(gpu, *random_field(size, channels, hidden, seed, scale=scale), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "GRID_SIDE", grid)
        volume = prepare(planes, decoder)
    assert volume.packed.side <= grid
    points = torch.rand(10_000, 3, generator=torch.Generator().manual_seed(seed + 1)).to(gpu) * 2 - 1
    exact = copy.deepcopy(decoder).double()
    density = reference.field(planes.double(), exact, points[None].double() * HALF_SIDE, HALF_SIDE)[0][0]
    assert marked(volume, points)[density > EMPTY].all()


@few
@given(
    size=st.sampled_from([16, 21]),
    hidden=st.sampled_from([3, 16, 33]),
    grid=st.sampled_from([8, 128]),
    seed=st.integers(0, 2**31),
)
def test_the_grid_is_the_cpu_s_but_for_rounding(gpu, size, hidden, grid, seed):
    planes, decoder = random_field(4, 8, hidden, seed)  # smooth ones, of which cells of either sort are left
    planes = torch.nn.functional.interpolate(planes[0], (size, size), mode="bicubic", align_corners=True)[None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "GRID_SIDE", grid)
        found = prepare(*placed(gpu, planes, copy.deepcopy(decoder))).packed
        patch.setattr(call, "launcher_for", lambda *_: None)
        expected = prepare(planes, decoder).packed
    assert found.bits.shape == expected.bits.shape
    differing = sum(word.bit_count() for word in ((found.bits.cpu() ^ expected.bits)[0] & 0xFFFFFFFF).tolist())
    assert differing <= 2 + found.side**3 // 1000


@few
@given(
    size=st.sampled_from([2, 5, 16]),
    hidden=st.sampled_from([1, 16, 37]),
    scale=st.sampled_from([0.1, 1.0]),
    fine=st.sampled_from([0, 1, 9]),
    jitter=st.sampled_from([None, 4]),
    seed=st.integers(0, 2**31),
)
def test_random_planes_look_the_same(gpu, size, hidden, scale, fine, jitter, seed):
    planes, decoder = placed(gpu, *random_field(size, 9, hidden, seed, scale=scale))
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 7, fine)
    for x, y in zip(*views(planes, decoder, sampling=sampling, jitter=jitter), strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        assert (x - y).abs().mean() < GREY


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_object_looks_the_same(gpu, dtype):
    found, plain = views(*placed(gpu, *ball(16, 0.6), dtype), resolution=20)
    assert plain[1].max() > 0.99
    assert plain[1].min() < 0.02
    for x, y, largest in zip(found, plain, (2, 2, 4), strict=True):
        assert x.dtype == torch.float32
        assert (x - y).abs().mean() < GREY / 4
        assert (x - y).abs().max() < largest * GREY


def constant(raw):
    """A volume whose raw density is the same everywhere."""
    decoder = decoder_of(2, 4, 3, torch.Generator())
    for parameter in decoder.parameters():
        parameter.zero_()
    decoder.out.bias[0] = raw
    return torch.zeros(1, 3, 2, 8, 8), decoder


def test_an_empty_volume_is_white_and_a_full_one_is_as_dense_as_it_is(gpu):
    empty, plain = views(*placed(gpu, *constant(-20.0)))
    assert not prepare(*placed(gpu, *constant(-20.0))).packed.bits.any()
    assert torch.equal(empty[0], torch.ones_like(plain[0]))
    assert not empty[1].any()
    assert torch.equal(empty[2], torch.full_like(plain[2], FAR))
    full, plain = views(*placed(gpu, *constant(2.0)))  # of which e^-3 and less of the light pass
    assert 0.8 < plain[1].max() < 1 - 1e-3
    for x, y in zip(full, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-6)


def test_a_ray_ends_where_less_than_a_thousandth_of_the_light_passes(gpu):
    """Density 19 and samples 1.4 / 16 apart, by hand: the light that is left falls to e^-1.66 at each."""
    planes, decoder = placed(gpu, *constant(20.0))
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 16, 0)
    origins, directions = (torch.tensor([[x]], device=gpu) for x in ([2.0, 0.1, 0.1], [-1.0, 0.0, 0.0]))
    opacity = inference.render_rays(prepare(planes, decoder), origins, directions, sampling, None).opacity.item()
    step = torch.tensor(-19 * 1.4 / 16)
    assert torch.exp(4 * step) >= 1e-3 > torch.exp(5 * step)
    assert opacity == pytest.approx(1 - torch.exp(5 * step).item(), abs=1e-6)


def test_only_marked_cells_are_evaluated(gpu):
    planes, decoder = placed(gpu, *ball(16, 0.6))
    volume, cameras = prepare(planes, decoder), orbit(gpu, 1)
    kept = volume.packed.bits.clone()
    seen = render_view(volume, decoder, cameras, FOCAL, 9, SAMPLING, None)[1]
    assert seen.max() > 0.9
    volume.packed.bits.zero_()
    assert not render_view(volume, decoder, cameras, FOCAL, 9, SAMPLING, None)[1].any()
    # Half of the grid, z > 0: what a ray sees of the other half is gone.
    volume.packed.bits.copy_(kept)
    volume.packed.bits[:, : kept.shape[1] // 2] = 0
    half = render_view(volume, decoder, cameras, FOCAL, 9, SAMPLING, None)[1]
    assert 0.2 * seen.sum() < half.sum() < 0.8 * seen.sum()


def test_one_volume_serves_many_cameras_without_a_copy(gpu, monkeypatch):
    planes, decoder = placed(gpu, *random_field(8, 8, 16, 5))
    calls = []
    original = cuda.Launcher.run
    monkeypatch.setattr(cuda.Launcher, "run", lambda self, *a: calls.append((a, a[1].batch)) or original(self, *a))
    volume = prepare(planes, decoder)
    assert [a[0] for a, _ in calls] == ["cad_pack", "cad_occupancy"]
    assert len(volume.packed.texels) == 1
    assert volume.planes.data_ptr() == planes.data_ptr()
    for count in (1, 4):
        calls.clear()
        render_view(volume, decoder, orbit(gpu, count), FOCAL, 3, SAMPLING, None)
        assert [a[0] for a, _ in calls] == ["cad_refine_volume", "cad_render_volume"]
        for (_, sizes, texels, *_), _ in calls:
            assert (sizes.batch, sizes.rays) == (1, count * 9)
            assert texels.value == volume.packed.texels.data_ptr()


def test_many_volumes_are_each_one(gpu):
    planes, decoder = placed(gpu, *random_field(9, 8, 16, 5, batch=3))
    cameras = sphere_poses(3, torch.Generator().manual_seed(2)).cameras(2.0).to(gpu)
    together = render_view(prepare(planes, decoder), decoder, cameras, FOCAL, 7, SAMPLING, None)
    for i in range(3):
        alone = render_view(prepare(planes[i : i + 1], decoder), decoder, cameras[i : i + 1], FOCAL, 7, SAMPLING, None)
        assert all(torch.equal(x[i : i + 1], y) for x, y in zip(together, alone, strict=True))


def test_a_view_does_not_depend_on_its_neighbours(gpu):
    """A resumed orbit and a whole one have the same bits, whatever rays lie beside one another."""
    planes, decoder = placed(gpu, *ball(16, 0.6))
    volume, cameras = prepare(planes, decoder), orbit(gpu, 4)
    together = render_view(volume, decoder, cameras, FOCAL, 7, SAMPLING, None)
    alone = render_view(volume, decoder, cameras[3:], FOCAL, 7, SAMPLING, None)
    assert all(torch.equal(x[3:], y) for x, y in zip(together, alone, strict=True))


def test_memory_layout_changes_no_bit(gpu):
    planes, decoder = placed(gpu, *random_field(9, 8, 16, 5, batch=2))
    origins, directions = rays(orbit(gpu), FOCAL, torch.rand(7, 2, generator=torch.Generator().manual_seed(1)).to(gpu))
    volumes = [prepare(by_layout(planes, strided), decoder) for strided in (False, True)]
    found = [
        inference.render_rays(volume, *(by_layout(x, strided) for x in (origins, directions)), SAMPLING, None)
        for volume, strided in zip(volumes, (False, True), strict=True)
    ]
    assert torch.equal(volumes[0].packed.bits, volumes[1].packed.bits)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize(("cameras", "count"), [(1, 1), (0, 4), (2, 0)])
def test_one_ray_and_none(gpu, cameras, count):
    planes, decoder = placed(gpu, *random_field(9, 8, 16, 5))
    origins, directions = rays(orbit(gpu, cameras), FOCAL, torch.full((count, 2), 0.45, device=gpu))
    found = inference.render_rays(prepare(planes, decoder), origins, directions, SAMPLING, None)
    plain = fused.render_rays(planes.expand(cameras, -1, -1, -1, -1), decoder, origins, directions, SAMPLING, None)
    for x, y in zip(found, plain, strict=True):
        assert x.shape == y.shape
        torch.testing.assert_close(x, y, rtol=0, atol=GREY)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["planes", "hidden", "out"])
def test_a_value_that_is_not_finite_never_becomes_a_picture(gpu, part, value):
    planes, decoder = placed(gpu, *ball(8, 0.5))
    {"planes": planes, "hidden": decoder.hidden.bias, "out": decoder.out.weight}[part].view(-1)[-1] = value
    assert all(x.isnan().all() for x in views(planes, decoder, resolution=5)[0])


def test_a_pose_that_is_not_finite_spoils_its_own_call_alone(gpu):
    planes, decoder = placed(gpu, *ball(8, 0.5))
    volume, cameras = prepare(planes, decoder), orbit(gpu)
    expected = render_view(volume, decoder, cameras, FOCAL, 5, SAMPLING, None)
    spoilt = cameras.clone()
    spoilt[1, 0, 3] = torch.nan
    assert all(x.isnan().all() for x in render_view(volume, decoder, spoilt, FOCAL, 5, SAMPLING, None))
    again = render_view(volume, decoder, cameras, FOCAL, 5, SAMPLING, None)
    assert all(torch.equal(x, y) for x, y in zip(again, expected, strict=True))


def test_what_a_gpu_has_no_room_for_is_named_and_other_planes_stay_as_they_are(gpu):
    planes, decoder = placed(gpu, *random_field(8, 8, 65, 1))
    with pytest.raises(ValueError, match=r"hidden weight: 65 units, but .* room for 64"):
        prepare(planes, decoder)
    planes, decoder = placed(gpu, *random_field(8, 8, 16, 1))
    assert prepare(planes.double(), decoder).packed is None
    assert prepare(planes[..., 1:], decoder).packed is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu_prepared_views_are_the_plain_ones_and_nothing_waits_for_it(hardware, dtype):
    """At the paper's sizes, on smooth planes, as a generator's are."""
    draws = torch.Generator().manual_seed(3)
    planes = torch.nn.functional.interpolate(torch.randn(3, 32, 12, 12, generator=draws), (256, 256), mode="bicubic")
    decoder = decoder_of(32, 64, 3, draws)
    decoder.out.weight[0] *= 10
    decoder.out.bias[0] -= 20  # half of the volume is empty
    planes, decoder = placed(hardware, planes[None], decoder, dtype)
    sampling, cameras = reference.Sampling(NEAR, FAR, HALF_SIDE, 48, 48), orbit(hardware)
    render_view(prepare(planes, decoder), decoder, cameras, FOCAL, 256, sampling, None)  # compiled now
    origins, directions = (x.contiguous() for x in rays(cameras, FOCAL, torch.rand(256**2, 2, device=hardware)))
    torch.cuda.set_sync_debug_mode("error")
    try:
        volume = prepare(planes, decoder)
        found = inference.render_rays(volume, origins, directions, sampling, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    share = marked(volume, torch.rand(100_000, 3, device=hardware) * 2 - 1).float().mean()
    assert 0.05 < share < 0.95
    exact = [planes.expand(2, -1, -1, -1, -1), decoder, origins, directions, sampling, None]
    plain = fused.render_rays(*exact)
    assert plain.opacity.max() > 0.99
    for x, y in zip(found, plain, strict=True):
        assert (x - y).abs().mean() < GREY
