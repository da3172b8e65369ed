import math

import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from cad.models import ada
from cad.models.ada import AdaController, augment


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def only(monkeypatch, **kept):
    """Silence every transformation but the given ones."""
    for name in ("WHOLE_SHIFT", "SHIFT", "SCALE", "STRETCH", "ANGLE_DEG", "BRIGHTNESS", "CONTRAST", "SATURATION"):
        monkeypatch.setattr(ada, name, kept.get(name, 0.0))


def test_p_0_is_the_identity_to_the_bit_and_draws_do_not_depend_on_p():
    images = torch.randn(4, 6, 16, 16, generator=seeded())
    first, second = seeded(1), seeded(1)
    assert torch.equal(augment(images, torch.tensor(0.0), first), images)
    changed = augment(images, torch.tensor(1.0), second)
    assert all(not torch.equal(a, b) for a, b in zip(changed, images, strict=True))
    assert torch.equal(first.get_state(), second.get_state())


def test_samples_that_nothing_hits_keep_their_bits():
    images = torch.randn(200, 6, 4, 4, generator=seeded())
    out = augment(images, torch.tensor(0.05), seeded(2))
    kept = (out == images).flatten(1).all(1).float().mean().item()
    # 5 geometric and 2 more shift gates, 3 colour gates: 0.95^10 of the samples; a rounded shift may also be 0.
    assert kept == pytest.approx(0.95**10, abs=0.12)


def test_all_six_channels_move_and_tint_alike():
    half = torch.rand(8, 3, 16, 16, generator=seeded()) * 2 - 1
    out = augment(torch.cat([half, half], 1), torch.tensor(1.0), seeded(3))
    assert torch.equal(out[:, :3], out[:, 3:])


def test_white_stays_white_under_geometry(monkeypatch):
    only(monkeypatch, SHIFT=0.3, SCALE=0.5, STRETCH=0.5, ANGLE_DEG=30.0)
    out = augment(torch.ones(8, 6, 16, 16), torch.tensor(1.0), seeded(4))
    torch.testing.assert_close(out, torch.ones_like(out))


def test_whole_shifts_move_pixels_exactly_and_bring_in_white(monkeypatch):
    only(monkeypatch, WHOLE_SHIFT=0.25)
    images = torch.rand(16, 6, 8, 8, generator=seeded())
    out = augment(images, torch.tensor(1.0), seeded(5))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=1.0)
    shifts = set()
    for b in range(16):
        found = [
            (dx, dy)
            for dx in range(-2, 3)
            for dy in range(-2, 3)
            if torch.allclose(out[b], padded[b, :, 2 - dy : 10 - dy, 2 - dx : 10 - dx], atol=1e-5)
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 6


def test_geometry_is_the_affine_map_of_its_draws(monkeypatch):
    """A turn alone: the image of a point at angle a lies at a plus the drawn angle, the centre stays."""
    only(monkeypatch, ANGLE_DEG=10.0)
    images = torch.rand(3, 6, 16, 16, generator=seeded())
    matrices, hit = ada._geometry(3, 16, 16, 1.0, seeded(6))
    assert hit.all()
    torch.testing.assert_close(torch.det(matrices[:, :, :2]), torch.ones(3))
    angles = torch.atan2(matrices[:, 0, 1], matrices[:, 0, 0])
    assert (angles.abs() < math.radians(45)).all()
    assert angles.std() > 0.01
    grid = affine_grid(matrices, [3, 6, 16, 16], align_corners=False)
    expected = grid_sample(images - 1, grid, align_corners=False) + 1
    torch.testing.assert_close(augment(images, torch.tensor(1.0), seeded(6)), expected)


def test_nothing_is_mirrored_or_turned_far():
    matrices, _ = ada._geometry(2000, 64, 64, 1.0, seeded(7))
    assert (torch.det(matrices[:, :, :2]) > 0).all()
    assert (matrices[:, 0, 0] > 0).all()
    assert (matrices[:, 1, 1] > 0).all()


def test_colour_by_hand(monkeypatch):
    only(monkeypatch, BRIGHTNESS=0.2, CONTRAST=0.5, SATURATION=1.0)
    images = torch.rand(4, 6, 4, 4, generator=seeded()) * 2 - 1
    out = augment(images, torch.tensor(1.0), seeded(8))
    for b in range(4):
        x, y = images[b, :3].flatten(1), out[b, :3].flatten(1)
        grey_in, grey_out = x.mean(0), y.mean(0)
        contrast = ((grey_out[1] - grey_out[0]) / (grey_in[1] - grey_in[0])).item()  # grey sees no saturation
        brightness = (grey_out[0] / contrast - grey_in[0]).item()
        saturation = ((y[0, 0] - grey_out[0]) / (x[0, 0] - grey_in[0]) / contrast).item()
        expected = contrast * (grey_in + saturation * (x - grey_in) + brightness)
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-3)


def test_differentiable_twice():
    images = torch.rand(2, 6, 5, 5, generator=seeded(), dtype=torch.float64, requires_grad=True)

    def loss(x):
        return augment(x, torch.tensor(1.0), seeded(9)).pow(3).sum()

    assert torch.autograd.gradcheck(loss, images, atol=1e-4)
    assert torch.autograd.gradgradcheck(loss, images, atol=1e-4)


def test_p_follows_the_discriminators_sign():
    controller = AdaController(target=0.6, interval=2, kimg=0.1, batch=10)  # 20 images of 100: steps of 0.2
    sure, unsure = torch.ones(10, 1), torch.cat([torch.ones(6, 1), -torch.ones(4, 1)])
    controller.observe(sure)
    assert controller.p == 0.0
    controller.observe(sure)
    assert (controller.p, controller.sign) == (pytest.approx(0.2), 1.0)
    for _ in range(20):
        controller.observe(sure)
    assert controller.p == 1.0
    controller.observe(unsure)
    controller.observe(unsure)
    assert controller.sign == pytest.approx(0.2)
    assert controller.p == pytest.approx(0.8)
    for _ in range(20):
        controller.observe(unsure)
    assert controller.p == 0.0


def test_p_at_the_published_rate():
    controller = AdaController(target=0.6, interval=4, kimg=500, batch=32)
    for _ in range(4):
        controller.observe(torch.ones(32, 1))
    assert controller.p == pytest.approx(32 * 4 / 500_000)


def test_a_restored_controller_goes_on_alike():
    first = AdaController(0.6, 3, 0.1, 4)
    for _ in range(4):
        first.observe(torch.ones(4, 1))
    second = AdaController(0.6, 3, 0.1, 4)
    second.restore(first.state())
    for controller in (first, second):
        for _ in range(2):
            controller.observe(torch.ones(4, 1))
    assert first.state() == second.state()
