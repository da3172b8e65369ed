"""What a run costs, from its settings alone: network evaluations, hours, memory and disk of every stage.

All counts are pure functions of the settings. Where the settings do not decide (how many poses pruning keeps) they are
upper bounds. A stage's work is counted in its own unit, and a rate is how many of those it does in a second.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cad.config import TABLES, Params, PriorSettings, RefineSettings
from cad.config.kinds import is_plugin
from cad.config.refine import Steps, Strength
from cad.errors import UserError
from cad.stages import LINEAGE, models_read, run_folder

if TYPE_CHECKING:
    from cad.weights.table import Model

BRANCHES = 2  # the 2D branch's orbit and the 3D branch's
NULL_TOO = 2  # guidance evaluates a network with its condition and without
# The registry's models behind architectures that open_clip knows by name.
ARCHITECTURES = {
    "ViT-L-14-quickgelu": "clip-vit-l-14", "ViT-L-14": "clip-vit-l-14",
    "ViT-B-32-quickgelu": "clip-vit-b-32", "ViT-B-32": "clip-vit-b-32",
}  # fmt: skip
ORBIT_PIXEL = 4 + 2  # bytes of RGBA and of 16 bit depth, which PNG makes smaller
ROUNDED = 0.9  # of the table's size of a model, and it is taken to be whole [ours]
SHEETS = 4_000_000  # bytes of pictures and tables beside a stage's data, generously
RATES = ("zero123", "refiner", "deepfloyd_stage1", "deepfloyd_stage2", "stage1", "stage2", "orbit")


class Parameters(NamedTuple):
    """Numbers of parameters: generator, discriminator, and stage 2's plane upsampler and patch discriminator."""

    generator: int
    discriminator: int
    upsampler: int
    patches: int


@dataclass(frozen=True)
class Cost:
    """One stage of one entry: its work by the name of its rate, and bytes; `memory` is a lower bound."""

    stage: str
    entry: str
    work: Mapping[str, int]  # UNet evaluations of single images, images shown to training, or frames
    memory: int
    disk: int

    def hours(self, rates: Mapping[str, float]) -> float | None:
        """Hours at these rates per second, None where one that is needed is missing."""
        if any(name not in rates for name in self.work):
            return None
        return sum(amount / rates[name] for name, amount in self.work.items()) / 3600


def denoising_steps(steps: Steps, strength: Strength) -> int:
    """Network evaluations of one image's walk without guidance: the steps that `strength` leaves (cad.prior.ddim)."""
    return min(round(steps * strength), steps)


def prior_work(settings: PriorSettings) -> dict[str, int]:
    """UNet evaluations of sampling: poses x samples x steps, with condition and without (Sec. 3.3); a plug-in's images.

    A plug-in's rate is named as its `kind`.
    """
    images = settings.poses * settings.samples
    return {settings.kind: images} if is_plugin(settings.kind) else {"zero123": images * settings.steps * NULL_TOO}


def refine_work(settings: RefineSettings, poses: int) -> dict[str, int]:
    """UNet evaluations of refining `poses` kept poses, by network, a ControlNet's in its UNet's; a plug-in's images."""
    if not settings.enabled:
        return {}
    if is_plugin(settings.kind):
        return {settings.kind: poses * settings.draws}
    images = poses * settings.draws
    if settings.kind == "deepfloyd-if" and (two := settings.deepfloyd_if) is not None:
        low, high = (denoising_steps(walk.steps, walk.strength) for walk in (two.stage1, two.stage2))
        return {"deepfloyd_stage1": images * low * NULL_TOO, "deepfloyd_stage2": images * high * NULL_TOO}
    one = settings.controlnet_depth if settings.kind == "controlnet-depth" else settings.latent_diffusion
    if one is None:
        raise ValueError(f"refine.kind {settings.kind} has no settings")  # RefineSettings sees to it
    branches = 1 if one.guidance == 1 else NULL_TOO  # at 1 the null prediction has no weight and is not made
    return {"refiner": images * denoising_steps(one.steps, one.strength) * branches}


def training_images(kimg: float, batch: int) -> int:
    """Images shown to a training: whole steps until `kimg` thousand are reached."""
    return math.ceil(kimg * 1000 / batch) * batch


def image_bytes(images: int, side: int) -> int:
    """Bytes of pictures in a prior cache: uint8 RGB, not compressed."""
    return images * side * side * 3


def checkpoint_bytes(sizes: Parameters, branch_3d: bool) -> int:
    """Bytes of a checkpoint in float32: G thrice and its average, D thrice (Adam keeps two moments of each weight)."""
    trained = [sizes.generator, sizes.upsampler] if branch_3d else [sizes.generator]
    judges = [sizes.discriminator, sizes.patches] if branch_3d else [sizes.discriminator]
    return 4 * (4 * sum(trained) + 3 * sum(judges))


def training_bytes(sizes: Parameters, branch_3d: bool) -> int:
    """Bytes that a training's networks take: as its checkpoint, and the gradients; activations come on top."""
    gradients = sizes.generator + sizes.discriminator + (sizes.upsampler + sizes.patches if branch_3d else 0)
    return checkpoint_bytes(sizes, branch_3d) + 4 * gradients


def plan_entries(params: Params, names: Sequence[str]) -> list[tuple[str, str]]:
    """Stages and entries that these evaluations need (all, if none is named), in the order of the data flow, each once.

    Raises UserError for a name that is no evaluation.
    """
    found = set()
    for name in names or params.evaluations:
        found |= {("evaluate", name), *params.ancestors("evaluate", name).items()}
    return [(stage, entry) for stage in TABLES for entry in sorted(e for s, e in found if s == stage)]


def plan(params: Params, names: Sequence[str], weights: Mapping[str, int]) -> list[Cost]:
    """The cost of every stage; `weights` are the bytes of the model sources that are known (see `weight_bytes`)."""
    return costs_of(params, plan_entries(params, names), weights)


def costs_of(params: Params, pairs: Sequence[tuple[str, str]], weights: Mapping[str, int]) -> list[Cost]:
    """The cost of each of these stages and entries."""
    return [_cost(params, stage, entry, weights) for stage, entry in pairs]


def _cost(params: Params, stage: str, entry: str, weights: Mapping[str, int]) -> Cost:
    settings, above = params.resolve(stage, entry)[0], params.ancestors(stage, entry) | {stage: entry}
    side = params.resolve("input", above["input"])[0].resolution
    loaded = sum(weights.get(source, 0) for source in models_read(stage, entry, params))
    if stage in ("input", "prune", "evaluate"):
        return Cost(stage, entry, {}, loaded, SHEETS)
    prior = params.resolve("prior", above["prior"])[0]
    if stage == "prior":
        held = image_bytes(settings.shard_poses * settings.samples, side)
        return Cost(
            stage, entry, prior_work(settings), loaded + held,
            image_bytes(settings.poses * settings.samples, side) + SHEETS,
        )  # fmt: skip
    refine = params.resolve("refine", above["refine"])[0]
    reals = image_bytes(prior.poses * (refine.draws if refine.enabled else 1), side)
    if stage == "refine":
        held = image_bytes(prior.poses, side)  # the chosen samples
        return Cost(stage, entry, refine_work(settings, prior.poses), loaded + held, reals + SHEETS)
    if stage == "orbit":
        frames = BRANCHES * settings.seeds * settings.frames
        return Cost(stage, entry, {"orbit": frames}, loaded, frames * side * side * ORBIT_PIXEL + SHEETS)
    sizes = count_parameters(params, above["stage1"], above.get("stage2"))
    branch_3d = stage == "stage2" and settings.branch_3d
    memory = loaded + reals + training_bytes(sizes, branch_3d)
    disk = checkpoint_bytes(sizes, branch_3d) + SHEETS
    return Cost(stage, entry, {stage: training_images(settings.kimg, settings.batch)}, memory, disk)


def count_parameters(params: Params, stage1: str, stage2: str | None) -> Parameters:
    """The networks of a training, built without memory (torch's meta device), and counted."""
    import torch

    from cad.models.discriminator import Discriminator, PatchDiscriminator
    from cad.models.generator import Generator
    from cad.models.upsampler3d import PlaneUpsampler

    shape, judge = (params.resolve(section, stage1)[0] for section in ("generator", "discriminator"))
    with torch.device("meta"):
        players = [Generator(shape), Discriminator(judge, shape.output_resolution)]
        if stage2 is not None and (s := params.resolve("stage2", stage2)[0]).branch_3d:
            players += [
                PlaneUpsampler(s, shape.plane_channels, shape.w_dim, shape.activation_clamp),
                PatchDiscriminator(s.patch_size, s.patch_channel_base, s.patch_channel_max, judge.activation_clamp),
            ]
    counts = [sum(parameter.numel() for parameter in player.parameters()) for player in players]
    return Parameters(*counts, *[0] * (len(Parameters._fields) - len(counts)))


def model_sources(params: Params, names: Sequence[str]) -> list[str]:
    """The weights that these evaluations load, each once: local files, local folders and hub ids."""
    return sources_of(params, plan_entries(params, names))


def sources_of(params: Params, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The weights that these stages and entries load, each once."""
    return sorted({source for stage, entry in pairs for source in models_read(stage, entry, params) if source})


def weight_bytes(sources: Sequence[str]) -> tuple[dict[str, int], int]:
    """Bytes of the model sources that are known, and how many of them still have to be fetched.

    Local ones are measured, hub ids and open_clip's architectures looked up in the table of weights, less what of them
    the hub's cache holds. An id in no table counts nothing: the plan is then too low by it.
    """
    from cad.weights.table import MODELS

    known, missing = {}, 0
    for source in sources:
        path = Path(source)
        if path.exists():
            files = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix == ".safetensors"]
            known[source] = sum(file.stat().st_size for file in files)
            continue
        repository, _, revision = source.partition("@")
        name = ARCHITECTURES.get(source)
        listed = [m for m in MODELS if m.name == name or (repository and m.repo == repository)]
        if listed:
            known[source] = round(sum(model.gigabytes for model in listed) * 1e9)
            missing += max(0, known[source] - sum(_cached_bytes(model, revision) for model in listed))
    return known, missing


def _cached_bytes(model: "Model", revision: str) -> int:
    """Bytes of a model's files in the hub's cache, the size of the whole once all its weights are there."""
    from huggingface_hub import constants

    at = Path(constants.HF_HUB_CACHE) / f"models--{model.repo.replace('/', '--')}" / "snapshots"
    folder = at / (revision or model.revision)
    found = {path: path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    held = sum(path.stat().st_size for path, name in found.items() if any(fnmatch(name, w) for w in model.files))
    whole = round(model.gigabytes * 1e9)
    return whole if held >= ROUNDED * whole else held  # the table's sizes are rounded


def check_room(params: Params, pairs: Sequence[tuple[str, str]]) -> None:
    """UserError where the disk is too small for what these stages and entries still have to write.

    A stage whose folder is there counts nothing, and what an interrupted one left in .work is set against the rest.
    """
    from cad.artifacts.workspace import WORK

    left = [(stage, entry) for stage, entry in pairs if not (run_folder(stage, entry) / LINEAGE).is_file()]
    known, fetched = weight_bytes(sources_of(params, left))
    begun = sum(path.stat().st_size for path in WORK.rglob("*") if path.is_file())
    check_disk(costs_of(params, left, known), fetched, Path(), begun)


def check_disk(costs: Sequence[Cost], fetched: int, place: Path, begun: int = 0) -> int:
    """The bytes that the run needs at `place`, each stage's output twice: runs/ and DVC's storage hold a copy each.

    begun: bytes that lie there already and become part of it. Raises UserError where the rest is not free. Finished
    outputs are not set against it: DVC keeps old versions.
    """
    needed, free = 2 * sum(cost.disk for cost in costs) + fetched, shutil.disk_usage(place).free + begun
    if needed > free:
        raise UserError(
            f"{place.resolve()}: the run needs {gigabytes(needed)} (outputs and DVC's copies of them "
            f"{gigabytes(needed - fetched)}, weights to fetch {gigabytes(fetched)}), and {gigabytes(free)} are free; "
            "lower prior.poses, prior.samples or refine.draws, or make room (`dvc gc --workspace`)"
        )
    return needed


def gigabytes(count: int) -> str:
    """Bytes for people: MB below a GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
