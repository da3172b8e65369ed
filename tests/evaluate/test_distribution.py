import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cad.camera import orbit_poses
from cad.evaluate.distribution import between_frames, features, kernel, kid, squared_mmd


def unit(seed, *shape, towards=0.0):
    draws = np.random.default_rng(seed).normal(size=shape)
    draws[..., 0] += towards
    return torch.from_numpy((draws / np.linalg.norm(draws, axis=-1, keepdims=True)).astype(np.float32))


def by_definition(x, y):
    """Lemma 6 of Gretton et al. (2012), term by term, with KID's kernel on unit embeddings scaled by sqrt(d)."""
    d = x.shape[-1]
    x, y = (each.double().numpy() * math.sqrt(d) for each in (x, y))
    total = 0.0
    for a, b, weight in ((x, x, 1.0), (y, y, 1.0), (x, y, -2.0)):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if a is not b or i != j]
        total += weight * sum((float(a[i] @ b[j]) / d + 1) ** 3 for i, j in pairs) / len(pairs)
    return total


@budget(max_examples=20, deadline=None)
@given(n=st.integers(2, 7), m=st.integers(2, 7), d=st.integers(2, 9), seed=st.integers(0, 99))
def test_the_definition(n, m, d, seed):
    x, y = unit(seed, n, d), unit(seed + 1, m, d, towards=1.0)
    assert squared_mmd(features(x), features(y)) == pytest.approx(by_definition(x, y), abs=1e-9)


def test_the_kernel_sees_the_cosine():
    a = unit(0, 4, 5)
    values = kernel(features(a), features(a))
    torch.testing.assert_close(values, (a.double() @ a.double().T + 1) ** 3, rtol=1e-6, atol=1e-6)
    assert values.diagonal().numpy() == pytest.approx(8, abs=1e-5)


def test_independent_draws_of_one_distribution_are_at_zero_on_average():
    """Unbiased: with a biased estimate all of these would be positive."""
    found = np.array([squared_mmd(features(unit(2 * k, 8, 6)), features(unit(2 * k + 1, 5, 6))) for k in range(400)])
    assert abs(found.mean()) < 3 * found.std() / math.sqrt(len(found))
    assert (found < 0).sum() > 100


def test_farther_is_farther():
    true = unit(1, 50, 16)
    near, far = (kid(unit(2, 1, 50, 16, towards=shift), true) for shift in (2.0, 4.0))
    assert 0 < near < far


def test_seeds_are_compared_one_by_one():
    """Two seeds that err to opposite sides do not make up for each other; the mean of both is given, times 1000."""
    true, seeds = unit(1, 12, 4), torch.stack([unit(2, 6, 4, towards=3.0), unit(3, 6, 4, towards=-3.0)])
    one_by_one = [1000 * by_definition(each, true) for each in seeds]
    assert kid(seeds, true) == pytest.approx(np.mean(one_by_one), rel=1e-6)
    assert kid(seeds, true) > kid(seeds.flatten(0, 1)[None], true)


@pytest.mark.parametrize(("frames", "true"), [(1, 5), (5, 1)])
def test_one_view_is_no_distribution(frames, true):
    assert kid(unit(0, 2, frames, 4), unit(1, true, 4)) is None


def test_true_views_lie_halfway_between_the_frames():
    poses = orbit_poses(6, 1.2, math.pi)
    between = between_frames(poses)
    np.testing.assert_allclose(np.degrees(between.azimuth - poses.azimuth), 30)
    np.testing.assert_allclose(between.polar, poses.polar)
