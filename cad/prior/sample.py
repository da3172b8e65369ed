"""Sampling the view-conditioned prior: N parallel samples at each of M poses of the sphere (Sec. 3.3, Appendix C)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cad.artifacts import InputArtifact, PriorCache, PriorCacheWriter, contact_sheet
from cad.artifacts.cache import shard_positions, store_shard
from cad.camera import Poses, relative_pose, sphere_poses
from cad.config import CameraSettings, ModelPaths, PriorSettings
from cad.context import Advance, Context, Do
from cad.memory import memory_named
from cad.plugins import check_shape
from cad.prior.ddim import NoiseStreams
from cad.prior.pictures import check_resolution, to_network, to_picture
from cad.prior.views import ViewModel, load_views
from cad.progress import progress
from cad.seeding import generator

SHOWN = 8  # poses in the tracked grid


@dataclass(frozen=True)
class Plan:
    """What the shards of one cache have in common."""

    settings: PriorSettings
    models: ModelPaths
    input_dir: Path
    out: Path


def sample_prior(
    settings: PriorSettings, camera: CameraSettings, models: ModelPaths, input_dir: Path, out: Path, context: Context
) -> None:
    """Fill `out` with a PriorCache: `samples` views at each of `poses` directions, uniform on the sphere.

    Resumes shard by shard. The noise of sample j at pose i is a function of (seed, object, i, j); a batch never crosses
    a shard, so that a resumed run computes the same batches. All cameras share the reference's radius.
    """
    source = InputArtifact.open(input_dir)
    poses = sphere_poses(settings.poses, generator(context.seed, context.object, "poses"))
    side = len(source.image)  # the model's own, or it refuses
    writer = PriorCacheWriter(out, poses, list(range(settings.poses)), settings.samples, side, settings.shard_poses)
    missing = writer.missing_shards()
    total = settings.poses * settings.samples
    done = total - sum(len(writer.shard_range(k)) for k in missing) * settings.samples
    plan = Plan(settings, models, input_dir, out)
    with progress(total, "sampling views", done) as bar:
        context.engine.run(begin_sampling, plan, missing, writer.take_shard, bar.advance, context)
    writer.finish()
    _track(PriorCache.open(out), poses, context)


def begin_sampling(plan: Plan, context: Context) -> Do:
    """Load the model; returns what samples one shard, writes it and returns its digest."""
    settings = plan.settings
    source = InputArtifact.open(plan.input_dir)
    model = load_views(settings, plan.models, context.device)
    named = "".join(f"models.{field}" for field in settings.models) or settings.kind
    check_resolution(len(source.image), model.resolution, named)
    poses = sphere_poses(settings.poses, generator(context.seed, context.object, "poses"))
    relative = relative_pose(poses.azimuth, poses.polar, source.reference_azimuth, source.reference_polar)
    condition = model.condition(to_network(source.image[None], context.device), source.reference_polar)

    def do(shard: int, advance: Advance) -> str:
        positions = shard_positions(settings.poses, settings.shard_poses, shard)
        pairs = [(i, j) for i in positions for j in range(settings.samples)]
        views = []
        for start in range(0, len(pairs), settings.batch):
            batch = pairs[start : start + settings.batch]
            views.append(sample_views(model, condition, relative, batch, settings, context))
            advance(len(batch))
        images = np.concatenate(views)
        return store_shard(plan.out, shard, images.reshape(-1, settings.samples, *images.shape[1:]))

    return do


def sample_views(
    model: ViewModel,
    condition: Any,
    relative: Tensor,
    pairs: Sequence[tuple[int, int]],
    settings: PriorSettings,
    context: Context,
) -> np.ndarray:
    """One batch: uint8 [B, H, W, 3] for (pose, sample) pairs, each from its own stream of noise.

    relative: [M, 4] poses relative to the reference. UserError where the model gives images of another shape.
    """
    streams = NoiseStreams(
        [generator(context.seed, context.object, "prior", i, j) for i, j in pairs], context.device, torch.float32
    )
    with memory_named(f"{context.object}: {len(pairs)} samples at once"):
        images = model.views(condition, relative[[i for i, _ in pairs]].float().to(context.device), streams)
    check_shape(images, (len(pairs), 3, model.resolution, model.resolution), settings.kind)
    return to_picture(images)


def _track(cache: PriorCache, poses: Poses, context: Context) -> None:
    shown = np.concatenate([cache.read(i) for i in range(min(len(poses), SHOWN))])
    context.tracker.image("prior/views", contact_sheet(shown, columns=cache.samples, scale=1), step=0)
