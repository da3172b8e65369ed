"""The reference renderer against closed forms and hand-computed values."""

import math

import numpy as np
import pytest
import torch

from cad.camera import camera_to_world, focal_length, near_far, rays
from cad.render.image import crop, render_patch, render_view
from cad.render.reference import (
    Sampling,
    chord,
    compositing_weights,
    field,
    importance,
    raw_density,
    render_rays,
    sample_planes,
    strata,
)

NEAR, FAR = near_far(2.0, 0.7)
FOCAL = focal_length(49.1)


class Scene:
    """A decoder of known densities: it reads plane features as (density, red, green, blue, extra)."""

    def __call__(self, features):
        return features[:, 0].clamp(min=0), features[:, 1:]

    def raw_density(self, features):
        return features[:, 0]


class Sphere:
    """Density 200 inside a radius of 0.5, blue; needs planes whose sum gives (x, y, z)."""

    def __call__(self, features):
        inside = features[:, :3].norm(dim=1) < 0.5
        color = torch.tensor([0.0, 0.0, 1.0])[None, :, None].expand(len(features), 3, features.shape[-1])
        return 200.0 * inside, color

    def raw_density(self, features):
        raise NotImplementedError


def constant_planes(values, size=4, dtype=torch.float32):
    """Planes [1, 3, C, size, size] whose sum is `values` everywhere inside."""
    return (torch.tensor(values, dtype=dtype) / 3)[None, None, :, None, None].expand(1, 3, -1, size, size)


def axis_ray(axis=0, lateral=(0.0, 0.0)):
    origin, direction = torch.zeros(3), torch.zeros(3)
    origin[axis], direction[axis] = 2.0, -1.0
    origin[[i for i in range(3) if i != axis]] = torch.tensor(lateral)
    return origin[None, None], direction[None, None]


def sampling(coarse, fine):
    return Sampling(NEAR, FAR, 0.7, coarse, fine)


def bilinear(plane, x, y):
    """Features at (x, y) in [-1, 1], texel centres at (i + 0.5) / N, edges going on; plain numpy."""
    size = plane.shape[-1]
    column, row = (min(max((t + 1) / 2 * size - 0.5, 0), size - 1) for t in (x, y))
    total = np.zeros(plane.shape[0])
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < size and 0 <= j < size:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * plane[:, i, j]
    return total


def test_planes_are_sampled_bilinearly_at_their_axis_pairs_and_summed():
    draws = torch.Generator().manual_seed(0)
    planes = torch.randn(2, 3, 5, 8, 8, generator=draws, dtype=torch.float64)
    points = torch.rand(2, 40, 3, generator=draws, dtype=torch.float64) * 2.2 - 1.1
    got = sample_planes(planes, points).numpy()
    for b in range(2):
        for p in range(40):
            x, y, z = points[b, p].tolist()
            pairs = ((x, y), (x, z), (y, z))
            expected = sum(bilinear(planes[b, k].numpy(), *pair) for k, pair in enumerate(pairs))
            np.testing.assert_allclose(got[b, :, p], expected, atol=1e-12)


@pytest.mark.parametrize(("plane", "width_axis", "height_axis"), [(0, 0, 1), (1, 0, 2), (2, 1, 2)])
def test_a_plane_that_varies_along_its_width_follows_the_first_axis_of_its_pair(plane, width_axis, height_axis):
    planes = torch.zeros(1, 3, 1, 4, 4)
    planes[0, plane, 0] = torch.tensor([-0.75, -0.25, 0.25, 0.75])  # the texel centres themselves
    points = torch.full((1, 1, 3), 0.1)
    points[0, 0, width_axis] = 0.5
    assert sample_planes(planes, points).item() == pytest.approx(0.5)
    assert sample_planes(planes.transpose(3, 4), points).item() == pytest.approx(0.1)
    points[0, 0, height_axis] = -0.6
    assert sample_planes(planes, points).item() == pytest.approx(0.5)


def test_features_are_summed_not_averaged():
    assert sample_planes(torch.ones(1, 3, 1, 4, 4), torch.zeros(1, 1, 3)).item() == pytest.approx(3.0)


def test_no_density_outside_the_box():
    planes = constant_planes([5.0, 1.0, 1.0, 1.0])
    points = torch.tensor([[[0.0, 0.0, 0.0], [0.69, 0.0, 0.0], [0.701, 0.0, 0.0], [0.0, 0.0, -0.8]]])

    class Everywhere(Scene):
        def __call__(self, features):
            return torch.full_like(features[:, 0], 7.0), features[:, 1:]

    density, _ = field(planes, Everywhere(), points, 0.7)
    assert density[0].tolist() == [7.0, 7.0, 0.0, 0.0]
    assert raw_density(planes, Scene(), points[:, :1], 0.7).item() == pytest.approx(5.0)


def test_chords_through_the_box_are_per_ray_and_empty_for_a_miss():
    origins = torch.tensor([[[2.0, 0, 0], [2.0, 0, 0], [2.0, 0.9, 0], [0.0, 0, 0]]])
    directions = torch.tensor([[[-1.0, 0, 0], [1.0, 0, 0], [-1.0, 0, 0], [0.6, 0.8, 0]]])
    enter, leave = chord(origins, directions, Sampling(0.1, 5.0, 0.7, 4, 0))
    assert enter[0].tolist() == pytest.approx([1.3, 0.1, enter[0, 2].item(), 0.1])
    assert (leave - enter)[0].tolist() == pytest.approx([1.4, 0.0, 0.0, 0.7 / 0.8 - 0.1])


def test_constant_density_transmits_by_beer_and_lambert():
    """Samples 4: the first lies 1/8 into the chord of 1.4, and the quadrature covers what follows it."""
    color = [0.2, 0.4, 0.6]
    origins, directions = axis_ray()
    out = render_rays(constant_planes([0.9, *color]), Scene(), origins, directions, sampling(4, 0), None)
    transmitted = math.exp(-0.9 * 1.4 * 7 / 8)
    assert out.opacity.item() == pytest.approx(1 - transmitted, abs=1e-6)
    expected = [c * (1 - transmitted) + transmitted for c in color]
    assert out.features[0, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_compositing_of_three_samples_by_hand():
    density = torch.tensor([1.0, 2.0, 0.5])[None, :, None]
    distances = torch.tensor([1.0, 1.5, 1.75])[None, :, None]
    weights = compositing_weights(density, distances, torch.tensor([[2.0]]))[0, :, 0]
    a, b, c = 1 - math.exp(-0.5), 1 - math.exp(-0.5), 1 - math.exp(-0.125)
    assert weights.tolist() == pytest.approx([a, (1 - a) * b, (1 - a) * (1 - b) * c], abs=1e-6)


def test_empty_space_is_white_at_the_far_distance_and_extra_features_lie_on_zero():
    origins, directions = axis_ray()
    out = render_rays(constant_planes([0.0, 0.1, 0.2, 0.3, 0.4]), Scene(), origins, directions, sampling(6, 6), None)
    assert out.features[0, 0].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0])
    assert out.opacity.item() == 0
    assert out.depth.item() == pytest.approx(FAR)


def test_an_opaque_surface_gives_its_depth_and_colour():
    origins, directions = axis_ray(2)
    out = render_rays(constant_planes([500.0, 0.1, 0.2, 0.3]), Scene(), origins, directions, sampling(24, 24), None)
    assert out.features[0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3], abs=1e-4)
    assert out.depth.item() == pytest.approx(1.3, abs=1.4 / 24)


def test_two_passes_equal_the_union_sampled_in_one():
    draws = torch.Generator().manual_seed(1)
    planes = torch.rand(1, 3, 5, 8, 8, generator=draws, dtype=torch.float64) * 2
    origins, directions = (t.double() for t in axis_ray(1, (0.13, -0.2)))
    got = render_rays(planes, Scene(), origins, directions, sampling(5, 7), None)
    enter, leave = chord(origins, directions, sampling(5, 7))
    coarse = enter + (leave - enter) * strata(enter, 5, None)
    density, _ = field(planes, Scene(), origins + coarse.reshape(1, 5, 1) * directions, 0.7)
    weights = compositing_weights(density[..., None], coarse, leave)
    fine = enter + (leave - enter) * importance(weights, strata(enter, 7, None))
    union = torch.cat([coarse, fine], 1).sort(1).values
    density, radiance = field(planes, Scene(), origins + union.reshape(1, 12, 1) * directions, 0.7)
    weights = compositing_weights(density[..., None], union, leave)[0, :, 0]
    features = radiance[0] @ weights
    features[:3] += 1 - weights.sum()
    torch.testing.assert_close(got.features[0, 0], features)
    torch.testing.assert_close(got.opacity[0, 0, 0], weights.sum())


def test_strata_are_midpoints_without_and_within_their_part_with_a_generator():
    like = torch.zeros(2, 3)
    assert strata(like, 4, None)[1, :, 2].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])
    drawn = strata(torch.zeros(2, 500), 4, torch.Generator().manual_seed(0))
    parts = (drawn * 4).floor()
    assert torch.equal(parts, torch.arange(4.0)[None, :, None].expand_as(parts))
    assert drawn.max() <= 1


def test_jitter_stays_within_the_chord():
    planes = torch.rand(1, 3, 4, 8, 8)
    seen = []
    origins, directions = rays(camera_to_world(torch.tensor([0.4]), torch.tensor([1.1]), 2.0), FOCAL, torch.rand(64, 2))
    enter, leave = chord(origins, directions, sampling(8, 8))
    for seed in range(3):
        positions = strata(enter, 8, torch.Generator().manual_seed(seed))
        distances = enter[:, None] + positions * (leave - enter)[:, None]
        assert (distances <= leave[:, None] + 1e-6).all()
        assert (distances >= enter[:, None]).all()
        out = render_rays(planes, Scene(), origins, directions, sampling(8, 8), torch.Generator().manual_seed(seed))
        seen.append(out.features)
    assert not torch.equal(seen[0], seen[1])


def test_fine_samples_gather_at_a_slab():
    weights = torch.zeros(1, 10, 1)
    weights[0, 6] = 1.0
    positions = importance(weights, strata(torch.zeros(1, 1), 100, None))[0, :, 0]
    assert (positions.diff() >= 0).all()
    near = (positions > 0.5) & (positions < 0.8)  # the part of the sample and its neighbours
    assert near.sum() >= 97
    assert ((positions > 0.6) & (positions < 0.7)).sum() == pytest.approx(50, abs=2)


def test_importance_of_equal_weights_is_uniform():
    positions = importance(torch.full((2, 6, 3), 0.1), strata(torch.zeros(2, 3), 12, None))
    torch.testing.assert_close(positions[1, :, 2], (torch.arange(12) + 0.5) / 12)


def test_rays_of_a_sphere_give_its_silhouette_from_every_side():
    """A sphere of radius 0.5 seen from 2 covers tan(asin(0.25)) * focal of the half image: a disc."""
    ramp = (torch.arange(64) + 0.5) / 64 * 1.4 - 0.7
    planes = torch.zeros(1, 3, 3, 64, 64)
    planes[0, 0, 0], planes[0, 0, 1], planes[0, 1, 2] = ramp[None, :], ramp[:, None], ramp[:, None]
    cameras = camera_to_world(torch.tensor([0.3, 2.5]), torch.tensor([0.8, 1.9]), 2.0)
    features, opacity, depth = render_view(
        planes.expand(2, -1, -1, -1, -1), Sphere(), cameras, FOCAL, 48, sampling(32, 32), None
    )
    steps = (torch.arange(48) + 0.5) / 48 - 0.5
    distance = torch.hypot(steps[None], steps[:, None])
    radius = FOCAL * math.tan(math.asin(0.25))
    for b in range(2):
        assert (opacity[b, 0][distance < radius - 0.02] > 0.9).all()
        assert (opacity[b, 0][distance > radius + 0.02] < 0.1).all()
        assert depth[b, 0, 23:25, 23:25].mean().item() == pytest.approx(1.5, abs=0.05)
    assert features[0, :, 24, 24].tolist() == pytest.approx([0, 0, 1], abs=1e-3)
    assert features[0, :, 0, 0].tolist() == [1, 1, 1]


def test_a_patch_is_the_crop_of_the_whole_view():
    draws = torch.Generator().manual_seed(3)
    planes = torch.rand(2, 3, 6, 8, 8, generator=draws)
    cameras = camera_to_world(torch.tensor([0.1, 2.0]), torch.tensor([1.0, 1.5]), 2.0)
    whole = render_view(planes, Scene(), cameras, FOCAL, 16, sampling(6, 6), None)
    corners = torch.tensor([[3, 8], [0, 5]])
    patch = render_patch(planes, Scene(), cameras, FOCAL, corners, 8, 16, sampling(6, 6), None)
    for full, part in zip(whole, patch, strict=True):
        torch.testing.assert_close(part, crop(full, corners, 8), atol=1e-4, rtol=1e-4)
    assert torch.equal(crop(whole[0], corners, 8)[0], whole[0][0, :, 8:16, 3:11])


def test_chunked_rendering_without_gradients_agrees(monkeypatch):
    planes = torch.rand(1, 3, 6, 8, 8)
    cameras = camera_to_world(torch.tensor([0.1]), torch.tensor([1.0]), 2.0)
    whole = render_view(planes, Scene(), cameras, FOCAL, 8, sampling(4, 4), None)
    monkeypatch.setattr("cad.render.image.POINTS_PER_CHUNK", 100)
    with torch.no_grad():
        parts = render_view(planes, Scene(), cameras, FOCAL, 8, sampling(4, 4), None)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


def test_a_single_ray_and_a_single_fine_sample_work():
    out = render_rays(torch.rand(1, 3, 5, 4, 4), Scene(), *axis_ray(), sampling(1, 1), None)
    assert out.features.shape == (1, 1, 4)
    assert out.depth.shape == out.opacity.shape == (1, 1, 1)


@pytest.mark.parametrize("fine", [0, 3])
def test_gradients_are_right_in_double_precision(fine):
    draws = torch.Generator().manual_seed(5)
    planes = torch.rand(1, 3, 5, 4, 4, generator=draws, dtype=torch.float64) + 0.2
    pixels = torch.rand(3, 2, generator=draws, dtype=torch.float64) * 0.4 + 0.3
    camera = camera_to_world(torch.tensor([0.4]).double(), torch.tensor([1.1]).double(), 2.0)
    origins, directions = rays(camera, FOCAL, pixels)
    with torch.no_grad():  # fine positions carry no gradient: fix them, or finite differences would move them
        enter, leave = chord(origins, directions, sampling(4, fine))
    assert (leave > enter).all()

    def render(p):
        if not fine:
            return tuple(render_rays(p, Scene(), origins, directions, sampling(4, 0), None))
        return tuple(render_rays(p, _Flat(), origins, directions, sampling(4, fine), None))

    assert torch.autograd.gradcheck(render, planes.requires_grad_())


class _Flat(Scene):
    """Constant density, so that fine positions don't move with the planes; radiance still does."""

    def __call__(self, features):
        return torch.full_like(features[:, 0], 0.8), features[:, 1:]
