"""Whether control by depth keeps the shape of what is refined, where refinement by itself loses it (App. D)."""

from pathlib import Path

import numpy as np
import torch

from cad.prior.weights import check_source
from cad.prior.zero123 import Zero123
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures import bars
from cad.toyworld.measures.questions import CPU, questions, spread, synthesise
from cad.toyworld.measures.refiner import overlap
from cad.toyworld.measures.table import Measure
from cad.toyworld.redraw import CONTROLLED, PLAIN, Walk, models_of, redraw
from cad.toyworld.settings import ToyworldSettings


def measure_controlnet(name: str, settings: ToyworldSettings, data: Dataset, weights: Path) -> list[Measure]:
    """Silhouette IoU of refined samples with their input at each of `check.control_strengths`, beside no control.

    Needs zero123, refiner and depth beside it (UserError without). Both ways start from the same noise.
    """
    chosen = settings.check
    for needed in (model for model in models_of(CONTROLLED) if model != name):
        check_source(weights / needed, "model_index.json" if needed == "refiner" else "config.json")
    check_source(weights / "zero123", "model_index.json")
    posed = spread(questions(chosen, data), chosen.draw_poses)
    raw = synthesise(Zero123.load(weights / "zero123", CPU, torch.float32), settings, data, posed, 0)
    found = []
    for strength in chosen.control_strengths:
        walk, kept = Walk(strength, chosen.refine_steps), {}
        for family in (CONTROLLED, PLAIN):
            refined = redraw(family, walk, settings, data, posed, raw, chosen.draws, weights)
            kept[family] = overlap(refined, raw[:, None], chosen.white_threshold).ravel()
        with_control, without = (float(np.median(kept[family])) for family in (CONTROLLED, PLAIN))
        title = f"median silhouette IoU with its input at strength {strength:g}, Zero-1-to-3 samples"
        found.append(
            Measure(
                name, title, with_control, without, "without control", len(kept[CONTROLLED]),
                bars.CONTROLLED_SILHOUETTE,
            )
        )  # fmt: skip
    return found
