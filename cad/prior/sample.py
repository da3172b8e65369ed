"""Sampling the view-conditioned prior: N parallel samples at each of M poses of the sphere (Sec. 3.3, Appendix C)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cad.artifacts import InputArtifact, PriorCache, PriorCacheWriter, contact_sheet
from cad.camera import Poses, relative_pose, sphere_poses
from cad.config import CameraSettings, ModelPaths, PriorSettings
from cad.context import Context
from cad.prior.ddim import NoiseStreams, in_precision
from cad.prior.pictures import check_resolution, to_network, to_picture
from cad.prior.weights import memory_named
from cad.prior.zero123 import Zero123
from cad.progress import progress
from cad.seeding import generator

SHOWN = 8  # poses in the tracked grid


def sample_prior(
    settings: PriorSettings, camera: CameraSettings, models: ModelPaths, input_dir: Path, out: Path, context: Context
) -> None:
    """Fill `out` with a PriorCache: `samples` views at each of `poses` directions, uniform on the sphere.

    Resumes shard by shard. The noise of sample j at pose i is a function of (seed, object, i, j); a batch never crosses
    a shard, so that a resumed run computes the same batches. All cameras share the reference's radius.
    """
    source = InputArtifact.open(input_dir)
    home = torch.device("cpu") if settings.offload else context.device
    model = Zero123.load(models.zero123, home, getattr(torch, settings.precision))
    if settings.offload:
        model.offload_idle(context.device)
    check_resolution(len(source.image), model.resolution, "zero123")
    poses = sphere_poses(settings.poses, generator(context.seed, context.object, "poses"))
    relative = relative_pose(poses.azimuth, poses.polar, source.reference_azimuth, source.reference_polar)
    condition = model.condition(to_network(source.image[None], context.device))
    writer = PriorCacheWriter(
        out, poses, list(range(settings.poses)), settings.samples, model.resolution, settings.shard_poses
    )
    missing = writer.missing_shards()
    total = settings.poses * settings.samples
    done = total - sum(len(writer.shard_range(k)) for k in missing) * settings.samples
    with progress(total, "sampling views", done) as bar:
        for k in missing:
            pairs = [(i, j) for i in writer.shard_range(k) for j in range(settings.samples)]
            views = []
            for start in range(0, len(pairs), settings.batch):
                batch = pairs[start : start + settings.batch]
                views.append(sample_views(model, condition, relative, batch, settings, context))
                bar.advance(len(batch))
            images = np.concatenate(views)
            writer.write_shard(k, images.reshape(-1, settings.samples, *images.shape[1:]))
    writer.finish()
    _track(PriorCache.open(out), poses, context)


def sample_views(
    model: Zero123,
    condition: tuple[Tensor, Tensor],
    relative: Tensor,
    pairs: Sequence[tuple[int, int]],
    settings: PriorSettings,
    context: Context,
) -> np.ndarray:
    """One batch: uint8 [B, H, W, 3] for (pose, sample) pairs, each from its own stream of noise.

    relative: [M, 4] poses relative to the reference. A stream gives the initial noise first, then one draw per step.
    """
    streams = NoiseStreams(
        [generator(context.seed, context.object, "prior", i, j) for i, j in pairs], context.device, torch.float32
    )
    embedding, latent = condition
    with memory_named(f"{context.object}: {len(pairs)} samples at once"), in_precision(context.device, settings.bf16):
        images = model.sample(
            embedding,
            latent,
            relative[[i for i, _ in pairs]].float().to(context.device),
            streams.draw(model.latent_shape),
            (lambda step: streams.draw(model.latent_shape)) if settings.eta > 0 else None,
            settings.steps,
            settings.guidance,
            settings.eta,
        )
    return to_picture(images)


def _track(cache: PriorCache, poses: Poses, context: Context) -> None:
    shown = np.concatenate([cache.read(i) for i in range(min(len(poses), SHOWN))])
    context.tracker.image("prior/views", contact_sheet(shown, columns=cache.samples, scale=1), step=0)
