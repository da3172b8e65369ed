"""Distribution refinement, Sec. 3.3: add noise to each kept sample and denoise it with a text-guided 2D model.

The paper's two are in `controlnet` and `deepfloyd`; a new refiner is one class with the `Refiner` protocol and one
entry in `REFINERS`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cad.artifacts import InputArtifact, PriorCache, PriorCacheWriter, write_image
from cad.camera import Poses
from cad.config import CameraSettings, ModelPaths, RefineSettings
from cad.config.refine import LatentDiffusionSettings
from cad.context import Context
from cad.prior.controlnet import ControlNetRefiner
from cad.prior.ddim import NoiseStreams, in_precision
from cad.prior.deepfloyd import DeepFloydRefiner
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.pictures import resize, to_network, to_picture
from cad.prior.prune import read_decisions
from cad.prior.sheets import GREEN, GREY, Group, Row, draw_sheet
from cad.prior.weights import memory_named
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
    prior = PriorCache.open(prior_dir)
    table = read_decisions(prune_dir)
    kept = table[table["kept"]]
    ids = [int(pose) for pose in kept["pose"]]
    poses = Poses(azimuth=torch.tensor(kept["azimuth"].to_numpy()), polar=torch.tensor(kept["polar"].to_numpy()))
    position = {pose: i for i, pose in enumerate(prior.pose_ids)}
    chosen = np.stack([prior.read(position[pose])[j] for pose, j in zip(ids, kept["chosen"], strict=True)])
    prompts = [
        view_prompt(source.prompt, float(a), float(p)) if settings.view_prompts else source.prompt
        for a, p in zip(poses.azimuth, poses.polar, strict=True)
    ]
    draws = settings.draws if settings.enabled else 1
    writer = PriorCacheWriter(out, poses, ids, draws, prior.resolution, settings.shard_poses)
    if settings.enabled:
        distinct = list(dict.fromkeys(prompts))  # at most five views of one prompt
        refiner = REFINERS[settings.kind](models, settings, distinct, context.device)
        with memory_named(f"{context.object}: {settings.batch} refinements at once"):
            _refine_shards(refiner, chosen, prompts, ids, settings, writer, context)
    else:
        for k in writer.missing_shards():
            writer.write_shard(k, chosen[list(writer.shard_range(k))][:, None])
    writer.finish()
    sheet = contact_sheet(PriorCache.open(out), chosen, prompts, source)
    write_image(out / "contact.png", sheet)
    context.tracker.image("refine/draws", sheet, step=0)


def _refine_shards(
    refiner: Refiner,
    chosen: np.ndarray,
    prompts: list[str],
    ids: list[int],
    settings: RefineSettings,
    writer: PriorCacheWriter,
    context: Context,
) -> None:
    missing = writer.missing_shards()
    total = len(chosen) * settings.draws
    done = total - sum(len(writer.shard_range(k)) for k in missing) * settings.draws
    with progress(total, "refining views", done) as bar:
        for k in missing:
            pairs = [(i, j) for i in writer.shard_range(k) for j in range(settings.draws)]
            views = []
            for start in range(0, len(pairs), settings.batch):
                batch = pairs[start : start + settings.batch]
                streams = NoiseStreams(
                    [generator(context.seed, context.object, "refine", ids[i], j) for i, j in batch],
                    context.device,
                    torch.float32,
                )
                images = to_network(chosen[[i for i, _ in batch]], context.device)
                views.append(to_picture(refiner.refine(images, [prompts[i] for i, _ in batch], streams)))
                bar.advance(len(batch))
            refined = np.concatenate(views)
            writer.write_shard(k, refined.reshape(-1, settings.draws, *refined.shape[1:]))


def contact_sheet(refined: PriorCache, chosen: np.ndarray, prompts: Sequence[str], source: InputArtifact) -> np.ndarray:
    """The raw sample beside its draws for some poses, like Fig. 11; chosen: [M, H, W, 3]."""
    picks = np.unique(np.linspace(0, len(refined) - 1, SHOWN).round().astype(int))
    rows = []
    for i in picks:
        azimuth, polar = np.degrees([float(refined.poses.azimuth[i]), float(refined.poses.polar[i])])
        view = prompts[i].removeprefix(source.prompt).strip(", ")
        images = np.concatenate([chosen[i : i + 1], refined.read(int(i))])
        rows.append(Row(f"az {azimuth:.0f}, polar {polar:.0f}\n{view}", images, [GREY] + [GREEN] * refined.samples))
    columns = ["raw"] + [f"draw {j + 1}" for j in range(refined.samples)]
    group = Group(f"{len(refined)} poses", GREEN, columns, rows)
    return draw_sheet(f"Refinement: {source.prompt}", source.image, [group])
