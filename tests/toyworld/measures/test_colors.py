"""CIELAB and CIEDE2000 against scikit-image and the test pairs that were published with the formula."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from skimage.color import deltaE_ciede2000, rgb2lab

from cad.toyworld.measures.colors import ciede2000, to_lab

Triple = tuple[float, float, float]
sides = st.floats(-100, 100)
labs = st.tuples(st.floats(0, 100), sides, sides)
colors = st.tuples(*[st.integers(0, 255)] * 3)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [  # Sharma, Wu and Dalal 2005, Table 1
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
        ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
        ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0011), 7.2195),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_published_pairs(first: Triple, second: Triple, expected: float) -> None:
    for pair in ((first, second), (second, first)):
        assert ciede2000(*(np.array(lab) for lab in pair)) == pytest.approx(expected, abs=1e-4)


@given(labs, labs)
@example((50.0, 10.0, 10.0), (50.0, -10.0, 10.0))
@example((50.0, 0.0, 0.0), (60.0, 0.0, 0.0))
def test_the_distance_is_the_librarys(first: Triple, second: Triple) -> None:
    a, b = np.array(first), np.array(second)
    assert ciede2000(a, b) == pytest.approx(deltaE_ciede2000(a, b), abs=1e-6)
    assert ciede2000(a, a) == pytest.approx(0, abs=1e-6)


@given(st.lists(colors, min_size=1, max_size=5))
def test_lab_is_the_librarys(values: list[tuple[int, ...]]) -> None:
    rgb = np.array(values, np.uint8)
    np.testing.assert_allclose(to_lab(rgb), rgb2lab(rgb), atol=1e-3)


def test_white_grey_and_black() -> None:
    lab = to_lab(np.array([[255, 255, 255], [119, 119, 119], [0, 0, 0]]))
    np.testing.assert_allclose(lab, [[100, 0, 0], [50.03, 0, 0], [0, 0, 0]], atol=0.02)
