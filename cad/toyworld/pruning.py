"""Whether pruning works: its thresholds are chosen on training instances and measured on held-out ones.

Zero-1-to-3 is sampled with the main job's settings, around instances whose true views are known.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cad.artifacts import PriorCache, PriorCacheWriter, digest
from cad.camera import Poses, relative_pose, sphere_poses
from cad.config import PriorSettings, PruneSettings, RuntimeSettings
from cad.config import ToyworldSettings as TrueObject
from cad.context import Context, prepare_device
from cad.errors import UserError
from cad.prior.clip import Clip
from cad.prior.pictures import foreground, to_network
from cad.prior.prune import count_bad_pixels, decide
from cad.prior.sample import sample_views
from cad.prior.truth import measure_truth
from cad.prior.views import Zero123Views
from cad.prior.zero123 import Zero123
from cad.progress import progress
from cad.seeding import generator
from cad.toyworld import pruning_report
from cad.toyworld.dataset import instances
from cad.toyworld.settings import PruningSettings, ToyworldSettings
from cad.toyworld.thresholds import (
    Measured,
    Thresholds,
    at_ends,
    choose,
    keep,
    measure,
    random_rates,
    rates,
    resample,
)
from cad.toyworld.world import Instance, families, render_views
from cad.tracking import Tracker

SPLITS = ("train", "held-out")


class Profile(BaseModel):
    """What the main job's profile says about sampling and pruning; its other sections are not read."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    runtime: RuntimeSettings
    prior: PriorSettings
    prune: PruneSettings


@dataclass(frozen=True)
class Subject:
    """An instance with its picture as a user would bring it, uint8 [H, W, 3], and the folder of its samples."""

    split: str
    item: Instance
    reference: np.ndarray
    folder: Path

    @property
    def name(self) -> str:
        """Name of the instance, part of every seed."""
        return f"{self.item.family}-{self.item.seed}"


def prove(
    settings: ToyworldSettings,
    profile_path: Path,
    work: Path,
    weights: Path,
    reports: Path,
    report: Callable[[str], None],
) -> None:
    """Choose pruning's thresholds, measure them, and write reports/pruning.md, .csv and .png.

    Samples go to `work`/pruning, where another run finds them. Raises UserError where the settings ask for more
    training instances than there are.
    """
    chosen = settings.pruning
    if chosen.instances > settings.data.train_instances:
        most = settings.data.train_instances
        raise UserError(f"pruning.instances: {chosen.instances} is more than data.train_instances = {most}; lower it")
    profile = read_profile(profile_path)
    device = prepare_device(profile.runtime.device, profile.runtime.threads)
    prior = profile.prior.model_copy(update={"poses": chosen.poses, "shard_poses": chosen.poses})
    model = Zero123.load(weights / "zero123", device, torch.float32)
    clip = Clip.load(weights / "clip", device)
    digests = {name: digest(weights / name) for name in ("zero123", "clip")}
    subjects = list_subjects(settings, prior, model.resolution, digests["zero123"], device, work / "pruning")
    sample(subjects, settings, prior, model, device)
    table = score(subjects, settings, profile.prune, clip)
    train, held_out = (table[table["split"] == split].reset_index(drop=True) for split in SPLITS)
    ways = choose_thresholds(train, chosen)
    measured = {
        split: compare(part, ways, resample(part["subject"].nunique(), chosen.draws, _bootstrap(settings, split)))
        for split, part in (("train", train), ("held-out", held_out))
    }
    both = ways["both checks"]
    pruning_report.write(measured, held_out, both, chosen, prior, digests, reports)
    report(f"chosen: max_bad_pixels {both.max_bad_pixels}, min_clip_similarity {both.min_clip_similarity}")
    report(agreement(both, profile.prune, profile_path))
    for remark in at_ends(both, chosen.max_bad_pixels, chosen.min_clip_similarity):
        report(f"{remark}: add others beyond it to experiments/toyworld/params.yaml, if there are any")


def read_profile(path: Path) -> Profile:
    """The three sections of a profile; raises UserError with the first wrong key."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run from the root of the repository")
    try:
        return Profile.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as fault:
        raise UserError(f"{path}: is not YAML ({fault}); restore it with git") from fault
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}; see cad/config/sections.py") from fault


def list_subjects(
    settings: ToyworldSettings, prior: PriorSettings, resolution: int, zero123: str, device: torch.device, work: Path
) -> list[Subject]:
    """The first `pruning.instances` of every family in both splits; a folder is named after all that decides it."""
    azimuth_deg, polar_deg = settings.camera.reference_azimuth_deg, settings.pruning.reference_polar_deg
    angles = torch.tensor([[azimuth_deg], [polar_deg]], dtype=torch.float64).deg2rad()
    pose = Poses(azimuth=angles[0], polar=angles[1])
    found = []
    for split in SPLITS:
        for family in families():
            for item in instances(split, settings.pruning.instances, family):
                reference = render_views(item, pose, settings.camera, resolution).images[0]
                identity = {
                    "seed": settings.seed,
                    "zero123": zero123,
                    "prior": prior.model_dump(),
                    "device": device.type,  # devices agree to rounding only
                    "reference": [azimuth_deg, polar_deg, hashlib.sha256(reference.tobytes()).hexdigest()],
                }
                key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
                found.append(Subject(split, item, reference, work / f"{family}-{item.seed}-{key}"))
    return found


def sample(
    subjects: list[Subject], settings: ToyworldSettings, prior: PriorSettings, model: Zero123, device: torch.device
) -> None:
    """Fill the folders that are not there yet: `prior.samples` views at `prior.poses` directions of the sphere each.

    Poses and noise depend on (seed, object, pose, sample), as in the main job.
    """
    missing = [subject for subject in subjects if not (subject.folder / "cache.json").is_file()]
    each = prior.poses * prior.samples
    camera, polar = settings.camera, math.radians(settings.pruning.reference_polar_deg)
    pairs = [(i, j) for i in range(prior.poses) for j in range(prior.samples)]
    views_of = Zero123Views(model, prior)
    with progress(len(subjects) * each, "sampling views", (len(subjects) - len(missing)) * each) as bar:
        for subject in missing:
            context = Context(settings.seed, subject.name, device, Tracker(None, None))
            poses = sphere_poses(prior.poses, generator(settings.seed, subject.name, "poses"))
            relative = relative_pose(poses.azimuth, poses.polar, math.radians(camera.reference_azimuth_deg), polar)
            condition = views_of.condition(to_network(subject.reference[None], device), polar)
            writer = PriorCacheWriter(
                subject.folder, poses, list(range(prior.poses)), prior.samples, model.resolution, prior.shard_poses
            )
            views = []
            for start in range(0, each, prior.batch):
                batch = pairs[start : start + prior.batch]
                views.append(sample_views(views_of, condition, relative, batch, prior, context))
                bar.advance(len(batch))
            images = np.concatenate(views)
            writer.write_shard(0, images.reshape(prior.poses, prior.samples, *images.shape[1:]))
            writer.finish()


def score(subjects: list[Subject], settings: ToyworldSettings, prune: PruneSettings, clip: Clip) -> pandas.DataFrame:
    """One row per pose: the two scores that pruning compares, and which samples are good views.

    `good` speaks of the chosen sample, the most similar to the reference, and `first_good` of the first one, which the
    main job takes where pruning is off.
    """
    enabled = prune.model_copy(update={"enabled": True})  # so that a profile without pruning is measured with it
    rows = []
    with progress(len(subjects), "comparing instances with their truth", 0) as bar:
        for subject in subjects:
            cache = PriorCache.open(subject.folder)
            views = cache.load()
            target = clip.images(subject.reference[None])[0]
            true = TrueObject.model_validate({"family": subject.item.family, "seed": subject.item.seed})
            truth = measure_truth(cache, true, settings.camera, prune.white_threshold)
            good = ~truth["bad"].to_numpy().reshape(len(cache), cache.samples)
            for i, samples in enumerate(views):
                similarity = (clip.images(samples) @ target).double().numpy()
                bad_pixels = count_bad_pixels(foreground(samples, prune.white_threshold), prune.dilation_px)
                decision = decide(bad_pixels, similarity, enabled)
                rows.append(
                    {
                        "split": subject.split,
                        "subject": subject.name,
                        "pose": cache.pose_ids[i],
                        "bad_pixels_max": decision.bad_pixels_max,
                        "clip_min": decision.clip_min,
                        "good": bool(good[i, decision.chosen]),
                        "first_good": bool(good[i, 0]),
                    }
                )
            bar.advance(1)
    return pandas.DataFrame(rows)


def choose_thresholds(train: pandas.DataFrame, chosen: PruningSettings) -> dict[str, Thresholds]:
    """The thresholds of both checks together and of each alone, all by the same rule on the training instances."""
    bad_pixels, similarities = chosen.max_bad_pixels, chosen.min_clip_similarity
    return {
        "geometry only": choose(train, bad_pixels, [None], chosen.min_recall),
        "CLIP only": choose(train, [None], similarities, chosen.min_recall),
        "both checks": choose(train, bad_pixels, similarities, chosen.min_recall),
    }


def compare(table: pandas.DataFrame, ways: dict[str, Thresholds], samples: np.ndarray) -> list[Measured]:
    """Every way to prune and its controls on one split; samples: [D, I] of `resample`."""
    subjects, good = table["subject"].tolist(), table["good"].to_numpy()
    first, everything = table["first_good"].to_numpy(), np.ones(len(table), bool)
    nothing, both = Thresholds(None, None), keep(table, ways["both checks"])
    return [
        measure("keep all, first sample", nothing, subjects, everything, first, samples, rates),
        measure("keep all", nothing, subjects, everything, good, samples, rates),
        measure("random, same share as both", nothing, subjects, both, good, samples, random_rates),
        *(measure(name, pair, subjects, keep(table, pair), good, samples, rates) for name, pair in ways.items()),
    ]


def agreement(chosen: Thresholds, prune: PruneSettings, path: Path) -> str:
    """One line that says whether the profile holds the chosen thresholds."""
    held = Thresholds(prune.max_bad_pixels, prune.min_clip_similarity)
    if held == chosen:
        return f"{path} holds them"
    return (
        f"{path}: holds max_bad_pixels {held.max_bad_pixels} and min_clip_similarity {held.min_clip_similarity}; "
        f"set them to {chosen.max_bad_pixels} and {chosen.min_clip_similarity}"
    )


def _bootstrap(settings: ToyworldSettings, split: str) -> torch.Generator:
    return generator(settings.seed, "pruning-bootstrap", split)
