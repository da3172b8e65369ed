"""How well elevations are estimated, on held-out instances whose polar angle is known: `cad toyworld elevation`.

By points and by silhouettes, each twice: with the views that the procedural renderer draws, which tells what the
estimator can reach, and with Zero-1-to-3's, which is what a photograph gets. Beside them stands the answer that looks
at nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cad.artifacts import digest, write_atomic
from cad.camera import Poses
from cad.config import CameraSettings, Params
from cad.context import prepare_device
from cad.errors import UserError
from cad.inputs.elevation import ESTIMATORS, Draw, draw_views
from cad.inputs.polar import Estimate
from cad.prior.zero123 import Zero123
from cad.progress import progress
from cad.report.markup import markdown_table
from cad.toyworld.dataset import instances, view_poses
from cad.toyworld.settings import ToyworldSettings
from cad.toyworld.world import Instance, families, render_views

NEAR_DEG = 10.0  # an error up to this counts as found
TRUE, DRAWN, BLIND = "true views", "Zero-1-to-3's views", "the middle of the range, always"


class Summary(NamedTuple):
    """One way to estimate: median error [deg] of what is determined, its mean signed error, share of all instances
    within `NEAR_DEG`, and how many are undetermined, of how many.
    """

    way: str
    median_deg: float
    bias_deg: float
    near: float
    undetermined: int
    instances: int


def measure(
    settings: ToyworldSettings, params: Params, weights: Path, reports: Path, report: Callable[[str], None]
) -> None:
    """Estimate every subject's elevation in both ways and write reports/elevation.md.

    `params` is the composed profile: its sampling, matcher and limits are measured. Raises UserError where the
    settings ask for more held-out instances than there are, and for weights that are missing.
    """
    count = settings.data.held_out_instances
    if settings.elevation.instances > count:
        asked = f"elevation.instances: {settings.elevation.instances}"
        raise UserError(f"{asked} is more than data.held_out_instances = {count}; lower it")
    device = prepare_device(params.runtime.device, params.runtime.threads)
    model = Zero123.load(weights / "zero123", device, torch.float32)
    estimators = {score: load(params.elevation, settings.camera, device) for score, load in ESTIMATORS.items()}
    chosen = list(subjects(settings))
    truth = np.array([math.degrees(float(pose.polar[0])) for _, pose in chosen])
    found: dict[str, list[Estimate]] = {f"{score}, {views}": [] for score in estimators for views in (TRUE, DRAWN)}
    with progress(len(chosen), "elevations", 0) as bar:
        for item, pose in chosen:
            picture, ways = ways_to_draw(item, pose, model, settings, params, device)
            for score, estimate in estimators.items():
                for views, draw in ways.items():
                    found[f"{score}, {views}"].append(estimate(picture, draw))
            bar.advance(1)
    low, high = settings.data.reference_polar_deg
    answers = {way: [estimate.polar_deg for estimate in each] for way, each in found.items()}
    answers[BLIND] = [(low + high) / 2] * len(chosen)
    rows = [summarize(way, given, truth) for way, given in answers.items()]
    for row in rows:
        report(f"{row.way}: median error {row.median_deg:.1f} deg, {row.near:.0%} within {NEAR_DEG:g} deg")
    page = markdown(rows, settings, params, digest(weights / "zero123"))
    write_atomic(reports / "elevation.md", page.encode())


def subjects(settings: ToyworldSettings) -> Iterator[tuple[Instance, Poses]]:
    """The first `elevation.instances` held-out instances of every family, each with its first reference's pose."""
    for family in families():
        for item in instances("held-out", settings.elevation.instances, family):
            poses = view_poses(family, item.seed, settings.data)
            yield item, Poses(azimuth=poses.azimuth[:1], polar=poses.polar[:1])


def ways_to_draw(
    item: Instance,
    pose: Poses,
    model: Zero123,
    settings: ToyworldSettings,
    params: Params,
    device: torch.device,
) -> tuple[np.ndarray, dict[str, Draw]]:
    """The reference, uint8 [H, W, 3], and who draws views of it: the renderer, once, or Zero-1-to-3."""
    own = torch.zeros(1, 2, dtype=torch.float64)
    picture = true_views(item, pose, own, settings.camera, model.resolution)[0]
    streams = [(settings.seed, f"{item.family}-{item.seed}", "elevation", k) for k in range(params.elevation.draws)]

    def true(offsets: torch.Tensor) -> list[np.ndarray]:
        return [true_views(item, pose, offsets, settings.camera, model.resolution)]

    def drawn(offsets: torch.Tensor) -> list[np.ndarray]:
        return [draw_views(model, picture, offsets, stream, params.prior, device) for stream in streams]

    return picture, {TRUE: true, DRAWN: drawn}


def true_views(
    item: Instance, pose: Poses, offsets: torch.Tensor, camera: CameraSettings, resolution: int
) -> np.ndarray:
    """Views as they are, uint8 [n, H, W, 3], at offsets (d_polar, d_azimuth) [n, 2] in radians from a pose."""
    poses = Poses(azimuth=pose.azimuth + offsets[:, 1], polar=pose.polar + offsets[:, 0])
    return render_views(item, poses, camera, resolution).images


def summarize(way: str, answers: Sequence[float | None], truth: np.ndarray) -> Summary:
    """Errors of polar angles in degrees, None for undetermined ones, against the truth [n]."""
    errors = np.array([math.nan if answer is None else answer for answer in answers]) - truth
    known = errors[~np.isnan(errors)]
    median, bias = (float(np.median(np.abs(known))), float(known.mean())) if len(known) else (math.nan, math.nan)
    near = float((np.abs(known) <= NEAR_DEG).sum() / len(errors))
    return Summary(way, median, bias, near, len(errors) - len(known), len(errors))


def markdown(rows: Sequence[Summary], settings: ToyworldSettings, params: Params, weights: str) -> str:
    """reports/elevation.md."""
    low, high = settings.data.reference_polar_deg
    chosen, prior = params.elevation, params.prior
    lines = [
        [row.way, _cell(row.median_deg, ".1f"), _cell(row.bias_deg, "+.1f"), f"{row.near:.0%}",
         f"{row.undetermined} of {row.instances}"]
        for row in rows
    ]  # fmt: skip
    heads = ["estimated from", "median error, deg", "mean error, deg", f"within {NEAR_DEG:g} deg", "undetermined"]
    text = (
        f"Written by `cad toyworld elevation`: {settings.elevation.instances} held-out instances of each of "
        f"{len(families())} families, references at polar angles of {low:g} to {high:g} deg, "
        f"{settings.data.resolution} px. `points` is One-2-3-45's estimator with the matcher `{chosen.matcher}` on "
        f"four neighbours {chosen.turn_deg:g} deg away; `silhouettes` is ours, on the picture and "
        f"{len(chosen.ring_deg)} views all around the object at the picture's own polar angle. The profile uses "
        f"`{chosen.score}`. Zero-1-to-3 draws every view {chosen.draws} times ({prior.steps} steps, guidance "
        f"{prior.guidance:g}). Errors are of what is determined; an undetermined angle is not within any error. The "
        "last row answers without looking, but knows the range of the references."
    )
    table = markdown_table(heads, lines, 1)
    return f"# Elevation from one picture, on toyworld\n\n{text}\n\n{table}\nWeights: zero123 `{weights[:12]}`.\n"


def _cell(value: float, form: str) -> str:
    return "—" if math.isnan(value) else f"{value:{form}}"
