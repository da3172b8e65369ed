"""PSNR and LPIPS between pictures, by hand."""

import math

import numpy as np
import pytest
from torch import nn

from cad.toyworld.measures.pixels import pairwise, perceptual, psnr


def grey(*levels: int) -> np.ndarray:
    return np.stack([np.full((2, 2, 3), level, np.uint8) for level in levels])


def test_psnr_by_hand() -> None:
    """One pixel of four off by (30, 0, 0): within the mask of two pixels the mean square is 900 / 3 / 2 = 150."""
    truth = np.full((1, 2, 2, 3), 100, np.uint8)
    images = truth.copy()
    images[0, 0, 0, 0] = 70  # below: unsigned arithmetic would wrap
    images[0, 1, 1] = 255  # outside the mask
    mask = np.array([[[True, True], [False, False]]])
    assert psnr(images, truth, mask)[0] == pytest.approx(10 * math.log10(255**2 / 150))


def test_psnr_of_a_perfect_match_is_finite() -> None:
    truth = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(truth, truth, np.ones((2, 4, 4), bool)) == pytest.approx(20 * math.log10(510))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_distance_is_of_each_pair_in_any_batch(distance: nn.Module, batch: int) -> None:
    found = perceptual(distance, grey(0, 100, 200), grey(51, 100, 98), batch)
    np.testing.assert_allclose(found, [0.4, 0, 0.8], atol=1e-6)


def test_pairwise_by_hand(distance: nn.Module) -> None:
    """Pairs of grey levels 0, 51, 204 are 51, 204, 153 apart, those of 100, 100, 100 nothing."""
    draws = np.stack([grey(0, 51, 204), grey(100, 100, 100)])
    assert pairwise(distance, draws, 2) == pytest.approx((51 + 204 + 153) / 127.5 / 3 / 2)
