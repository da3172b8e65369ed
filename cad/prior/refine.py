"""Distribution refinement, Sec. 3.3: add noise to each kept sample and denoise it with a text-guided 2D model.

The paper's two are in `controlnet` and `deepfloyd`; any class with the `Refiner` protocol can stand in their place
(docs/extending.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from cad import plugins
from cad.artifacts import InputArtifact, PriorCache, PriorCacheWriter, write_image
from cad.artifacts.cache import shard_positions, store_shard
from cad.camera import Poses
from cad.config import CameraSettings, ModelPaths, RefineSettings
from cad.config.refine import LatentDiffusionSettings
from cad.context import Advance, Context, Do
from cad.memory import memory_named
from cad.prior.controlnet import ControlNetRefiner
from cad.prior.ddim import NoiseStreams, in_precision
from cad.prior.deepfloyd import DeepFloydRefiner
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.pictures import resize, to_network, to_picture
from cad.prior.prune import read_decisions
from cad.prior.sheets import GREEN, GREY, Group, Row, draw_sheet
from cad.progress import progress
from cad.seeding import generator

SHOWN = 8  # rows on the contact sheet


class Refiner(Protocol):
    """Anything that redraws images under prompts; all its noise comes from the given streams."""

    def refine(self, images: Tensor, prompts: Sequence[str], streams: NoiseStreams) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] redrawn at their own size, each under its prompt."""
        ...


# (models, settings, all prompts that will come, device): what is encoded once can be freed before the networks load
Loader = Callable[[ModelPaths, RefineSettings, Sequence[str], torch.device], Refiner]


class LatentDiffusionRefiner:
    """SDEdit by a latent diffusion model, with the empty prompt as the unconditional branch."""

    def __init__(self, model: LatentDiffusion, prompts: Sequence[str], settings: LatentDiffusionSettings, bf16: bool):
        self.model = model
        self.contexts = model.embed_each(["", *prompts])
        self.settings = settings
        self.bf16 = bf16

    def refine(self, images: Tensor, prompts: Sequence[str], streams: NoiseStreams) -> Tensor:
        """Deterministic DDIM (eta 0) from noise of `strength`; images are resized to the model's side and back."""
        side, own, chosen = images.shape[-1], self.model.resolution, self.settings
        context = torch.cat([self.contexts[prompt] for prompt in prompts])
        noise = streams.draw(self.model.latent_shape)
        with in_precision(images.device, self.bf16):
            refined = self.model.sdedit(
                resize(images, own), context, self.contexts[""], noise, None, chosen.strength, chosen.guidance,
                chosen.steps,
            )  # fmt: skip
        return resize(refined, side)


def _load_latent_diffusion(
    models: ModelPaths, settings: RefineSettings, prompts: Sequence[str], device: torch.device
) -> Refiner:
    assert settings.latent_diffusion is not None  # RefineSettings sees to it
    model = LatentDiffusion.load(models.refiner, device, getattr(torch, settings.precision))
    return LatentDiffusionRefiner(model, prompts, settings.latent_diffusion, settings.bf16)


def _load_controlnet(
    models: ModelPaths, settings: RefineSettings, prompts: Sequence[str], device: torch.device
) -> Refiner:
    assert settings.controlnet_depth is not None
    dtype = getattr(torch, settings.precision)
    return ControlNetRefiner.load(models, prompts, settings.controlnet_depth, settings.bf16, device, dtype)


def _load_deepfloyd(
    models: ModelPaths, settings: RefineSettings, prompts: Sequence[str], device: torch.device
) -> Refiner:
    assert settings.deepfloyd_if is not None
    dtype = getattr(torch, settings.precision)
    return DeepFloydRefiner.load(models, prompts, settings.deepfloyd_if, settings.bf16, device, dtype)


REFINERS: dict[str, Loader] = {
    "latent-diffusion": _load_latent_diffusion,
    "controlnet-depth": _load_controlnet,
    "deepfloyd-if": _load_deepfloyd,
}


def load_refiner(models: ModelPaths, settings: RefineSettings, prompts: Sequence[str], device: torch.device) -> Refiner:
    """The refiner that `refine.kind` names; UserError where its weights or its plug-in are missing or broken."""
    if settings.kind in REFINERS:
        return REFINERS[settings.kind](models, settings, prompts, device)
    made: Refiner = plugins.make(
        settings.kind, "refine.kind", Refiner, settings=settings.settings or {}, prompts=prompts, device=device
    )
    return made


def view_name(azimuth: float, polar: float) -> str:
    """The word of view-dependent prompting (Appendix C) for a pose in radians.

    Polar below 30 deg is overhead, above 150 deg bottom. Otherwise, within 45 deg of azimuth 180 (the reference) it
    is front, within 45 deg of azimuth 0 back, and else side. The bounds themselves belong to side [ours].
    """
    degrees = np.degrees(polar)
    if degrees < 30:
        return "overhead"
    if degrees > 150:
        return "bottom"
    from_back = abs((np.degrees(azimuth) + 180) % 360 - 180)
    return "back" if from_back < 45 else "front" if from_back > 135 else "side"


def view_prompt(prompt: str, azimuth: float, polar: float) -> str:
    """The prompt with its view appended, e.g. "a toy robot, side view"."""
    return f"{prompt}, {view_name(azimuth, polar)} view"


@dataclass(frozen=True)
class Plan:
    """What the shards of one cache have in common."""

    settings: RefineSettings
    models: ModelPaths
    input_dir: Path
    prior_dir: Path
    prune_dir: Path
    out: Path


class Kept(NamedTuple):
    """The poses that pruning kept: their ids, where they lie in the prior, and the sample that was chosen of each."""

    prior: PriorCache
    ids: list[int]
    poses: Poses
    places: list[tuple[int, int]]  # position in the prior, and sample

    def images(self, positions: Sequence[int]) -> np.ndarray:
        """The chosen samples at some of the kept poses, uint8 [n, H, W, 3]."""
        return np.stack([self.prior.read(i)[j] for i, j in (self.places[k] for k in positions)])

    def prompts(self, prompt: str, by_view: bool) -> list[str]:
        """Every kept pose's prompt."""
        pairs = zip(self.poses.azimuth, self.poses.polar, strict=True)
        return [view_prompt(prompt, float(a), float(p)) if by_view else prompt for a, p in pairs]


def read_kept(prior_dir: Path, prune_dir: Path) -> Kept:
    """Open the prior and what pruning said of it; UserError where either is broken."""
    prior = PriorCache.open(prior_dir)
    table = read_decisions(prune_dir)
    kept = table[table["kept"]]
    ids = [int(pose) for pose in kept["pose"]]
    poses = Poses(azimuth=torch.tensor(kept["azimuth"].to_numpy()), polar=torch.tensor(kept["polar"].to_numpy()))
    position = {pose: i for i, pose in enumerate(prior.pose_ids)}
    places = [(position[pose], int(j)) for pose, j in zip(ids, kept["chosen"], strict=True)]
    return Kept(prior, ids, poses, places)


def refine_prior(
    settings: RefineSettings,
    camera: CameraSettings,
    models: ModelPaths,
    input_dir: Path,
    prior_dir: Path,
    prune_dir: Path,
    out: Path,
    context: Context,
) -> None:
    """Fill `out` with a PriorCache of the kept poses: `draws` refinements of each chosen sample, and contact.png.

    Disabled refinement passes the chosen sample through, as one draw. Resumes shard by shard; the noise of a draw is
    a function of (seed, object, pose, draw). Raises UserError for a refiner or weights that are not there.
    """
    source = InputArtifact.open(input_dir)
    kept = read_kept(prior_dir, prune_dir)
    draws = settings.draws if settings.enabled else 1
    writer = PriorCacheWriter(out, kept.poses, kept.ids, draws, kept.prior.resolution, settings.shard_poses)
    missing = writer.missing_shards()
    if settings.enabled:
        total = len(kept.ids) * draws
        done = total - sum(len(writer.shard_range(k)) for k in missing) * draws
        plan = Plan(settings, models, input_dir, prior_dir, prune_dir, out)
        with progress(total, "refining views", done) as bar:
            context.engine.run(begin_refining, plan, missing, writer.take_shard, bar.advance, context)
    else:
        chosen = kept.images(range(len(kept.ids)))  # all, so that a broken sample shows before anything is written
        for k in missing:
            writer.write_shard(k, chosen[list(writer.shard_range(k))][:, None])
    writer.finish()
    sheet = contact_sheet(PriorCache.open(out), kept, kept.prompts(source.prompt, settings.view_prompts), source)
    write_image(out / "contact.png", sheet)
    context.tracker.image("refine/draws", sheet, step=0)


def begin_refining(plan: Plan, context: Context) -> Do:
    """Load the refiner; returns what refines one shard, writes it and returns its digest."""
    settings, kept = plan.settings, read_kept(plan.prior_dir, plan.prune_dir)
    prompts = kept.prompts(InputArtifact.open(plan.input_dir).prompt, settings.view_prompts)
    distinct = list(dict.fromkeys(prompts))  # at most five views of one prompt
    refiner = load_refiner(plan.models, settings, distinct, context.device)

    def refine(batch: Sequence[tuple[int, int]]) -> np.ndarray:
        streams = NoiseStreams(
            [generator(context.seed, context.object, "refine", kept.ids[i], j) for i, j in batch],
            context.device,
            torch.float32,
        )
        images = to_network(kept.images([i for i, _ in batch]), context.device)
        refined = refiner.refine(images, [prompts[i] for i, _ in batch], streams)
        plugins.check_shape(refined, tuple(images.shape), settings.kind)
        return to_picture(refined)

    def do(shard: int, advance: Advance) -> str:
        positions = shard_positions(len(kept.ids), settings.shard_poses, shard)
        pairs = [(i, j) for i in positions for j in range(settings.draws)]
        views = []
        with memory_named(f"{context.object}: {settings.batch} refinements at once"):
            for start in range(0, len(pairs), settings.batch):
                batch = pairs[start : start + settings.batch]
                views.append(refine(batch))
                advance(len(batch))
        refined = np.concatenate(views)
        return store_shard(plan.out, shard, refined.reshape(-1, settings.draws, *refined.shape[1:]))

    return do


def contact_sheet(refined: PriorCache, kept: Kept, prompts: Sequence[str], source: InputArtifact) -> np.ndarray:
    """The raw sample beside its draws for some poses, like Fig. 11."""
    picks = np.unique(np.linspace(0, len(refined) - 1, SHOWN).round().astype(int))
    rows = []
    for i in picks:
        azimuth, polar = np.degrees([float(refined.poses.azimuth[i]), float(refined.poses.polar[i])])
        view = prompts[i].removeprefix(source.prompt).strip(", ")
        images = np.concatenate([kept.images([i]), refined.read(int(i))])
        rows.append(Row(f"az {azimuth:.0f}, polar {polar:.0f}\n{view}", images, [GREY] + [GREEN] * refined.samples))
    columns = ["raw"] + [f"draw {j + 1}" for j in range(refined.samples)]
    group = Group(f"{len(refined)} poses", GREEN, columns, rows)
    return draw_sheet(f"Refinement: {source.prompt}", source.image, [group])
