"""Whether the refiner keeps its input's shape, and how much more its draws differ than Zero-1-to-3's samples do."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cad.prior.ddim import in_precision
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.pictures import foreground, to_network, to_picture
from cad.prior.refine import view_prompt
from cad.prior.truth import intersection_over_union
from cad.prior.weights import check_source
from cad.prior.zero123 import Zero123
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures import bars
from cad.toyworld.measures.pixels import pairwise
from cad.toyworld.measures.questions import (
    CPU,
    Question,
    asked_poses,
    batches,
    noise_streams,
    pictures,
    questions,
    spread,
    synthesise,
)
from cad.toyworld.measures.table import Measure
from cad.toyworld.measures.zero123 import LPIPS
from cad.toyworld.settings import ToyworldSettings
from cad.train.perceptual import load_lpips


def measure_refiner(name: str, settings: ToyworldSettings, data: Dataset, weights: Path) -> list[Measure]:
    """Silhouette IoU with its input, of true views and of Zero-1-to-3's samples, and the diversity of draws.

    Needs zero123 beside it (UserError without): samples are what the refiner meets in the pipeline.
    """
    chosen = settings.check
    check_source(weights / "zero123", "model_index.json")
    model = LatentDiffusion.load(weights / name, CPU, torch.float32)
    synthesiser = Zero123.load(weights / "zero123", CPU, torch.float32)
    distance = load_lpips(weights / LPIPS, CPU)
    asked = questions(chosen, data)
    true = pictures(data, asked)
    kept = overlap(refine(model, settings, data, asked, true, 0), true, chosen.white_threshold)
    posed = spread(asked, chosen.draw_poses)
    raw = np.stack([synthesise(synthesiser, settings, data, posed, k) for k in range(chosen.raw_samples)], 1)
    draws = np.stack([refine(model, settings, data, posed, raw[:, 0], k) for k in range(chosen.draws)], 1)
    followed = overlap(draws, raw[:, :1], chosen.white_threshold).ravel()
    raw_lpips, draw_lpips = (pairwise(distance, images, chosen.batch) for images in (raw, draws))
    shape = f"median silhouette IoU with its input at strength {chosen.strength:g}"
    apart = f"LPIPS between {chosen.draws} draws"
    ratio = draw_lpips / raw_lpips if raw_lpips > 0 else math.nan  # of no diversity nothing is a multiple
    numbers = f"{draw_lpips:.4f} over {raw_lpips:.4f}"
    raw_name = f"{chosen.raw_samples} raw samples"
    return [
        Measure(
            name, f"{shape}, Zero-1-to-3 samples", float(np.median(followed)), None, "", len(followed),
            bars.REFINED_SILHOUETTE,
        ),
        Measure(name, f"{shape}, true views", float(np.median(kept)), None, "", len(kept), bars.REFINED_SILHOUETTE),
        Measure(name, f"{apart} of one sample", draw_lpips, raw_lpips, raw_name, len(posed), None),
        Measure(name, f"{apart} over that of {raw_name}, {numbers}", ratio, None, "", len(posed), bars.DIVERSITY),
    ]  # fmt: skip


def overlap(refined: np.ndarray, inputs: np.ndarray, white_threshold: int) -> np.ndarray:
    """Silhouette IoU of pictures and their inputs, uint8 [..., H, W, 3] each, broadcast against each other."""
    return intersection_over_union(*(foreground(images, white_threshold) for images in (refined, inputs)))


def refine(
    model: LatentDiffusion,
    settings: ToyworldSettings,
    data: Dataset,
    asked: Sequence[Question],
    images: np.ndarray,
    draw: int,
) -> np.ndarray:
    """One refinement of each picture of a view asked for, under its prompt; uint8 [Q, H, W, 3] to the same."""
    chosen, prompts = settings.check, view_prompts(settings, data, asked)
    null, refined = model.embed([""]), []
    for batch in batches(range(len(asked)), chosen.batch):
        noise = noise_streams(settings.seed, "check-refiner", data, [asked[k] for k in batch], draw)
        context = model.embed([prompts[k] for k in batch])
        with in_precision(CPU, chosen.bf16):
            output = model.sdedit(
                to_network(images[list(batch)], CPU), context, null, noise.draw(model.latent_shape), None,
                chosen.strength, chosen.refine_guidance, chosen.refine_steps,
            )  # fmt: skip
        refined.append(to_picture(output))
    return np.concatenate(refined)


def view_prompts(settings: ToyworldSettings, data: Dataset, asked: Sequence[Question]) -> list[str]:
    """The caption of `check.caption`'s level with the view appended, of every view asked for."""
    poses = asked_poses(data, asked)
    captions = [getattr(data.instances[q.subject].captions, settings.check.caption) for q in asked]
    return [
        view_prompt(caption, azimuth, polar)
        for caption, azimuth, polar in zip(captions, poses.azimuth.tolist(), poses.polar.tolist(), strict=True)
    ]
