"""Half precision: what it rounds, what it may not overflow, and what a clamp changes."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import conv2d, pad

from cad.camera import focal_length, pose_label, sphere_poses
from cad.models.discriminator import Discriminator, ResidualBlock
from cad.models.generator import Generator
from cad.models.layers import (
    Conv,
    ModulatedConv,
    StyleBlock,
    activate,
    clamped,
    computes_in,
    computing_in,
    initialise,
    repeat_edge,
)
from cad.models.upsampler3d import PlaneUpsampler

CPU = torch.device("cpu")
LARGEST = torch.finfo(torch.float16).max
PRECISIONS = ("float32", "bfloat16", "float16")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_autocast_computes_in_the_precision_that_is_asked_for():
    layer = Conv(2, 3, 3, 1, True)
    for name in PRECISIONS:
        with computing_in(name, CPU):
            assert layer(torch.ones(1, 2, 4, 4)).dtype == getattr(torch, name)
            assert [computes_in(CPU, getattr(torch, other)) for other in PRECISIONS[1:]] == [
                name == other for other in PRECISIONS[1:]
            ]
    assert not computes_in(torch.device("meta"), torch.float16)


def test_a_clamp_by_hand():
    x = torch.tensor([-math.inf, -3.0, 0.5, 1.5, math.inf], requires_grad=True)
    y = clamped(x, 2.0)
    y.sum().backward()
    assert y.tolist() == [-2.0, -2.0, 0.5, 1.5, 2.0]
    assert x.grad.tolist() == [0, 0, 1, 1, 0]
    assert clamped(x, None) is x
    assert activate(torch.tensor([-100.0, -1.0, 1.0, 100.0]), 5.0).tolist() == pytest.approx([-5.0, -0.2, 1.0, 5.0])


def networks(generator_settings, discriminator_settings, clamp):
    """Outputs of every network with a clamp, on fixed weights and inputs, and the gradients of all their weights."""
    shape = SimpleNamespace(**{**vars(generator_settings), "activation_clamp": clamp})
    judge = SimpleNamespace(**{**vars(discriminator_settings), "activation_clamp": clamp})
    generator, discriminator = Generator(shape), Discriminator(judge, 16)
    lift = PlaneUpsampler(SimpleNamespace(plane_upsampling=2, upsampler_channels=8), 4, 12, clamp)
    for network in (generator, discriminator, lift):
        initialise(network, seeded())
    for block in (block for plane in lift.blocks for block in plane):
        torch.nn.init.normal_(block.out.weight, generator=seeded(3))  # it starts silent
    draws = seeded(1)
    features, w = torch.rand(4, 6, 8, 8, generator=draws), torch.randn(4, 12, generator=draws)
    label = pose_label(sphere_poses(4, draws).cameras(2.0), focal_length(49.1))
    planes = generator.planes(w)
    image = generator.upsampler(features, features[:, :3] * 2 - 1, w)
    outputs = [planes, lift(planes, w), image, discriminator(image, features[:, :3] * 2 - 1, label)]
    weights = [p for network in (generator, discriminator, lift) for p in network.parameters()]
    grads = torch.autograd.grad(sum(x.float().square().mean() for x in outputs), weights, allow_unused=True)
    return outputs, [grad for grad in grads if grad is not None]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_clamp_that_nothing_reaches_leaves_every_bit(generator_settings, discriminator_settings, precision):
    """Of the outputs; gradients come in another layout, so their sums may be rounded elsewhere."""
    with computing_in(precision, CPU):
        plain = networks(generator_settings, discriminator_settings, None)
        bounded = networks(generator_settings, discriminator_settings, 256.0)
        tight = networks(generator_settings, discriminator_settings, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(plain[0], bounded[0], strict=True))
    for a, b in zip(plain[1], bounded[1], strict=True):
        torch.testing.assert_close(b, a, atol=1e-6 * a.abs().max().item(), rtol=0)
    assert not any(torch.equal(a, b) for a, b in zip(plain[0], tight[0], strict=True))


def test_every_network_computes_in_float16_about_what_it_computes_in_float32(
    generator_settings, discriminator_settings
):
    whole, _ = networks(generator_settings, discriminator_settings, 256.0)
    with computing_in("float16", CPU):
        half, grads = networks(generator_settings, discriminator_settings, 256.0)
    for a, b in zip(whole, half, strict=True):
        torch.testing.assert_close(b.float(), a, atol=0.02 * a.abs().max().item(), rtol=0)
        assert not torch.equal(a, b)
    assert all(grad.isfinite().all() for grad in grads)


def hard_case(layer, w):
    """Inputs of 256 with the signs of one output's weights and styles: the largest sum that the clamp lets through."""
    style = layer.style(w).detach()
    signs = (layer.weight[:1] * style[:, :, None, None]).detach().sign()
    return pad(256 * signs, (2, 2, 2, 2), mode="replicate").requires_grad_()


def test_modulated_convolutions_do_not_overflow_in_float16():
    """By hand in double precision; styles and weights of the size that trainings reach."""
    inputs = 512
    layer = ModulatedConv(inputs, 4, 3, 8, True, 1.0)
    initialise(layer, seeded())
    layer.weight.data *= 20
    w = 10 * torch.randn(1, 8, generator=seeded(1))
    x = hard_case(layer, w)
    style = (layer.style(w)[0]).double()[None, :, None, None]
    weight = layer.weight.double() / math.sqrt(inputs * 9) * style
    sums = conv2d(pad(x.double(), (1, 1, 1, 1), mode="replicate"), weight)
    assert sums.abs().max() > 10 * LARGEST  # without what the layer does about it, this is what it would sum up
    expected = sums / weight.square().sum((1, 2, 3)).sqrt()[None, :, None, None]
    with computing_in("float16", CPU):
        y = layer(x, w)
    torch.testing.assert_close(y.double(), expected, atol=0.01 * expected.abs().max().item(), rtol=0)
    grads = torch.autograd.grad(y.float().mean(), [x, *layer.parameters()], retain_graph=True)
    exact = torch.autograd.grad(expected.mean(), [x, layer.weight])
    assert all(grad.isfinite().all() for grad in grads)
    for ours, theirs in zip((grads[0], grads[1 + [n for n, _ in layer.named_parameters()].index("weight")]), exact,
                            strict=True):  # fmt: skip
        torch.testing.assert_close(ours, theirs.float(), atol=0.02 * theirs.abs().max().item(), rtol=0)


@pytest.mark.parametrize(("clamp", "sound"), [(256.0, True), (None, False)])
def test_discriminator_blocks_need_the_clamp_in_float16(clamp, sound):
    """Images and weights so large that the sums overflow: with the clamp all stays finite, twice differentiated too."""
    block = ResidualBlock(64, 8, clamp)
    initialise(block, seeded())
    block.first.weight.data.abs_().mul_(40)
    x = torch.full((1, 64, 8, 8), 200.0, requires_grad=True)
    with computing_in("float16", CPU):
        assert block.first(x).isinf().any()
        y = block(x)
    (gradient,) = torch.autograd.grad(y.float().mean(), x, create_graph=True)
    gradient.square().sum().backward()
    found = [y, gradient, *(p.grad for p in block.parameters() if p.grad is not None)]
    assert all(each.isfinite().all() for each in found) == sound
    if sound:
        assert y.abs().max() <= 2 * clamp


@pytest.mark.parametrize(("clamp", "sound"), [(256.0, True), (None, False)])
def test_outputs_of_a_style_block_are_bounded_in_float16(clamp, sound):
    block = StyleBlock(8, 8, 3, 4, up=1, out_scale=1.0, clamp=clamp)
    initialise(block, seeded())
    block.out.weight.data.mul_(1e5)
    x, skip, w = torch.randn(1, 8, 4, 4, generator=seeded(1)), torch.zeros(1, 3, 4, 4), torch.ones(1, 4)
    with computing_in("float16", CPU):
        features, image = block(x, skip, w)
    assert (features.dtype, image.dtype) == (torch.float16, torch.float32)
    assert bool(image.isfinite().all()) == sound
    if sound:
        assert image.abs().max() == clamp


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_convolution_gets_channels_innermost_forward_and_backward(
    generator_settings, discriminator_settings, monkeypatch, place
):
    seen, backward = [], []

    def innermost(x):
        return x.is_contiguous(memory_format=torch.channels_last)

    def spy(x, weight, *rest, **options):
        seen.append(innermost(x))
        y = conv2d(x, weight, *rest, **options)
        if 1 not in y.shape[2:]:  # a single row or column costs nothing
            y.register_hook(lambda gradient: backward.append(innermost(gradient)))
        return y

    monkeypatch.setattr("cad.models.layers.conv2d", spy)
    device = torch.device(place)
    generator = Generator(generator_settings).to(device)
    lift = PlaneUpsampler(SimpleNamespace(plane_upsampling=2, upsampler_channels=8), 4, 12, None).to(device)
    judge = Discriminator(discriminator_settings, 16).to(device)
    w = torch.ones(2, 12, device=device)
    with computing_in("bfloat16", device):
        planes = lift(generator.planes(w), w)
        image = generator.upsampler(torch.rand(2, 6, 8, 8, device=device), torch.rand(2, 3, 8, 8, device=device), w)
        logits = judge(image, image, torch.zeros(2, 25, device=device))
    torch.autograd.backward([planes, logits], [torch.ones(planes.shape).to(device), torch.ones_like(logits)])
    assert len(seen) > len(backward) > 0
    assert all(seen)
    assert all(backward)


def test_the_networks_can_be_compiled_whole(generator_settings, discriminator_settings):
    """Tracing alone, without generating code: no break in the graph, the same numbers, under autocast."""
    generator, judge = Generator(generator_settings), Discriminator(discriminator_settings, 16)
    initialise(generator, seeded())
    initialise(judge, seeded())
    w, image, label = torch.randn(2, 12, generator=seeded(1)), torch.rand(2, 3, 16, 16), torch.rand(2, 25)
    for network, given in ((generator.synthesis, (w,)), (judge, (image, image, label))):
        traced = torch.compile(network, backend="aot_eager", fullgraph=True)
        with computing_in("float16", CPU):
            whole, compiled = network(*given), traced(*given)
        torch.testing.assert_close(compiled, whole, atol=1e-5, rtol=1e-4)
        compiled.sum().backward()
    torch._dynamo.reset()


def test_edges_are_repeated_alike_on_every_path():
    """What a GPU and compiled code do beside what a CPU does, forward and backward."""
    x = torch.randn(2, 3, 4, 5, generator=seeded()).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(2, 3, 6, 7, generator=seeded(1))
    padded = repeat_edge(x, 1)
    (gradient,) = torch.autograd.grad((padded * weight).sum(), x)
    traced = torch.compile(repeat_edge, backend="aot_eager", fullgraph=True)(x, 1)
    (other,) = torch.autograd.grad((traced * weight).sum(), x)
    torch._dynamo.reset()
    assert torch.equal(padded, pad(x, (1, 1, 1, 1), mode="replicate"))
    assert torch.equal(traced, padded)
    torch.testing.assert_close(other, gradient)
    assert repeat_edge(x.to("meta"), 1).is_contiguous(memory_format=torch.channels_last)
    assert repeat_edge(x.to("meta"), 0).shape == x.shape


@pytest.mark.slow
def test_generated_code_computes_what_the_blocks_do():
    style, residual = StyleBlock(4, 6, 3, 5, up=2, out_scale=1.0, clamp=256.0), ResidualBlock(4, 6, 256.0)
    x = torch.randn(2, 4, 8, 8, generator=seeded(1)).contiguous(memory_format=torch.channels_last)
    for block, given in ((style, (x, torch.rand(2, 3, 8, 8), torch.rand(2, 5))), (residual, (x,))):
        initialise(block, seeded())
        results = []
        for call in (block, torch.compile(block, fullgraph=True)):
            inputs = [each.clone().requires_grad_() for each in given]
            with computing_in("bfloat16", CPU):
                found = call(*inputs)
            out = (found[1] if isinstance(found, tuple) else found).float()
            results.append([out, *torch.autograd.grad(out.square().mean(), [*inputs, *block.parameters()])])
        for eager, compiled in zip(*results, strict=True):
            torch.testing.assert_close(compiled, eager, atol=0.03 * eager.abs().max().item(), rtol=0)
    torch._dynamo.reset()
