"""Zero-1-to-3's measures with synthesisers whose scores are known: the truth, the reference, nothing."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import nn

from cad.errors import UserError
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures import zero123 as measures
from cad.toyworld.measures.questions import Question, questions, sphere_questions
from cad.toyworld.measures.table import Measure
from cad.toyworld.settings import ToyworldSettings
from cad.toyworld.world import families


class Copier:
    """A view synthesiser that returns what it is told to."""

    latent_shape = (4, 8, 8)

    def __init__(self, answers: torch.Tensor):
        self.answers = answers

    def condition(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image.flatten(1), image

    def sample(self, embedding: torch.Tensor, *_: object) -> torch.Tensor:
        batch, self.answers = self.answers[: len(embedding)], self.answers[len(embedding) :]
        return batch


Sampled = dict[str, list[Measure]]


def asked_for(data: Dataset, settings: ToyworldSettings) -> list[Question]:
    """All views that are sampled, in the order in which they are."""
    return sorted({*questions(settings.check, data), *sphere_questions(settings.check, data)})


@pytest.fixture(scope="module")
def sampled(held_out: Dataset, settings: ToyworldSettings, distance: nn.Module) -> Sampled:
    """All measures of synthesisers that answer with the truth, a picture that knows nothing, or each where asked."""
    every = asked_for(held_out, settings)
    subjects, views = torch.tensor(every).T
    truth, reference = held_out.pick(subjects, views), held_out.pick(subjects, torch.zeros_like(views))
    nothing = torch.ones_like(truth)
    uniform = torch.tensor([q in sphere_questions(settings.check, held_out) for q in every])[:, None, None, None]
    answers = {
        "truth": truth,
        "reference": reference,
        "haze": reference.clamp(max=239 / 127.5 - 1),  # white becomes just dark enough to be foreground
        "nothing": nothing,
        "truth on the sphere": torch.where(uniform, truth, nothing),
    }
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "load_lpips", lambda *_: distance)
        for name, images in answers.items():
            patch.setattr(measures.Zero123, "load", lambda *_, images=images: Copier(images))
            found[name] = measures.measure_zero123("zero123", settings, held_out, Path("unused"))
    return found


def test_the_truth_meets_every_bar_but_that_of_failures(sampled: Sampled) -> None:
    ratio, lpips, overlap, colors, to_reference, left, front, failures = sampled["truth"]
    assert ratio.value == pytest.approx(20 * math.log10(510))
    assert ratio.baseline is not None
    assert ratio.baseline < 20
    assert lpips.value == 0
    assert overlap.value > 0.8  # edge pixels at 16 px: any colour counts here, half coverage in the truth
    assert colors.value < 1
    assert to_reference.value == pytest.approx(to_reference.baseline, abs=1)
    assert left.value == front.value == 1
    assert all(m.met for m in (ratio, lpips, overlap, colors, left, front))
    assert failures.value < 0.4
    assert to_reference.met is None


def test_copying_the_reference_scores_its_baseline_and_meets_no_relative_bar(sampled: Sampled) -> None:
    ratio, lpips, overlap, colors, to_reference, _, _, failures = sampled["reference"]
    for m in (ratio, lpips, overlap, colors):
        assert m.baseline_name == "copying the reference"
        assert m.value == m.baseline
    assert not ratio.met
    assert not lpips.met
    assert failures.value > 0.6
    assert not failures.met
    assert to_reference.value > sampled["truth"][4].value


def test_the_reference_under_a_faint_haze_gains_nothing(sampled: Sampled, settings: ToyworldSettings) -> None:
    """All of it is foreground, so that a mask of its own would dilute its errors by background: +6 dB at 64 px."""
    assert settings.check.white_threshold == 240
    ratio, _, overlap, *_ = sampled["haze"]
    assert ratio.baseline is not None
    assert ratio.value - ratio.baseline < 0.2
    assert not ratio.met
    assert overlap.value < 0.5


def test_failures_are_of_poses_uniform_on_the_sphere(
    sampled: Sampled, held_out: Dataset, settings: ToyworldSettings
) -> None:
    """What is sampled elsewhere does not count: a far view may be a second reference, and a near target is not far."""
    far, uniform = set(questions(settings.check, held_out)), set(sphere_questions(settings.check, held_out))
    assert far - uniform
    assert uniform - far
    assert sampled["truth on the sphere"][-1].value == sampled["truth"][-1].value
    assert sampled["truth on the sphere"][2].value < sampled["truth"][2].value  # the far views do see the difference


def test_showing_nothing_fails(sampled: Sampled) -> None:
    _, _, overlap, colors, to_reference, _, _, failures = sampled["nothing"]
    assert overlap.value == 0
    assert failures.value == 1
    assert colors.value > 15
    assert to_reference.value > 15
    assert not any(m.met for m in (overlap, colors, failures))


def test_every_line_says_of_how_many(sampled: Sampled, held_out: Dataset, settings: ToyworldSettings) -> None:
    asked = questions(settings.check, held_out)
    n = [m.examples for m in sampled["truth"]]
    assert n[:3] == [len(asked)] * 3
    assert n[-1] == len(sphere_questions(settings.check, held_out)) == settings.check.instances * len(families())
    assert n[3] == n[4] > 0
    azimuth, polar = (
        torch.stack([angles[q.subject, q.view] for q in asked]) for angles in (held_out.azimuth, held_out.polar)
    )
    for m, side in ((sampled["truth"][5], azimuth.sin()), (sampled["truth"][6], azimuth.cos())):
        assert m.examples == int(((polar.sin() * side).abs() > settings.check.side_margin).sum())
        assert m.baseline == 0.5


def test_part_distances_by_hand() -> None:
    """One view. Part 0 is seen in both; part 1 has one pixel in the reference; part 2 is in the true view alone.

    The sample shows part 0 in one of its two pixels, so that the other does not count.
    """
    red, dark, sample_red, blue = (200, 40, 40), (120, 24, 24), (180, 60, 50), (30, 60, 200)
    true = np.array([[[red, red], [blue, blue]]], np.uint8)
    reference = np.array([[[blue, dark], [dark, dark]]], np.uint8)
    sample = np.array([[[sample_red, (255, 255, 255)], [blue, blue]]], np.uint8)
    shapes = np.array([[[True, False], [True, True]]])
    true_parts = np.array([[[0, 0], [1, 1]]])
    reference_parts = np.array([[[1, 0], [0, 0]]])
    found = measures.part_distances(sample, shapes, true, reference, true_parts, reference_parts, 2)

    def expected(a: tuple[int, ...], b: tuple[int, ...]) -> float:
        return float(deltaE_ciede2000(*(rgb2lab(np.array(color) / 255) for color in (a, b))))

    np.testing.assert_allclose(found.to_truth, [expected(sample_red, red)], atol=1e-3)
    np.testing.assert_allclose(found.to_reference, [expected(sample_red, dark)], atol=1e-3)
    np.testing.assert_allclose(found.true, [expected(red, dark)], atol=1e-3)
    assert len(measures.part_distances(sample, shapes, true, reference, true_parts, reference_parts, 1).true) == 2


def test_a_part_that_the_sample_lacks_counts_as_white() -> None:
    image, parts = np.full((1, 2, 2, 3), 0, np.uint8), np.zeros((1, 2, 2), int)
    nothing = np.zeros((1, 2, 2), bool)
    found = measures.part_distances(image, nothing, image, image, parts, parts, 1)
    assert found.to_truth[0] == pytest.approx(100, abs=0.1)  # black to white
    assert found.true[0] == 0


def test_no_part_in_both_views_is_a_users_fault() -> None:
    image, parts = np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 2, 2), int)
    shapes = np.ones((1, 2, 2), bool)
    with pytest.raises(UserError, match=r"check\.part_pixels: no part covers 4 pixels in both views; lower it"):
        measures.part_distances(image, shapes, image, image, parts, parts - np.array([[[0, 0], [0, 1]]]), 4)
