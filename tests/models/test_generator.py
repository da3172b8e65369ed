import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import softplus

from cad.camera import focal_length, near_far, sphere_poses
from cad.models.decoder import TriplaneDecoder
from cad.models.discriminator import Discriminator
from cad.models.ema import ema_decay, update_ema
from cad.models.generator import Generator
from cad.models.layers import initialise
from cad.models.upsampler3d import PlaneUpsampler, with_others
from cad.render.image import render_view
from cad.render.reference import Sampling, sample_planes


def test_shapes_and_gradients_reach_every_parameter(generator_settings, draws):
    model = Generator(generator_settings)
    initialise(model, draws)
    w = model.mapping(torch.randn(2, 8, generator=draws), 1.0)
    planes = model.planes(w)
    assert planes.shape == (2, 3, 4, 8, 8)
    sampling = Sampling(*near_far(2.0, 0.7), 0.7, 4, 4)
    cameras = sphere_poses(2, draws).cameras(2.0)
    features, _, _ = render_view(planes, model.decoder, cameras, focal_length(49.1), 8, sampling, draws)
    image = model.upsampler(features, features[:, :3] * 2 - 1, w)
    assert image.shape == (2, 3, 16, 16)
    image.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_latents_give_different_volumes_and_the_same_latent_the_same_bits(generator_settings, draws):
    model = Generator(generator_settings)
    initialise(model, draws)
    z = torch.randn(2, 8, generator=draws)
    planes = model.planes(model.mapping(z, 1.0))
    assert not torch.allclose(planes[0], planes[1])
    assert torch.equal(planes, model.planes(model.mapping(z, 1.0)))


def test_the_first_volume_lets_light_through(generator_settings):
    settings = SimpleNamespace(**{**vars(generator_settings), "plane_channels": 16, "decoder_hidden": 64})
    sampling = Sampling(*near_far(2.0, 0.7), 0.7, 12, 0)
    for seed in range(6):
        draws = torch.Generator().manual_seed(seed)
        model = Generator(settings)
        initialise(model, draws)
        planes = model.planes(model.mapping(torch.randn(2, 8, generator=draws), 1.0))
        cameras = sphere_poses(2, draws).cameras(2.0)
        opacity = render_view(planes, model.decoder, cameras, focal_length(49.1), 8, sampling, None)[1]
        assert 0.05 < opacity[..., 2:6, 2:6].mean() < 0.95


def test_truncation_moves_towards_the_mean(generator_settings, draws):
    mapping = Generator(generator_settings).mapping
    initialise(mapping, draws)
    z = torch.randn(4, 8, generator=draws)
    full, none, half = (mapping(z, t) for t in (1.0, 0.0, 0.5))
    torch.testing.assert_close(half, (full + none) / 2)
    assert torch.equal(none[0], none[3])
    many = mapping(torch.randn(20_000, 8, generator=draws), 1.0)
    torch.testing.assert_close(none[0], many.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(mapping(z * 7, 1.0), full)  # only the direction of z counts


def test_the_decoder_by_hand():
    decoder = TriplaneDecoder(1, 1, 3)
    decoder.hidden.weight.data.fill_(2.0)
    decoder.out.weight.data.copy_(torch.tensor([[1.0], [0.0], [50.0], [-50.0]]))
    features = torch.tensor([[[0.5]]])
    hidden = math.log1p(math.e)  # softplus(2 * 0.5)
    density, radiance = decoder(features)
    assert decoder.raw_density(features).item() == pytest.approx(hidden)
    assert density.item() == pytest.approx(softplus(torch.tensor(hidden - 1)).item())
    assert radiance[0, :, 0].tolist() == pytest.approx([0.5, 1.001, -0.001])


def test_the_papers_sizes_fit_together():
    """Planes 128^2 x 32, raw 64^2, output 256^2, z = w = 512 (Appendix C), on no memory at all."""
    settings = SimpleNamespace(
        z_dim=512,
        w_dim=512,
        mapping_layers=2,
        mapping_lr_multiplier=0.01,
        plane_resolution=128,
        plane_channels=32,
        channel_base=32768,
        channel_max=512,
        decoder_hidden=64,
        feature_channels=32,
        raw_resolution=64,
        output_resolution=256,
        upsampler_channels=128,
        activation_clamp=256.0,
    )
    with torch.device("meta"):
        model = Generator(settings)
        sizes = SimpleNamespace(channel_base=32768, channel_max=512, mbstd_group=4, activation_clamp=256.0)
        judge = Discriminator(sizes, 256)
        lift = PlaneUpsampler(SimpleNamespace(plane_upsampling=2, upsampler_channels=64), 32, 512, 256.0)
        w = model.mapping(torch.empty(4, 512), 1.0)
        planes = model.planes(w)
        image = model.upsampler(torch.empty(4, 32, 64, 64), torch.empty(4, 3, 64, 64), w)
        logits = judge(image, torch.empty(4, 3, 64, 64), torch.empty(4, 25))
        finer = lift(planes, w)
    assert planes.shape == (4, 3, 32, 128, 128)
    assert finer.shape == (4, 3, 32, 256, 256)
    assert image.shape == (4, 3, 256, 256)
    assert logits.shape == (4, 1)
    assert [block.second.weight.shape[0] for block in model.synthesis.blocks] == [512, 512, 512, 512, 512, 256]


def test_no_doubling_leaves_the_raw_image(generator_settings, draws):
    model = Generator(SimpleNamespace(**{**vars(generator_settings), "output_resolution": 8}))
    rgb = torch.randn(1, 3, 8, 8, generator=draws)
    assert torch.equal(model.upsampler(torch.zeros(1, 6, 8, 8), rgb, torch.zeros(1, 12)), rgb)


@pytest.mark.parametrize("factor", [2, 4])
def test_stage_2_starts_with_stage_1s_volume(factor, draws):
    lift = PlaneUpsampler(SimpleNamespace(plane_upsampling=factor, upsampler_channels=8), 4, 12, None)
    initialise(lift, draws)
    ramp = torch.linspace(-1, 1, 8).expand(2, 3, 4, 8, 8)
    w = torch.randn(2, 12, generator=draws)
    finer = lift(ramp, w)
    assert finer.shape == (2, 3, 4, 8 * factor, 8 * factor)
    points = torch.rand(2, 30, 3, generator=draws) - 0.5
    torch.testing.assert_close(sample_planes(finer, points), sample_planes(ramp, points), atol=1e-5, rtol=0)
    lift(torch.randn(2, 3, 4, 8, 8, generator=draws), w).square().sum().backward()
    last = [blocks[-1].out for blocks in lift.blocks]
    assert all(layer.weight.grad.abs().sum() > 0 for layer in last)


def test_each_plane_sees_the_others_along_the_axis_they_share():
    volume = torch.zeros(3, 4, 4)  # each plane as a function of its own two axes
    steps = torch.arange(4.0)
    planes = volume[None, :, None].clone()
    planes[0, 0, 0] = 10 * steps[:, None] + steps[None]  # xy plane: width x, height y
    planes[0, 1, 0] = 100 * steps[:, None] + steps[None]  # xz plane: width x, height z
    planes[0, 2, 0] = 100 * steps[:, None] + 10 * steps[None]  # yz plane: width y, height z
    xy, xz, yz = with_others(planes)
    assert [plane[0].data_ptr() for plane in (xy, xz, yz)] == [plane.data_ptr() for plane in planes.unbind(1)]
    assert torch.equal(xy[1][0, 0], steps[None] + 150)  # x varies along the width, z is averaged: 100 * 1.5
    assert torch.equal(xy[2][0, 0], 10 * steps[:, None] + 150)  # y along the height
    assert torch.equal(xz[1][0, 0], steps[None] + 15)
    assert torch.equal(xz[2][0, 0], 100 * steps[:, None] + 15)
    assert torch.equal(yz[1][0, 0], 10 * steps[None] + 1.5)  # y of xy along yz's width
    assert torch.equal(yz[2][0, 0], 100 * steps[:, None] + 1.5)


def test_the_moving_average(generator_settings, draws):
    assert ema_decay(0, 32, 10.0, 0.05) == 0.0
    assert ema_decay(10**9, 32, 10.0, 0.05) == pytest.approx(0.5 ** (32 / 10_000))
    assert ema_decay(20_000, 50, 10.0, 0.05) == pytest.approx(0.5 ** (50 / 1000))
    model = Generator(generator_settings)
    initialise(model, draws)
    average = copy.deepcopy(model)
    initialise(average, draws)
    before = [p.detach().clone() for p in average.parameters()]
    update_ema(average, model, 0.75)
    for old, new, now in zip(before, model.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * old + 0.25 * new)
    update_ema(average, model, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), model.parameters(), strict=True))
