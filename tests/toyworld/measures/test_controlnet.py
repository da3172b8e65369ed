"""The ControlNet's measure with refinements of known overlap, and what it needs beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cad.errors import UserError
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures import controlnet as measures
from cad.toyworld.redraw import CONTROLLED, Walk
from cad.toyworld.settings import ToyworldSettings


def squares(count: int, width: int) -> np.ndarray:
    """Grey rectangles of 8 x `width` px on white."""
    images = np.full((count, 16, 16, 3), 255, np.uint8)
    images[:, :8, :width] = 90
    return images


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weights folder that only seems to hold the models."""
    for name, file in (("zero123", "model_index.json"), ("refiner", "model_index.json"), ("depth", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    return tmp_path


def test_overlap_with_and_without_control_by_hand(
    weights: Path, held_out: Dataset, settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control keeps 6 of 8 columns; without it 4 are kept at the first strength and 6 at the second."""
    asked: list[tuple[str, Walk]] = []

    def redraw(family: str, walk: Walk, _: Any, __: Any, posed: Any, images: np.ndarray, draws: int, *___: Any) -> Any:
        asked.append((family, walk))
        np.testing.assert_array_equal(images, squares(len(posed), 8))
        width = 6 if family == CONTROLLED or walk.strength == 1 else 4
        return np.repeat(squares(len(posed), width)[:, None], draws, 1)

    monkeypatch.setattr(measures, "redraw", redraw)
    monkeypatch.setattr(measures, "synthesise", lambda _, __, ___, posed, draw: squares(len(posed), 8 - draw))
    monkeypatch.setattr(measures.Zero123, "load", lambda *_: None)
    low, high = measures.measure_controlnet("controlnet", settings, held_out, weights)
    assert (low.value, low.baseline, low.met) == (0.75, 0.5, True)
    assert (high.value, high.baseline, high.met) == (0.75, 0.75, False)
    assert low.measure.endswith("at strength 0.5, Zero-1-to-3 samples")
    assert low.examples == settings.check.draw_poses * settings.check.draws
    assert {walk for _, walk in asked} == {Walk(0.5, 2), Walk(1.0, 2)}


@pytest.mark.parametrize("name", ["zero123", "refiner", "depth"])
def test_a_missing_model_is_a_users_fault(
    name: str, weights: Path, held_out: Dataset, settings: ToyworldSettings
) -> None:
    next((weights / name).iterdir()).unlink()
    with pytest.raises(UserError, match=rf"{name}.*json: is missing"):
        measures.measure_controlnet("controlnet", settings, held_out, weights)
