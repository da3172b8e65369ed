"""The depth measure with estimators that know the truth, know nothing, or take near for far."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cad.toyworld.dataset import Dataset
from cad.toyworld.depth import true_inverse_depth
from cad.toyworld.measures import depth as measures
from cad.toyworld.measures.questions import questions
from cad.toyworld.measures.table import Measure
from cad.toyworld.settings import ToyworldSettings

Change = Callable[[torch.Tensor], torch.Tensor]


def measured(change: Change, data: Dataset, settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """What is said of an estimator that answers with the changed truth."""
    subjects, views = torch.tensor(questions(settings.check, data)).T
    truth = change(true_inverse_depth(data, subjects, views, settings.camera))
    seen = 0

    def estimate(images: torch.Tensor, side: int) -> torch.Tensor:
        nonlocal seen
        assert side == images.shape[-1]
        assert len(images) <= settings.check.batch
        found = truth[seen : seen + len(images), None].expand(-1, 3, -1, -1)
        seen += len(images)
        return found

    monkeypatch.setattr(measures.DepthEstimator, "load", lambda *_: SimpleNamespace(estimate=estimate))
    (line,) = measures.measure_depth("depth", settings, data, Path("unused"))
    assert seen == len(subjects)
    assert 0 < line.examples <= len(subjects)
    return line


def test_the_truth_up_to_scale_and_shift_has_no_error(
    held_out: Dataset, settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = measured(lambda x: 0.3 * x + 7, held_out, settings, monkeypatch)
    assert line.value == pytest.approx(0, abs=1e-5)
    assert line.baseline is not None
    assert 0.005 < line.baseline < 0.3
    assert line.met


@pytest.mark.parametrize("change", [torch.zeros_like, torch.neg])
def test_knowing_nothing_and_taking_near_for_far_are_the_baseline(
    change: Change, held_out: Dataset, settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = measured(change, held_out, settings, monkeypatch)
    assert line.value == pytest.approx(line.baseline)
    assert not line.met


def test_the_error_by_hand() -> None:
    """Two pixels of the object at depths 1 and 2, inverse 1 and 0.5, whose mean, 0.75, is a depth of 4 / 3.

    A flat estimate is off by 1 / 3 of the first and by 1 / 3 of the second; the third pixel is background.
    """
    true = np.array([[[1.0, 0.5, 0.1]]])
    shown = np.array([[[True, True, False]]])
    assert list(measures.relative_errors(np.zeros((1, 1, 3)), true, shown)) == pytest.approx([1 / 3])
    assert list(measures.relative_errors(np.array([[[9.0, 5.0, 77.0]]]), true, shown)) == pytest.approx([0])
    assert list(measures.relative_errors(true, true, np.zeros((1, 1, 3), bool))) == []


def test_scale_and_shift_are_those_of_least_squares() -> None:
    stream = np.random.default_rng(0)
    true = stream.uniform(0.3, 1.2, 40)
    found = stream.uniform(0, 1, 40) + true
    scale, shift = np.polyfit(found, true, 1)
    np.testing.assert_allclose(measures.aligned(found, true), scale * found + shift)
