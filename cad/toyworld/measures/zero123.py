"""How well Zero-1-to-3 shows held-out instances from far views: pixels, shape, colours, side, and its own failures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cad.errors import UserError
from cad.prior.pictures import foreground
from cad.prior.truth import intersection_over_union
from cad.prior.zero123 import Zero123
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures import bars
from cad.toyworld.measures.parts import color_distance, part_colors, visible
from cad.toyworld.measures.pixels import perceptual, psnr
from cad.toyworld.measures.questions import (
    CPU,
    Question,
    Truth,
    asked_poses,
    pictures,
    questions,
    sphere_questions,
    synthesise,
    truths,
)
from cad.toyworld.measures.sides import X, Y, directions, find_poses, right_side
from cad.toyworld.measures.table import Measure
from cad.toyworld.settings import ToyworldSettings
from cad.train.perceptual import load_lpips

COPYING = "copying the reference"
LPIPS = Path("lpips") / "alexnet.safetensors"  # in the weights folder


class Colors(NamedTuple):
    """CIEDE2000 of every part that both views show, [n]: sample to true view, sample to reference, true view to it."""

    to_truth: np.ndarray
    to_reference: np.ndarray
    true: np.ndarray


def measure_zero123(name: str, settings: ToyworldSettings, data: Dataset, weights: Path) -> list[Measure]:
    """One sample per question against the true view, beside copying the reference where that is a fair rival.

    The share of bad samples alone is of `sphere_questions`, because pruning meets poses uniform on the sphere.
    """
    chosen, camera = settings.check, settings.camera
    model = Zero123.load(weights / name, CPU, torch.float32)
    distance = load_lpips(weights / LPIPS, CPU)
    asked, uniform = questions(chosen, data), sphere_questions(chosen, data)
    every = sorted({*asked, *uniform})  # most are asked for by both, and a sample depends on the view alone
    far, anywhere = ([every.index(question) for question in part] for part in (asked, uniform))
    drawn, true_every = synthesise(model, settings, data, every, 0), truths(data, every, camera)
    found = find_poses(drawn, foreground(drawn, chosen.white_threshold), data, every, true_every, camera)
    samples, truth = drawn[far], Truth(*(column[far] for column in true_every))
    asked_references = [Question(q.subject, 0) for q in asked]
    true, copied = pictures(data, asked), pictures(data, asked_references)
    reference = truths(data, asked_references, camera)
    both = (samples, copied)
    shapes = [foreground(images, chosen.white_threshold) for images in both]
    # One mask for both: under its own, a picture gains by calling the background foreground, under a faint haze.
    mask = foreground(true, chosen.white_threshold) | shapes[0] | shapes[1]
    ratios = [float(psnr(images, true, mask).mean()) for images in both]
    lpips = [float(perceptual(distance, i, true, chosen.batch).mean()) for i in both]
    overlaps = [float(np.median(intersection_over_union(shape, truth.silhouettes))) for shape in shapes]
    seen = [
        part_distances(i, shape, true, copied, truth.parts, reference.parts, chosen.part_pixels)
        for i, shape in zip(both, shapes, strict=True)
    ]
    colors, pairs = [float(np.median(s.to_truth)) for s in seen], len(seen[0].true)
    wanted = directions(asked_poses(data, asked))
    sides = [
        (title, right_side(found.directions[far], wanted, axis, chosen.side_margin))
        for title, axis in (("left or right as asked, by nearest true pose", Y), ("front or back, likewise", X))
    ]
    off, n = "CIEDE2000 of parts seen in both views, median, to the", len(asked)
    reconstruction = "PSNR where the true view, the reference or the sample shows the object, dB"
    rivals = (
        (reconstruction, ratios, n, bars.VIEW_RECONSTRUCTION),
        ("LPIPS", lpips, n, bars.VIEW_PERCEPTION),
        ("silhouette IoU, median", overlaps, n, bars.VIEW_SILHOUETTE),
        (f"{off} true view", colors, pairs, bars.VIEW_COLORS),
    )
    return [
        *(Measure(name, title, own, copy, COPYING, count, bar) for title, (own, copy), count, bar in rivals),
        Measure(
            name, f"{off} reference", float(np.median(seen[0].to_reference)), float(np.median(seen[0].true)),
            "the true view", pairs, None,
        ),
        *(Measure(name, title, float(right.mean()), 0.5, "chance", len(right), bars.SIDES) for title, right in sides),
        Measure(
            name, "share of poses, uniform on the sphere, whose one sample is bad", float(found.bad[anywhere].mean()),
            None, "", len(uniform), bars.FAILURES,
        ),
    ]  # fmt: skip


def part_distances(
    samples: np.ndarray,
    shapes: np.ndarray,
    true: np.ndarray,
    references: np.ndarray,
    true_parts: np.ndarray,
    reference_parts: np.ndarray,
    min_pixels: int,
) -> Colors:
    """Compare the colours of every part that covers `min_pixels` in the true view and in the reference.

    samples, true, references: uint8 [Q, H, W, 3]; shapes: the samples' foreground, bool [Q, H, W]; parts: int
    [Q, H, W]. A sample's part is where the true view has it and the sample shows the object. Raises UserError where no
    part is seen in both views.
    """
    found: list[Sequence[np.ndarray]] = []
    for k in range(len(samples)):
        own, other = true_parts[k], reference_parts[k]
        wanted = sorted(set(visible(own, min_pixels)) & set(visible(other, min_pixels)))
        everywhere = np.ones(own.shape, bool)
        sample = part_colors(samples[k], own, wanted, shapes[k])
        truth = part_colors(true[k], own, wanted, everywhere)
        reference = part_colors(references[k], other, wanted, everywhere)
        found.append([color_distance(*pair) for pair in ((sample, truth), (sample, reference), (truth, reference))])
    colors = Colors(*(np.concatenate(column) for column in zip(*found, strict=True)))
    if len(colors.true) == 0:
        raise UserError(f"check.part_pixels: no part covers {min_pixels} pixels in both views; lower it")
    return colors
