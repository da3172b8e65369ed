"""How good the small models are, measured on held-out instances that no training has seen."""

import csv
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from cad.artifacts import digest, write_atomic
from cad.camera import Poses, angle_between, relative_pose
from cad.config import CameraSettings
from cad.errors import UserError
from cad.prior.clip import Clip
from cad.prior.ddim import NoiseStreams
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.pictures import foreground, to_network, to_picture
from cad.prior.refine import view_prompt
from cad.prior.truth import intersection_over_union
from cad.prior.weights import load_network
from cad.prior.zero123 import Zero123
from cad.seeding import generator
from cad.toyworld import autoencoder
from cad.toyworld.dataset import Dataset, render_dataset
from cad.toyworld.decoder import USERS
from cad.toyworld.settings import CheckSettings, ToyworldSettings
from cad.toyworld.world import families, render_views

CPU = torch.device("cpu")
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


class Measure(NamedTuple):
    """One number about one model, and what it is to be compared with (None where there is nothing)."""

    model: str
    measure: str
    value: float
    baseline: float | None
    baseline_name: str
    examples: int


class Question(NamedTuple):
    """A view that a model is asked for: positions in the held-out `Dataset`; the reference is the instance's view 0."""

    subject: int
    view: int


def check(settings: ToyworldSettings, work: Path, weights: Path, reports: Path, report: Callable[[str], None]) -> None:
    """Measure every model that lies in `weights` and write reports/toyworld.md and .csv; renders the views it needs.

    Models that are not there are listed as not trained. Raises UserError where the settings ask for more held-out
    instances than there are.
    """
    count, wanted = settings.data.held_out_instances, settings.check.instances
    if wanted > count:
        raise UserError(f"check.instances: {wanted} is more than data.held_out_instances = {count}; lower it")
    render_dataset(settings.data, settings.camera, "held-out", count, work / "held-out")
    data = Dataset(settings.data, "held-out", count, work / "held-out")
    measures: dict[str, list[Measure]] = {}
    for name, measure in MEASURES.items():
        if is_trained(weights / name):
            measures[name] = measure(name, settings, data, weights / name)
            report("\n".join(f"{m.model}: {m.measure} {m.value:.3f}" for m in measures[name]))
        else:
            report(f"{name}: not trained")
    for name in stale_copies(weights):
        report(f"{name}: holds another autoencoder than {weights / 'autoencoder'}; run `cad toyworld train decoder`")
    digests = {name: digest(weights / name) for name in measures}
    write_atomic(reports / "toyworld.md", markdown(measures, digests, settings).encode())
    write_atomic(reports / "toyworld.csv", table(measures, digests).encode())


def is_trained(folder: Path) -> bool:
    """Whether a model's folder is there, one network (config.json) or a pipeline of several (model_index.json)."""
    return any((folder / name).is_file() for name in ("config.json", "model_index.json"))


def stale_copies(weights: Path) -> list[str]:
    """Diffusion models whose own copy of the autoencoder is not the one in `weights`: a decoder was trained since."""
    own = weights / "autoencoder" / WEIGHTS_FILE
    copies = {name: weights / name / "vae" / WEIGHTS_FILE for name in USERS}
    return [name for name, copy in copies.items() if own.is_file() and copy.is_file() and digest(copy) != digest(own)]


def measure_clip(name: str, settings: ToyworldSettings, data: Dataset, folder: Path) -> list[Measure]:
    """How often a reference view's own caption is the most similar one of `check.captions` distinct captions."""
    subjects = distinct_captions(data, settings.check.captions)
    clip = Clip.load(folder, CPU)
    texts = clip.texts([data.instances[i].captions.specific for i in subjects])
    pictures = data.images[subjects, : data.references]  # [captions, references, H, W, 3]
    images = torch.cat([clip.images(views) for views in pictures])
    own = torch.arange(len(subjects)).repeat_interleave(data.references)
    right = ((images @ texts.T).argmax(1) == own).double().mean().item()
    return [Measure(name, f"top-1 among {len(texts)} captions", right, 1 / len(texts), "chance", len(images))]


def distinct_captions(data: Dataset, count: int) -> list[int]:
    """Positions of the first `count` instances of which no two share a specific caption, families taking turns.

    Raises UserError where there are fewer.
    """
    own = len(data) // len(families())
    found: dict[str, int] = {}
    for position in (family * own + k for k in range(own) for family in range(len(families()))):
        found.setdefault(data.instances[position].captions.specific, position)
    if len(found) < count:
        raise UserError(f"check.captions: {count} is more than the {len(found)} of the held-out instances; lower it")
    return list(found.values())[:count]


def measure_autoencoder(name: str, settings: ToyworldSettings, data: Dataset, folder: Path) -> list[Measure]:
    """Peak signal-to-noise ratio of decoded latent modes over the foreground, every view of the checked instances."""
    vae = load_network(AutoencoderKL, folder, "", CPU, torch.float32)
    found = []
    for subject in checked(settings.check, data):
        images = to_network(data.images[subject], CPU)
        with torch.no_grad():
            output = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        shape = autoencoder.foreground(images)[:, 0].numpy()
        found.append(psnr(to_picture(output), data.images[subject], shape))
    values = np.concatenate(found)
    return [Measure(name, "PSNR over the foreground, dB", float(values.mean()), None, "", len(values))]


def measure_zero123(name: str, settings: ToyworldSettings, data: Dataset, folder: Path) -> list[Measure]:
    """One sample per question against the true view: PSNR where either shows the object, and silhouette IoU.

    The baseline copies the reference; its PSNR is over the union of its own foreground and the true view's.
    """
    chosen = settings.check
    model = Zero123.load(folder, CPU, torch.float32)
    asked = questions(chosen, data)
    true = data.images[[q.subject for q in asked], [q.view for q in asked]]
    copied = data.images[[q.subject for q in asked], 0]
    samples = np.concatenate([_sample(model, settings, data, batch) for batch in _batches(asked, chosen.batch)])
    shapes = {key: foreground(x, chosen.white_threshold) for key, x in (("sample", samples), ("copy", copied))}
    truth = true_silhouettes(data, asked, settings.camera)
    shown = foreground(true, chosen.white_threshold)
    ratio, copy_ratio = (
        float(psnr(images, true, shapes[key] | shown).mean()) for key, images in (("sample", samples), ("copy", copied))
    )
    overlap, copy_overlap = (
        float(np.median(intersection_over_union(shapes[key], truth))) for key in ("sample", "copy")
    )
    copying = "copying the reference"
    return [
        Measure(name, "PSNR over both foregrounds, dB", ratio, copy_ratio, copying, len(asked)),
        Measure(name, "silhouette IoU, median", overlap, copy_overlap, copying, len(asked)),
    ]


def _sample(model: Zero123, settings: ToyworldSettings, data: Dataset, asked: list[Question]) -> np.ndarray:
    chosen = settings.check
    subjects, views = torch.tensor(asked).T
    azimuth, polar = data.azimuth, data.polar
    pose = relative_pose(azimuth[subjects, views], polar[subjects, views], azimuth[subjects, 0], polar[subjects, 0])
    embedding, latent = model.condition(data.pick(subjects, torch.zeros_like(views)))
    streams = _streams(settings.seed, "check-zero123", data, asked)
    noise = streams.draw(model.latent_shape)

    def step_noise(step: int) -> Tensor:
        return streams.draw(model.latent_shape)

    return to_picture(
        model.sample(
            embedding, latent, pose.float(), noise, step_noise if chosen.eta > 0 else None,
            chosen.steps, chosen.guidance, chosen.eta,
        )
    )  # fmt: skip


def measure_refiner(name: str, settings: ToyworldSettings, data: Dataset, folder: Path) -> list[Measure]:
    """Silhouette IoU between true views and what the refiner makes of them under their specific view prompt."""
    chosen = settings.check
    model = LatentDiffusion.load(folder, CPU, torch.float32)
    asked = questions(chosen, data)
    overlaps = []
    for batch in _batches(asked, chosen.batch):
        pictures = data.images[[q.subject for q in batch], [q.view for q in batch]]
        prompts = [
            view_prompt(
                data.instances[q.subject].captions.specific,
                data.azimuth[q.subject, q.view].item(),
                data.polar[q.subject, q.view].item(),
            )
            for q in batch
        ]
        noise = _streams(settings.seed, "check-refiner", data, batch).draw(model.latent_shape)
        refined = model.sdedit(
            to_network(pictures, CPU), model.embed(prompts), model.embed([""]), noise, None,
            chosen.strength, chosen.guidance, chosen.steps,
        )  # fmt: skip
        shapes = (foreground(x, chosen.white_threshold) for x in (to_picture(refined), pictures))
        overlaps.append(intersection_over_union(*shapes))
    measure = f"silhouette IoU with its input at strength {chosen.strength:g}, median"
    return [Measure(name, measure, float(np.median(np.concatenate(overlaps))), None, "", len(asked))]


MEASURES: dict[str, Callable[[str, ToyworldSettings, Dataset, Path], list[Measure]]] = {
    "clip": measure_clip,
    "clip-evaluation": measure_clip,
    "autoencoder": measure_autoencoder,
    "zero123": measure_zero123,
    "refiner": measure_refiner,
}


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


def true_silhouettes(data: Dataset, asked: list[Question], camera: CameraSettings) -> np.ndarray:
    """Silhouettes of the views asked for, from the true objects, bool [Q, H, W]."""
    shapes = []
    for subject, view in asked:
        pose = Poses(azimuth=data.azimuth[subject, view, None], polar=data.polar[subject, view, None])
        shapes.append(render_views(data.instances[subject], pose, camera, data.images.shape[2]).silhouettes)
    return np.concatenate(shapes)


def psnr(images: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB over the pixels of a mask, [B].

    images, truth: uint8 [B, H, W, 3]; mask: bool [B, H, W]. Half a grey level stands in for a perfect match, which
    would be infinite; an empty mask, which no true view has, counts as one.
    """
    squared = ((images.astype(np.float64) - truth) ** 2).mean(-1)
    error = (squared * mask).sum((1, 2)) / np.maximum(mask.sum((1, 2)), 1)
    return 10 * np.log10(255**2 / np.maximum(error, 0.25))


def _streams(seed: int, purpose: str, data: Dataset, asked: list[Question]) -> NoiseStreams:
    """Noise that depends on the instance and the view alone."""
    subjects = [data.instances[q.subject] for q in asked]
    streams = [
        generator(seed, purpose, subject.family, subject.seed, q.view)
        for subject, q in zip(subjects, asked, strict=True)
    ]
    return NoiseStreams(streams, CPU, torch.float32)


def _batches(asked: list[Question], size: int) -> Iterable[list[Question]]:
    return (asked[start : start + size] for start in range(0, len(asked), size))


def markdown(measures: dict[str, list[Measure]], digests: dict[str, str], settings: ToyworldSettings) -> str:
    """The table for reading, with every model in it; measured values carry their weights' digest."""
    chosen = settings.check
    lines = [
        "# The toyworld's small models, on held-out instances",
        "",
        f"Written by `cad toyworld check`: {chosen.instances} instances of each of {len(families())} families, none of "
        f"which was trained on. Zero-1-to-3 gives one sample for each of up to {chosen.views} views over "
        f"{chosen.min_angle_deg:g} deg from the reference, {chosen.steps} steps, guidance {chosen.guidance:g}.",
        "",
        "| model | measure | value | to compare | n | weights |",
        "|---|---|---|---|---|---|",
    ]
    for name in MEASURES:
        lines += [_line(m, digests[name]) for m in measures.get(name, [])] or [f"| {name} | not trained | | | | |"]
    return "\n".join([*lines, ""])


def _line(m: Measure, weights: str) -> str:
    compare = "" if m.baseline is None else f"{m.baseline:.3f} ({m.baseline_name})"
    return f"| {m.model} | {m.measure} | {m.value:.3f} | {compare} | {m.examples} | `{weights[:12]}` |"


def table(measures: dict[str, list[Measure]], digests: dict[str, str]) -> str:
    """The same table as CSV, values with six digits and digests in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Measure._fields, "weights"])
    for name in MEASURES:
        for m in measures.get(name, []):
            values = ["" if value is None else f"{value:.6f}" for value in (m.value, m.baseline)]
            writer.writerow([name, m.measure, *values, m.baseline_name, m.examples, digests[name]])
        if name not in measures:
            writer.writerow([name, "not trained", "", "", "", "", ""])
    return text.getvalue()
