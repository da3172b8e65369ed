import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cad.seeding import generator
from cad.train.losses import (
    consistency_loss,
    density_roughness,
    discriminator_loss,
    generator_loss,
    nearby_points,
    r1_penalty,
)


def test_the_losses_are_the_non_saturating_ones():
    fake, real = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [-3.0]])
    softplus = lambda x: math.log(1 + math.exp(x))  # noqa: E731
    wanted_d = (softplus(0) + softplus(1)) / 2 + (softplus(-2) + softplus(3)) / 2
    assert discriminator_loss(fake, real).item() == pytest.approx(wanted_d, rel=1e-6)
    assert generator_loss(fake).item() == pytest.approx((softplus(0) + softplus(-1)) / 2, rel=1e-6)


def test_an_undecided_discriminator_costs_two_log_two():
    nought = torch.zeros(4, 1)
    assert discriminator_loss(nought, nought).item() == pytest.approx(2 * math.log(2))
    assert generator_loss(nought).item() == pytest.approx(math.log(2))


def test_losses_push_logits_the_right_way():
    fake, real = torch.zeros(3, 1, requires_grad=True), torch.zeros(3, 1, requires_grad=True)
    discriminator_loss(fake, real).backward()
    assert (fake.grad > 0).all()
    assert (real.grad < 0).all()
    player = torch.zeros(3, 1, requires_grad=True)
    generator_loss(player).backward()
    assert (player.grad < 0).all()


def test_r1_of_a_linear_discriminator():
    # D(image, raw) = <a, image> + <b, raw>: |grad|^2 = |a|^2 + |b|^2 in every sample, whatever the images are.
    a, b = torch.full((3, 4, 4), 0.5), torch.full((3, 2, 2), 2.0)
    image, raw = torch.randn(5, 3, 4, 4, requires_grad=True), torch.randn(5, 3, 2, 2, requires_grad=True)
    logits = ((image * a).sum((1, 2, 3)) + (raw * b).sum((1, 2, 3)))[:, None]
    assert r1_penalty(logits, [image, raw], gamma=3.0).item() == pytest.approx(3 / 2 * (48 * 0.25 + 12 * 4))


def test_r1_is_a_mean_over_the_batch_and_reaches_the_weights():
    # D(x) = c * sum(x^2) / 2: |grad|^2 = c^2 |x|^2.
    c = torch.tensor(2.0, requires_grad=True)
    x = torch.stack([torch.full((3, 2, 2), 1.0), torch.full((3, 2, 2), 3.0)]).requires_grad_()
    penalty = r1_penalty((c * x.square().sum((1, 2, 3)) / 2)[:, None], [x], gamma=1.0)
    assert penalty.item() == pytest.approx(0.5 * 4 * (12 + 108) / 2)
    penalty.backward()
    assert c.grad.item() == pytest.approx(2 * (12 + 108) / 2)  # d/dc of 0.5 c^2 mean|x|^2


def test_density_roughness_is_the_mean_absolute_difference():
    assert density_roughness(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])).item() == pytest.approx(2.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.floats(1e-3, 5.0), st.floats(0.1, 2.0), st.integers(1, 3))
def test_points_and_their_twins_stay_in_the_box(count, distance, half_side, batch):
    points = nearby_points(count, distance, half_side, batch, generator("points", count))
    assert points.shape == (batch, 2 * count, 3)
    assert points.abs().max() <= half_side
    assert not torch.equal(points[:, :count], points[:, count:])


def test_twins_lie_at_the_given_distance():
    points = nearby_points(20000, 0.004, 0.7, 1, generator("far"))
    moved = points[:, 20000:] - points[:, :20000]
    assert moved.std().item() == pytest.approx(0.004, rel=0.02)
    assert points[:, :20000].std().item() == pytest.approx(0.7 / math.sqrt(3), rel=0.02)  # uniform over the box


def test_no_gradient_reaches_the_target_of_equation_10():
    rendered, target = torch.zeros(1, 3, 2, 2, requires_grad=True), torch.ones(1, 3, 2, 2, requires_grad=True)
    consistency_loss(lambda a, b: (a - b).square(), rendered, target).backward()
    assert rendered.grad is not None
    assert target.grad is None
