"""The refiner's measures with samples and draws of known difference, and what it is asked with."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cad.errors import UserError
from cad.prior.refine import view_name
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures import refiner as measures
from cad.toyworld.measures.questions import Question, pictures, questions
from cad.toyworld.settings import ToyworldSettings


def squares(count: int, level: int) -> np.ndarray:
    """Grey squares of 8 px on white in the upper left corner."""
    images = np.full((count, 16, 16, 3), 255, np.uint8)
    images[:, :8, :8] = level
    return images


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weights folder that only seems to hold Zero-1-to-3."""
    (tmp_path / "zero123").mkdir()
    (tmp_path / "zero123/model_index.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(("apart", "ratio", "met"), [(40, 4.0, True), (20, 2.0, False)])
def test_shape_and_diversity_by_hand(
    apart: int, ratio: float, met: bool, weights: Path, held_out: Dataset, settings: ToyworldSettings,
    distance: nn.Module, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Raw samples are 8 px squares 10 levels apart; draws keep 6 of their columns, `apart` levels apart.

    The IoU of a sample's draws is that of 8 x 8 and 8 x 6 pixels in one another, 0.75.
    """

    def synthesise(model: object, _: object, data: Dataset, asked: list[Question], draw: int) -> np.ndarray:
        return squares(len(asked), 100 + 10 * draw)

    def refine(model: object, _: object, data: Dataset, asked: list[Question], images: np.ndarray, draw: int):  # type: ignore[no-untyped-def]
        if len(asked) == len(questions(settings.check, held_out)):
            np.testing.assert_array_equal(images, pictures(held_out, asked))
            return images
        np.testing.assert_array_equal(images, squares(len(asked), 100))  # the first sample
        refined = images.copy()
        refined[:, :8, :6] += np.uint8(apart * draw)
        refined[:, :8, 6:8] = 255
        return refined

    monkeypatch.setattr(measures, "synthesise", synthesise)
    monkeypatch.setattr(measures, "refine", refine)
    monkeypatch.setattr(measures, "load_lpips", lambda *_: distance)
    for kind in ("Zero123", "LatentDiffusion"):
        monkeypatch.setattr(getattr(measures, kind), "load", lambda *_: None)
    met_input, true_input, draws, over = measures.measure_refiner("refiner", settings, held_out, weights)
    assert met_input.value == pytest.approx(0.75)
    assert not met_input.met
    assert "Zero-1-to-3 samples" in met_input.measure
    assert met_input.examples == settings.check.draw_poses * settings.check.draws
    assert true_input.value == 1
    assert true_input.met
    assert "true views" in true_input.measure
    assert draws.baseline == pytest.approx(10 / 127.5 * 64 / 256)
    assert draws.value == pytest.approx(apart / 127.5 * 48 / 256)
    assert over.value == pytest.approx(ratio * 0.75)
    assert over.met is met
    assert over.measure.endswith(f"of 2 raw samples, {draws.value:.4f} over {draws.baseline:.4f}")


def test_samples_without_diversity_meet_no_bar(
    weights: Path, held_out: Dataset, settings: ToyworldSettings, distance: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "synthesise", lambda _, __, ___, asked, ____: squares(len(asked), 100))
    monkeypatch.setattr(measures, "refine", lambda *a: np.clip(a[4].astype(int) + 40 * a[5], 0, 255).astype(np.uint8))
    monkeypatch.setattr(measures, "load_lpips", lambda *_: distance)
    for kind in ("Zero123", "LatentDiffusion"):
        monkeypatch.setattr(getattr(measures, kind), "load", lambda *_: None)
    *_, draws, over = measures.measure_refiner("refiner", settings, held_out, weights)
    assert draws.baseline == 0 < draws.value
    assert math.isnan(over.value)
    assert over.met is False
    assert over.measure.endswith(f"{draws.value:.4f} over 0.0000")


class Recorder:
    """A refiner that adds its noise's mean to a picture and remembers how it was asked."""

    latent_shape = (3, 4, 4)

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.asked: list[tuple[object, ...]] = []

    def embed(self, prompts: list[str]) -> torch.Tensor:
        self.prompts += prompts
        return torch.zeros(len(prompts), 1, 1)

    def sdedit(self, images: torch.Tensor, context: torch.Tensor, null: torch.Tensor, noise: torch.Tensor,
               *settings: object) -> torch.Tensor:  # fmt: skip
        assert len(images) == len(context) == len(noise)
        self.asked.append((len(images), *settings))
        return images / 2 + noise.mean((1, 2, 3), keepdim=True) / 10


@pytest.mark.parametrize("level", ["generic", "colored", "specific"])
def test_the_refiner_is_asked_with_the_settings(level: str, held_out: Dataset, settings: ToyworldSettings) -> None:
    wanted = settings.model_copy(update={"check": settings.check.model_copy(update={"caption": level})})
    asked, model = questions(wanted.check, held_out), Recorder()
    images = pictures(held_out, asked)
    measures.refine(model, wanted, held_out, asked, images, 0)  # type: ignore[arg-type] # stands in for the network
    assert model.prompts == [
        "",
        *(
            f"{getattr(held_out.instances[s].captions, level)}, "
            f"{view_name(held_out.azimuth[s, v].item(), held_out.polar[s, v].item())} view"
            for s, v in asked
        ),
    ]
    sizes = [size for size, *_ in model.asked]
    assert max(sizes) <= settings.check.batch
    assert sum(sizes) == len(asked)
    assert {tuple(rest) for _, *rest in model.asked} == {(None, 0.5, 2.0, 2)}  # no step noise, then the settings


def test_draws_differ_and_do_not_depend_on_the_batch(held_out: Dataset, settings: ToyworldSettings) -> None:
    asked = questions(settings.check, held_out)
    images = pictures(held_out, asked)

    def refined(batch: int, draw: int) -> np.ndarray:
        wanted = settings.model_copy(update={"check": settings.check.model_copy(update={"batch": batch})})
        return measures.refine(Recorder(), wanted, held_out, asked, images, draw)  # type: ignore[arg-type]

    np.testing.assert_array_equal(refined(2, 0), refined(100, 0))
    assert (refined(2, 0) != refined(2, 1)).any((1, 2, 3)).mean() > 0.7


def test_the_overlap_of_draws_with_their_one_sample() -> None:
    images = np.full((1, 1, 2, 4, 3), 255, np.uint8)
    images[..., :2, :] = 90
    draws = np.repeat(images, 2, 1)
    draws[0, 1, :, 1] = 255
    assert measures.overlap(draws, images, 240).tolist() == [[1.0, 0.5]]


def test_no_zero123_is_a_users_fault(held_out: Dataset, settings: ToyworldSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="zero123"):
        measures.measure_refiner("refiner", settings, held_out, tmp_path)
