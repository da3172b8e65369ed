import copy

import pytest
import torch
from torch import nn

from cad.errors import UserError
from cad.train.optimize import descend, gradient_norm, lazy_adam, optimizer_tensors, restore_optimizer


def test_lazy_constants_for_r1_every_16_steps():
    group = lazy_adam({"d": nn.Linear(1, 1)}, 0.002, 0.0, 0.99, 16).param_groups[0]
    assert group["lr"] == pytest.approx(0.002 * 16 / 17)
    assert group["betas"][0] == 0
    assert group["betas"][1] == pytest.approx(0.9905852, abs=1e-6)  # 0.99 ** (16 / 17)
    assert group["eps"] == 1e-8


def test_lazy_constants_for_density_every_4_steps():
    group = lazy_adam({"g": nn.Linear(1, 1)}, 0.0025, 0.0, 0.99, 4).param_groups[0]
    assert group["lr"] == pytest.approx(0.002)
    assert group["betas"][1] == pytest.approx(0.9919919, abs=1e-6)  # 0.99 ** 0.8


def test_the_first_step_of_adam_is_the_learning_rate():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    optimizer = lazy_adam({"g": layer}, 0.0025, 0.0, 0.99, 4)
    norm = descend(layer(torch.tensor([[3.0]])).sum(), {"o": optimizer}, "stage1", "test", 0)
    assert norm == pytest.approx(3.0)
    assert layer.weight.item() == pytest.approx(1 - 0.002, abs=1e-7)


def test_no_gradients_are_computed_but_the_optimizers_own():
    judge, player, idle = nn.Linear(2, 1), nn.Linear(3, 2), nn.Linear(1, 1)
    optimizer = lazy_adam({"g": player, "i": idle}, 0.01, 0.0, 0.99, 4)
    before = copy.deepcopy(idle.state_dict())
    descend(judge(player(torch.ones(1, 3))).sum(), {"o": optimizer}, "stage1", "test", 0)
    assert all(p.grad is None for p in [*judge.parameters(), *idle.parameters()])
    assert all(p.grad is not None for p in player.parameters())
    assert all(p.requires_grad for p in judge.parameters())
    assert all(torch.equal(before[k], v) for k, v in idle.state_dict().items())


def test_a_restored_optimizer_goes_on_to_the_same_bits():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = lazy_adam({"g": layer}, 0.01, 0.5, 0.99, 4)
    x = torch.randn(4, 3)
    for step in range(3):
        descend(layer(x).square().mean(), {"o": optimizer}, "stage1", "test", step)
    twin = copy.deepcopy(layer)
    other = lazy_adam({"g": twin}, 0.01, 0.5, 0.99, 4)
    restore_optimizer(other, {name: value.clone() for name, value in optimizer_tensors(optimizer).items()})
    for model, opt in ((layer, optimizer), (twin, other)):
        descend(model(x).square().mean(), {"o": opt}, "stage1", "test", 3)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), twin.parameters(), strict=True))


def test_parameters_that_were_never_stepped_have_no_state():
    layer = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    optimizer = lazy_adam({"g": layer}, 0.01, 0.0, 0.99, 4)
    descend(layer[0](torch.ones(1, 1)).sum(), {"o": optimizer}, "stage1", "test", 0)
    stored = optimizer_tensors(optimizer)
    assert {name.split("/")[0] for name in stored} == {"g.0.weight", "g.0.bias"}
    fresh = lazy_adam({"g": layer}, 0.01, 0.0, 0.99, 4)
    restore_optimizer(fresh, stored)
    assert len(fresh.state) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_itself_and_the_step(value):
    layer = nn.Linear(1, 1)
    before = copy.deepcopy(layer.state_dict())
    optimizer = lazy_adam({"g": layer}, 0.01, 0.0, 0.99, 4)
    with pytest.raises(UserError, match=r"^stage1: the loss `generator` is (nan|inf) at step 37; .*stage1\.lr_"):
        descend(layer(torch.ones(1, 1)).sum() * value, {"o": optimizer}, "stage1", "generator", 37)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def test_a_gradient_that_is_not_finite_changes_no_weight():
    layer = nn.Linear(1, 1)
    before = copy.deepcopy(layer.state_dict())
    optimizer = lazy_adam({"g": layer}, 0.01, 0.0, 0.99, 4)
    loss = (layer.weight - layer.weight.detach()).abs().sqrt().sum()  # 0, with an infinite slope
    with pytest.raises(UserError, match=r"gradient of loss `r1` is nan at step 2"):
        descend(loss, {"o": optimizer}, "stage2", "r1", 2)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def test_gradient_norm_is_that_of_all_gradients_together():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert gradient_norm([a, b, nn.Parameter(torch.zeros(1))]) == pytest.approx(5.0)
