"""The rows beside ours: the true object's orbit and controls that should fail (DESIGN, promise 3).

Every row is a `Row` of views, so that all of them are scored by the same code on the same frames.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cad.artifacts import InputArtifact, Orbit
from cad.camera import Poses, focal_length, pixel_centers
from cad.config import CameraSettings, EvaluateSettings, ObjectSettings, OrbitSettings
from cad.context import Context
from cad.evaluate.orbit import render_views, rendered_with, take
from cad.seeding import seed_for
from cad.train.load import untrained_generator

UNTRAINED_FRAMES = 12  # the fog of an untrained generator looks the same from everywhere: a few frames tell all [ours]
SOLID = 128  # alpha from which a pixel belongs to the silhouette, as in toyworld: half covered


class Row(NamedTuple):
    """Views to score: images uint8 [S, F, H, W, 3] on white, silhouettes bool [S, F, H, W], and their orbit frames [F].

    depth: [S, F, H, W] along the ray in scene units, 0 or infinite where nothing is; None where it is not known.
    S counts seeds; a row that knows no seeds has one.
    """

    images: NDArray[np.uint8]
    silhouettes: NDArray[np.bool_]
    depth: NDArray[np.floating] | None
    frames: NDArray[np.int64]


def collect_rows(
    settings: EvaluateSettings,
    camera: CameraSettings,
    source: ObjectSettings,
    reference: InputArtifact,
    orbit: Orbit,
    stage2_dir: Path,
    context: Context,
) -> Iterator[tuple[str, Row]]:
    """Our branches, then (on request) the true object and the controls, by the names that metrics.json uses."""
    for branch in ("3d", "2d"):
        if branch in orbit.branches:
            yield branch, orbit_row(orbit, branch)
    if not settings.controls:
        return
    side = orbit.resolution
    if source.toyworld is not None:
        yield "truth", true_row(source, camera, orbit.poses, side)
    yield "copied", copied_row(reference, camera, len(orbit), side)
    if source.toyworld is not None:
        yield "other", other_row(source, camera, orbit.poses, side)
    yield "untrained", untrained_row(stage2_dir, rendered_with(orbit.folder), camera, orbit.poses, context)


def orbit_row(orbit: Orbit, branch: str) -> Row:
    """One branch of an orbit, all seeds and frames; the silhouette is where alpha is `SOLID` or more."""
    frames = np.arange(len(orbit))
    images = np.stack([np.stack([orbit.frame(branch, seed, k) for k in frames.tolist()]) for seed in orbit.seeds])
    alpha = np.stack([np.stack([orbit.alpha(branch, seed, k) for k in frames.tolist()]) for seed in orbit.seeds])
    depth = np.stack([np.stack([orbit.depth(branch, seed, k) for k in frames.tolist()]) for seed in orbit.seeds])
    return Row(images, alpha >= SOLID, depth.astype(np.float32), frames)


def true_row(source: ObjectSettings, camera: CameraSettings, poses: Poses, resolution: int) -> Row:
    """The toyworld object that the input shows, seen along the same orbit."""
    assert source.toyworld is not None
    return _toyworld_row(source.toyworld.family, source.toyworld.seed, camera, poses, resolution)


def other_row(source: ObjectSettings, camera: CameraSettings, poses: Poses, resolution: int) -> Row:
    """Control: the true orbit of an object of the next family, under the same seed."""
    from cad.toyworld.world import families

    assert source.toyworld is not None
    names = families()
    other = names[(names.index(source.toyworld.family) + 1) % len(names)]
    return _toyworld_row(other, source.toyworld.seed, camera, poses, resolution)


def _toyworld_row(family: str, seed: int, camera: CameraSettings, poses: Poses, resolution: int) -> Row:
    # Imported here: the toyworld compiles its renderer, and a photograph's evaluation does not need it.
    from cad.toyworld import world

    views = world.render_views(world.instance(family, seed), poses, camera, resolution)
    return Row(views.images[None], views.silhouettes[None], views.depth[None], np.arange(len(poses)))


def copied_row(reference: InputArtifact, camera: CameraSettings, frames: int, resolution: int) -> Row:
    """Control: the reference image in place of every view. Its image score is 100 by construction, and says nothing.

    Its depth is the best that such a fake can have: a billboard, a plane through the origin that faces every camera.
    """
    image, mask = Image.fromarray(reference.image), Image.fromarray(reference.mask.astype(np.uint8) * 255)
    if image.width != resolution:
        image, mask = (each.resize((resolution, resolution), Image.Resampling.BICUBIC) for each in (image, mask))
    images = np.broadcast_to(np.asarray(image), (1, frames, resolution, resolution, 3))
    silhouettes = np.broadcast_to(np.asarray(mask) >= SOLID, (1, frames, resolution, resolution))
    across = ((pixel_centers(resolution).double() - 0.5) / focal_length(camera.fov_deg)).square().sum(-1)
    billboard = (camera.radius * (1 + across).sqrt()).reshape(resolution, resolution).numpy()
    return Row(images, silhouettes, np.broadcast_to(billboard, silhouettes.shape), np.arange(frames))


def untrained_row(
    stage2_dir: Path, settings: OrbitSettings, camera: CameraSettings, poses: Poses, context: Context
) -> Row:
    """Control: the same architecture with fresh weights, its 3D branch at a few frames of the orbit."""
    seed = seed_for(context.seed, context.object, "untrained")
    generator = untrained_generator(stage2_dir, "stage2", seed, context.device)
    count = min(UNTRAINED_FRAMES, len(poses))
    frames = np.arange(count) * len(poses) // count
    views = render_views(generator, "3d", 0, take(poses, frames.tolist()), settings, camera)
    return Row(views.color[None], (views.alpha >= SOLID)[None], views.depth[None], frames)
