"""Both families of refiners (Sec. 3.3, Fig. 10) at any strength on held-out views, all else equal but the control."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cad.config import ModelPaths
from cad.config.refine import REFINER_MODELS, ControlNetSettings, LatentDiffusionSettings
from cad.prior.controlnet import ControlNetRefiner
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.pictures import to_network, to_picture
from cad.prior.refine import LatentDiffusionRefiner, Refiner
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures.questions import CPU, Question, batches, noise_streams
from cad.toyworld.measures.refiner import view_prompts
from cad.toyworld.settings import CheckSettings, ToyworldSettings

PLAIN, CONTROLLED = "latent-diffusion", "controlnet-depth"


class Walk(NamedTuple):
    """How far pictures are noised, and in how many steps the whole way back is gone."""

    strength: float
    steps: int


Loader = Callable[[Path, Sequence[str], Walk, CheckSettings], Refiner]


def load_plain(weights: Path, prompts: Sequence[str], walk: Walk, chosen: CheckSettings) -> Refiner:
    """The small refiner by itself; UserError where it is missing or broken."""
    settings = LatentDiffusionSettings(strength=walk.strength, guidance=chosen.refine_guidance, steps=walk.steps)
    model = LatentDiffusion.load(weights / "refiner", CPU, torch.float32)
    return LatentDiffusionRefiner(model, prompts, settings, chosen.bf16)


def load_controlled(weights: Path, prompts: Sequence[str], walk: Walk, chosen: CheckSettings) -> Refiner:
    """The small refiner under its ControlNet; UserError where one of the three models is missing or broken."""
    settings = ControlNetSettings(
        strength=walk.strength,
        guidance=chosen.refine_guidance,
        steps=walk.steps,
        conditioning_scale=chosen.conditioning_scale,
    )
    # The settings name every model of the pipeline; only those of this family are loaded.
    paths = {name: str(weights / name) for name in ModelPaths.model_fields}
    return ControlNetRefiner.load(ModelPaths(**paths), prompts, settings, chosen.bf16, CPU, torch.float32)


FAMILIES: dict[str, Loader] = {PLAIN: load_plain, CONTROLLED: load_controlled}


def models_of(family: str) -> tuple[str, ...]:
    """Folders of the weights that a family loads."""
    return REFINER_MODELS[family]


def redraw(
    family: str,
    walk: Walk,
    settings: ToyworldSettings,
    data: Dataset,
    asked: Sequence[Question],
    images: np.ndarray,
    draws: int,
    weights: Path,
) -> np.ndarray:
    """`draws` refinements of a picture of every view asked for, uint8 [Q, H, W, 3] to [Q, draws, H, W, 3].

    The noise is a function of (seed, instance, view, draw): that of other families and strengths is the same, so that
    their results are compared pair by pair.
    """
    prompts = view_prompts(settings, data, asked)
    refiner = FAMILIES[family](weights, list(dict.fromkeys(prompts)), walk, settings.check)
    found = []
    for draw in range(draws):
        for batch in batches(range(len(asked)), settings.check.batch):
            streams = noise_streams(settings.seed, "redraw", data, [asked[k] for k in batch], draw)
            pictures = to_network(images[list(batch)], CPU)
            found.append(to_picture(refiner.refine(pictures, [prompts[k] for k in batch], streams)))
    return np.stack(np.split(np.concatenate(found), draws), 1)
