"""Which views are asked for, what is true of them, and samples that depend on no batch."""

import numpy as np
import pytest
import torch

from cad.camera import Poses, angle_between
from cad.config import CameraSettings
from cad.errors import UserError
from cad.toyworld.dataset import Dataset, view_poses
from cad.toyworld.measures.questions import (
    Question,
    asked_poses,
    batches,
    checked,
    noise_streams,
    pictures,
    questions,
    sphere_questions,
    spread,
    synthesise,
    truths,
)
from cad.toyworld.settings import ToyworldSettings
from cad.toyworld.world import HELD_OUT, families, instance, render_views


def test_questions_are_the_first_far_views(held_out: Dataset, settings: ToyworldSettings) -> None:
    asked = questions(settings.check, held_out)
    assert len({q.subject for q in asked}) == len(asked) <= len(families())
    for subject in checked(settings.check, held_out):
        item = held_out.instances[subject]
        assert item.seed == HELD_OUT
        poses = view_poses(item.family, item.seed, settings.data)
        angles = angle_between(poses, poses)[0].rad2deg().tolist()
        far = [view for view, angle in enumerate(angles) if angle > settings.check.min_angle_deg]
        assert [q.view for q in asked if q.subject == subject] == far[:1]


def test_no_far_view_is_a_users_fault(held_out: Dataset, settings: ToyworldSettings) -> None:
    with pytest.raises(UserError, match=r"check\.min_angle_deg: no view lies farther than 179\.9 deg"):
        questions(settings.check.model_copy(update={"min_angle_deg": 179.9}), held_out)


def test_poses_on_the_sphere_are_the_first_targets_near_or_far(held_out: Dataset, settings: ToyworldSettings) -> None:
    """At 16 px an instance has two references and then two targets, which `view_poses` draws from the sphere."""
    wanted = settings.check.model_copy(update={"views": 2, "min_angle_deg": 179.0})
    subjects = checked(wanted, held_out)
    assert sphere_questions(wanted, held_out) == [Question(s, view) for s in subjects for view in (2, 3)]
    with pytest.raises(UserError, match=r"check\.views: 3 is more than data\.targets = 2; lower it"):
        sphere_questions(wanted.model_copy(update={"views": 3}), held_out)


def test_questions_are_spread_over_the_families() -> None:
    asked = [Question(subject, view) for subject in range(8) for view in (2, 3)]
    assert {q.subject for q in spread(asked, 8)} == set(range(8))
    assert spread(asked, 2) == [asked[0], asked[-1]]
    assert spread(asked, 16) == spread(asked, 40) == asked


def test_the_truth_is_the_objects_own(held_out: Dataset, settings: ToyworldSettings, camera: CameraSettings) -> None:
    asked = [Question(3, 2), Question(0, 0)]
    found = truths(held_out, asked, camera)
    for k, (subject, view) in enumerate(asked):
        item = held_out.instances[subject]
        poses = view_poses(item.family, item.seed, settings.data)
        pose = Poses(azimuth=poses.azimuth[view, None], polar=poses.polar[view, None])
        views = render_views(instance(item.family, item.seed), pose, camera, 16)
        np.testing.assert_array_equal(found.silhouettes[k], views.silhouettes[0])
        np.testing.assert_array_equal(found.parts[k] >= 0, np.isfinite(views.depth[0]))
        np.testing.assert_array_equal(pictures(held_out, asked)[k], views.images[0])
        assert asked_poses(held_out, asked).azimuth[k] == poses.azimuth[view]


def test_noise_is_of_the_question_and_the_draw(held_out: Dataset) -> None:
    asked = [Question(0, 2), Question(0, 3), Question(5, 2)]
    noise = noise_streams(0, "test", held_out, asked, 0).draw((4,))
    assert len({tuple(row) for row in noise.tolist()}) == 3
    torch.testing.assert_close(noise_streams(0, "test", held_out, asked[2:], 0).draw((4,)), noise[2:], rtol=0, atol=0)
    assert not noise_streams(0, "test", held_out, asked, 1).draw((4,)).equal(noise)
    assert not noise_streams(0, "other", held_out, asked, 0).draw((4,)).equal(noise)


def test_batches_are_all_of_it_in_order() -> None:
    assert [list(part) for part in batches(range(5), 2)] == [[0, 1], [2, 3], [4]]


class Painter:
    """A view synthesiser that paints its first noise's sign, and remembers how it was asked."""

    latent_shape = (3, 2, 2)

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def condition(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image.flatten(1), image

    def sample(self, embedding: torch.Tensor, latent: torch.Tensor, pose: torch.Tensor, noise: torch.Tensor,
               step_noise: object, steps: int, guidance: float, eta: float) -> torch.Tensor:  # fmt: skip
        assert (steps, guidance, eta) == (2, 3.0, 1.0)
        assert step_noise is not None
        self.sizes.append(len(noise))
        return noise.tanh()


def test_samples_come_in_batches_and_do_not_depend_on_them(held_out: Dataset, settings: ToyworldSettings) -> None:
    asked = questions(settings.check, held_out)
    wanted = settings.model_copy(update={"check": settings.check.model_copy(update={"batch": 100})})
    small, large = Painter(), Painter()
    found = synthesise(small, settings, held_out, asked, 0)  # type: ignore[arg-type] # stands in for Zero123
    np.testing.assert_array_equal(found, synthesise(large, wanted, held_out, asked, 0))  # type: ignore[arg-type]
    assert max(small.sizes) == settings.check.batch < len(asked) == sum(small.sizes)
    assert large.sizes == [len(asked)]
    assert (found != synthesise(small, settings, held_out, asked, 1)).any()  # type: ignore[arg-type]
