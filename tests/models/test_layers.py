import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d, linear

from cad.models import layers
from cad.models.layers import (
    Conv,
    Linear,
    ModulatedConv,
    StyleBlock,
    doublings,
    enlarge,
    initialise,
    innermost_gradient,
)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    kernel=st.sampled_from([1, 3]),
    demodulate=st.booleans(),
)
def test_modulated_convolution_is_the_explicit_per_sample_one(batch, inputs, outputs, kernel, demodulate):
    draws = torch.Generator().manual_seed(batch * 100 + inputs * 10 + outputs)
    layer = ModulatedConv(inputs, outputs, kernel, 7, demodulate, 1.0).double()
    initialise(layer, draws)
    layer.bias.data.normal_(generator=draws)
    x = torch.randn(batch, inputs, 6, 6, generator=draws, dtype=torch.float64)
    w = torch.randn(batch, 7, generator=draws, dtype=torch.float64)
    got = layer(x, w)
    for b in range(batch):
        style = layer.style.weight / math.sqrt(7) @ w[b] + layer.style.bias
        weight = layer.weight / math.sqrt(inputs * kernel**2) * style[None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        edge = torch.arange(-(kernel // 2), 6 + kernel // 2).clamp(0, 5)  # the border pixels go on
        torch.testing.assert_close(got[b : b + 1], conv2d(x[b : b + 1][..., edge, :][..., edge], weight, layer.bias))


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_of_parts_is_that_of_the_whole(draws, demodulate):
    """Parts that are constant along an axis, enlarged and with a gain, against all channels side by side."""
    layer = ModulatedConv(6, 4, 3, 5, demodulate, 1.0, gain=1.7, up=2).double()
    plain = ModulatedConv(6, 4, 3, 5, demodulate, 1.0).double()
    initialise(layer, draws)
    layer.bias.data.normal_(generator=draws)
    plain.load_state_dict(layer.state_dict())
    sizes = [(2, 3, 6, 8), (2, 2, 1, 8), (2, 1, 6, 1)]
    parts = [torch.randn(size, generator=draws, dtype=torch.float64) for size in sizes]
    whole = torch.cat([part.expand(-1, -1, 6, 8) for part in parts], 1)
    w = torch.randn(2, 5, generator=draws, dtype=torch.float64)
    expected = 1.7 * plain(enlarge(whole, 2), w)
    torch.testing.assert_close(layer(whole, w), expected)
    torch.testing.assert_close(layer(parts, w), expected)


def test_gain_multiplies_what_comes_out(draws):
    for kind, shape in ((Linear, (3, 4, 0.5, 0.1)), (Conv, (3, 4, 3, 2, True))):
        plain, loud = kind(*shape), kind(*shape, gain=3.0)
        initialise(plain, draws)
        loud.load_state_dict(plain.state_dict())
        x = torch.randn(2, 3, generator=draws) if kind is Linear else torch.randn(2, 3, 4, 4, generator=draws)
        torch.testing.assert_close(loud(x), 3 * plain(x))


def test_only_the_gradients_layout_changes(draws):
    x = torch.randn(2, 3, 4, 5, generator=draws, requires_grad=True)
    weight = torch.randn(2, 3, 4, 5, generator=draws)
    seen = []
    y = x * 1
    y.register_hook(seen.append)
    (innermost_gradient(y) * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_linear_layer_scales_by_hand():
    layer = Linear(4, 1, bias=1.0, rate=0.5)
    layer.weight.data[:] = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    layer.bias.data[:] = 6.0
    assert layer(torch.ones(1, 4)).item() == pytest.approx(10 * 0.5 / 2 + 3.0)


def test_the_start_does_not_depend_on_the_learning_rate_multiplier():
    slow, fast = Linear(64, 64, bias=0.5, rate=0.01), Linear(64, 64, bias=0.5, rate=1.0)
    for layer in (slow, fast):
        initialise(layer, torch.Generator().manual_seed(1))
    torch.testing.assert_close(slow(torch.ones(1, 64)), fast(torch.ones(1, 64)))


def test_initialise_is_a_function_of_the_generator_alone_and_reaches_every_parameter():
    def block(seed):
        made = StyleBlock(3, 4, 5, 6, up=2, out_scale=1.0, clamp=None)
        initialise(made, torch.Generator().manual_seed(seed))
        return made.state_dict()

    state = torch.random.get_rng_state()
    first, again, other = block(0), block(0), block(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first if k.endswith("weight"))
    with pytest.raises(TypeError, match="belongs to no Layer"):
        initialise(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.Generator())


def test_a_silent_block_only_enlarges_the_skip(draws):
    block = StyleBlock(3, 4, 2, 6, up=2, out_scale=0.0, clamp=None)
    initialise(block, draws)
    skip = torch.randn(2, 2, 4, 4, generator=draws)
    features, out = block(torch.randn(2, 3, 4, 4, generator=draws), skip, torch.randn(2, 6, generator=draws))
    assert features.shape == (2, 4, 8, 8)
    assert torch.equal(out, enlarge(skip, 2))


def test_bilinear_enlargement_is_the_1_3_3_1_filter_inside():
    row = enlarge(torch.tensor([0.0, 0, 4, 0, 0]).expand(1, 1, 5, 5), 2)[0, 0, 5]
    assert row.tolist() == [0, 0, 0, 1, 3, 3, 1, 0, 0, 0]


def test_doublings():
    assert doublings(4, 4, "x") == 0
    assert doublings(4, 256, "x") == 6
    for small, large in ((4, 24), (8, 4)):
        with pytest.raises(ValueError, match="x: "):
            doublings(small, large, "x")


def test_under_autocast_only_the_convolution_is_rounded(monkeypatch):
    """Styles and norms are those of full precision, and what comes out is of the convolution's kind."""
    layer, draws = ModulatedConv(5, 4, 3, 7, True, 1.0), torch.Generator().manual_seed(2)
    initialise(layer, draws)
    layer.bias.data.normal_(generator=draws)
    x, w = torch.randn(2, 5, 6, 6, generator=draws), torch.randn(2, 7, generator=draws)
    kinds = []
    monkeypatch.setattr(layers, "linear", lambda *given: kinds.append(linear(*given)) or kinds[-1])
    whole = layer(x, w)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x, w)
    assert half.dtype == torch.bfloat16
    assert [y.dtype for y in kinds] == [torch.float32] * 4
    assert all(torch.equal(kinds[i], kinds[i + 2]) for i in range(2))
    torch.testing.assert_close(half.float(), whole, atol=0.05, rtol=0.02)
