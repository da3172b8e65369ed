"""Which held-out views the models are asked for, the truth about them, and noise that depends on no batch."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from cad.camera import Poses, angle_between, relative_pose
from cad.config import CameraSettings
from cad.errors import UserError
from cad.prior.ddim import NoiseStreams, in_precision
from cad.prior.pictures import to_picture
from cad.prior.zero123 import Zero123
from cad.seeding import generator
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures.parts import part_ids
from cad.toyworld.settings import CheckSettings, ToyworldSettings
from cad.toyworld.world import families, render_views

CPU = torch.device("cpu")
Item = TypeVar("Item")


class Question(NamedTuple):
    """A view that a model is asked for: positions in the held-out `Dataset`; the reference is the instance's view 0."""

    subject: int
    view: int


class Truth(NamedTuple):
    """True views of questions: silhouettes bool and part ids int (-1: none), [Q, H, W]."""

    silhouettes: np.ndarray
    parts: np.ndarray


def checked(chosen: CheckSettings, data: Dataset) -> list[int]:
    """Positions of the first `check.instances` instances of every family."""
    own = len(data) // len(families())
    return [family * own + k for family in range(len(families())) for k in range(chosen.instances)]


def questions(chosen: CheckSettings, data: Dataset) -> list[Question]:
    """The first `check.views` views of each checked instance that lie over `check.min_angle_deg` from its reference."""
    found = []
    for subject in checked(chosen, data):
        poses = Poses(azimuth=data.azimuth[subject], polar=data.polar[subject])
        far = angle_between(poses, poses)[0] > math.radians(chosen.min_angle_deg)
        found += [Question(subject, view) for view in far.nonzero()[:, 0].tolist()[: chosen.views]]
    if not found:
        raise UserError(f"check.min_angle_deg: no view lies farther than {chosen.min_angle_deg} deg; lower it")
    return found


def sphere_questions(chosen: CheckSettings, data: Dataset) -> list[Question]:
    """The first `check.views` target views of each checked instance: uniform on the sphere, near or far (`view_poses`).

    Raises UserError where an instance has fewer.
    """
    first = data.references
    if chosen.views > data.views - first:
        raise UserError(f"check.views: {chosen.views} is more than data.targets = {data.views - first}; lower it")
    return [Question(subject, first + k) for subject in checked(chosen, data) for k in range(chosen.views)]


def spread(asked: Sequence[Question], count: int) -> list[Question]:
    """`count` of the questions (all, if there are fewer), at even steps: every family takes part."""
    steps = np.linspace(0, len(asked) - 1, min(count, len(asked))).round().astype(int)
    return [asked[k] for k in steps]


def asked_poses(data: Dataset, asked: Sequence[Question]) -> Poses:
    """The poses asked for, [Q]."""
    subjects, views = torch.tensor(asked).T
    return Poses(azimuth=data.azimuth[subjects, views], polar=data.polar[subjects, views])


def pictures(data: Dataset, asked: Sequence[Question]) -> np.ndarray:
    """The true views asked for, uint8 [Q, H, W, 3]."""
    return data.images[[q.subject for q in asked], [q.view for q in asked]]


def truths(data: Dataset, asked: Sequence[Question], camera: CameraSettings) -> Truth:
    """Silhouettes and parts of the views asked for, from the true objects."""
    silhouettes, parts = [], []
    for subject, view in asked:
        pose = Poses(azimuth=data.azimuth[subject, view, None], polar=data.polar[subject, view, None])
        views = render_views(data.instances[subject], pose, camera, data.images.shape[2])
        silhouettes.append(views.silhouettes)
        parts.append(part_ids(data.instances[subject].scene, views.depth, pose, camera))
    return Truth(np.concatenate(silhouettes), np.concatenate(parts))


def synthesise(
    model: Zero123, settings: ToyworldSettings, data: Dataset, asked: Sequence[Question], draw: int
) -> np.ndarray:
    """One sample of every view asked for, uint8 [Q, H, W, 3], `check.batch` at a time; other draws are other noise."""
    return np.concatenate(
        [_synthesise(model, settings, data, batch, draw) for batch in batches(asked, settings.check.batch)]
    )


def _synthesise(
    model: Zero123, settings: ToyworldSettings, data: Dataset, asked: Sequence[Question], draw: int
) -> np.ndarray:
    chosen = settings.check
    subjects, views = torch.tensor(asked).T
    azimuth, polar = data.azimuth, data.polar
    pose = relative_pose(azimuth[subjects, views], polar[subjects, views], azimuth[subjects, 0], polar[subjects, 0])
    embedding, latent = model.condition(data.pick(subjects, torch.zeros_like(views)))
    streams = noise_streams(settings.seed, "check-zero123", data, asked, draw)
    noise = streams.draw(model.latent_shape)

    def step_noise(step: int) -> torch.Tensor:
        return streams.draw(model.latent_shape)

    with in_precision(CPU, chosen.bf16):
        sampled = model.sample(
            embedding, latent, pose.float(), noise, step_noise if chosen.eta > 0 else None,
            chosen.steps, chosen.guidance, chosen.eta,
        )  # fmt: skip
    return to_picture(sampled)


def noise_streams(seed: int, purpose: str, data: Dataset, asked: Sequence[Question], draw: int) -> NoiseStreams:
    """Noise that depends on the instance, the view and the draw alone."""
    subjects = [data.instances[q.subject] for q in asked]
    streams = [
        generator(seed, purpose, subject.family, subject.seed, q.view, draw)
        for subject, q in zip(subjects, asked, strict=True)
    ]
    return NoiseStreams(streams, CPU, torch.float32)


def batches(items: Sequence[Item], size: int) -> Iterable[Sequence[Item]]:
    """The items in order, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
