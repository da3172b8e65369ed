"""The renderer's mathematics (csrc/volume.h) on single numbers, as a GPU's thread takes it, against float64."""

import ctypes
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cad.render import build, reference

pytestmark = pytest.mark.skipif(build.library() is None, reason="needs a C++ compiler")
SPECIAL = [0.0, 1.0, -1.0, 0.7, 0.69999, 1e-30, 87.0, -86.9]


@pytest.fixture(scope="module")
def scalar(tmp_path_factory) -> ctypes.CDLL:
    built = tmp_path_factory.mktemp("scalar") / "scalar.so"
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Werror", f"-I{build.SOURCES}"]
    source = Path(__file__).with_name("scalar.cpp")
    subprocess.run([*compiler, *flags, str(source), "-o", str(built)], check=True)
    return ctypes.CDLL(str(built))


def pointer(tensor):
    assert tensor.is_contiguous()
    assert tensor.dtype == torch.float32
    return ctypes.c_void_p(tensor.data_ptr())


def numbers(low, high):
    draws = torch.Generator().manual_seed(0)
    drawn = torch.rand(20000, generator=draws) * (high - low) + low
    small = torch.randn(2000, generator=draws) * 1e-3
    x = torch.cat([drawn, small, torch.tensor(SPECIAL)])
    return x[(x >= low) & (x <= high)].contiguous()


@pytest.mark.parametrize(
    ("name", "low", "high", "exact", "relative"),
    [
        ("exponential", -87, 88, torch.exp, 3e-7),
        ("absorbed", 0, 80, lambda x: -torch.expm1(-x), 3e-7),
        ("reciprocal", 0.1, 1e6, torch.reciprocal, 2e-7),
        ("logistic", -80, 80, torch.sigmoid, 1e-6),
        ("softplus", -86, 80, torch.nn.functional.softplus, 1e-6),
        ("softplus_slope", -86, 80, torch.sigmoid, 1e-6),
    ],
)
def test_a_function_is_as_exact_as_it_says(scalar, name, low, high, exact, relative):
    x = numbers(low, high)
    found = torch.full_like(x, torch.nan)
    getattr(scalar, f"cad_{name}")(pointer(x), len(x), pointer(found))
    expected = exact(x.double())
    if name == "softplus":
        expected = torch.log1p(torch.exp(x.double()))  # PyTorch's is the identity from 20 on
    assert ((found - expected).abs() <= relative * expected.abs() + 1e-45).all()


@pytest.mark.parametrize("name", ["exponential", "logistic", "softplus", "softplus_slope", "absorbed"])
def test_nan_stays_nan(scalar, name):
    x, found = torch.tensor([torch.nan]), torch.zeros(1)
    getattr(scalar, f"cad_{name}")(pointer(x), 1, pointer(found))
    assert found.isnan()


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_texels_are_those_of_the_reference(scalar, size, seed):
    draws = torch.Generator().manual_seed(seed)
    half_side = 0.7
    x = torch.rand(50, generator=draws) * 2 - 1  # within and beyond the box
    x = torch.cat([x, torch.tensor([torch.nan, torch.inf, -torch.inf, half_side, -half_side, 0.0])])
    found = torch.empty(len(x), 4)
    scalar.cad_texel(pointer(x), len(x), size, ctypes.c_float(half_side), pointer(found))
    low, high, share, slope = found.unbind(1)
    assert ((low >= 0) & (high < size)).all()
    assert ((high == low + 1) | ((low == size - 1) & (high == low))).all()
    texels = torch.randn(size, generator=draws)
    interpolated = texels[low.long()] * (1 - share) + texels[high.long()] * share
    planes = texels[None, None, None, None].expand(1, 3, 1, size, size).contiguous().double()
    planes[:, 1:] = 0  # of the first plane, x runs along the width
    finite = x.isfinite()  # PyTorch's gradient of the others reads anywhere
    points = torch.nn.functional.pad(x[finite, None], (0, 2))[None].double() / half_side
    points.requires_grad_()
    expected = reference.sample_planes(planes, points)[0, 0]
    (grad,) = torch.autograd.grad(expected.sum(), points)
    torch.testing.assert_close(interpolated[finite].double(), expected.detach(), rtol=0, atol=2e-6)
    difference = (slope * (texels[high.long()] - texels[low.long()]))[finite].double()
    between = ((share > 1e-4) & (share < 1 - 1e-4) | (x.abs() > half_side))[finite]  # at a texel it has two slopes
    torch.testing.assert_close(difference[between], grad[0, between, 0] / half_side, rtol=0, atol=1e-4)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31))
def test_weights_are_those_of_the_reference(scalar, count, seed):
    draws = torch.Generator().manual_seed(seed)
    density = torch.rand(count, generator=draws) * 10 ** (torch.rand(count, generator=draws) * 4 - 2)
    distances = torch.rand(count + 1, generator=draws).sort().values
    spacing, found = distances.diff(), torch.empty(count)
    scalar.cad_composite(pointer(density), pointer(spacing), count, pointer(found))
    column = distances.double()[None, :, None]
    # Spacings as they were given: their rounding is none of the function's.
    exact = torch.cat([column[:, :1], column[:, :1] + spacing.double().cumsum(0)[None, :, None]], 1)
    expected = reference.compositing_weights(density.double()[None, :, None], exact[:, :-1], exact[:, -1])
    # e to the sum of what lies before errs by that sum's rounding, up to half a millionth for each sample.
    torch.testing.assert_close(found.double(), expected[0, :, 0], rtol=5e-6, atol=1e-12)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.booleans(), st.integers(0, 2**31))
def test_positions_are_those_of_the_reference(scalar, parts, count, empty, seed):
    draws = torch.Generator().manual_seed(seed)
    weights = torch.rand(parts, generator=draws) ** 4 * (not empty)
    wanted = torch.rand(count, generator=draws).sort().values
    strided, found = weights.repeat_interleave(3).contiguous(), torch.empty(count)
    share = ctypes.c_float(reference.UNIFORM_SHARE)
    scalar.cad_inverse_distribution(pointer(strided), parts, pointer(wanted), count, share, pointer(found))
    expected = reference.importance(weights.double()[None, :, None], wanted.double()[None, :, None])[0, :, 0]
    assert (found.diff() >= 0).all()
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=1e-4
    )  # where parts are unlikely, rounding moves it
