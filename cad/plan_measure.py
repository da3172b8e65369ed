"""Rates and memory of the stages of a plan, measured on this machine: a few evaluations, steps or frames of each.

Networks of the settings' shapes, on noise: published UNets are loaded, what is trained here gets fresh weights.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cad.camera import focal_length, orbit_poses, pose_label, sphere_poses
from cad.config import Params
from cad.context import Context, prepare_device
from cad.errors import UserError
from cad.memory import memory_named
from cad.plan import Cost, count_parameters, training_bytes
from cad.render.choice import resolve_renderer, use_renderer
from cad.seeding import generator as seeded
from cad.tracking import Tracker

# Bytes of a training's networks above which a step on a CPU is not tried: it would take minutes [ours].
CPU_LIMIT = 500_000_000
Measured = tuple[dict[str, float], int | None]  # rates per second by their names; bytes at the peak, if it is known


def measure_rates(
    params: Params, costs: Sequence[Cost], say: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, int]]:
    """Rates that the costs name, each by its first entry, and measured peaks in bytes by stage.

    What does not fit this machine is told to `say` and left out. UserError for weights that are missing.
    """
    device = prepare_device(params.runtime.device, params.runtime.threads)
    rates: dict[str, float] = {}
    peaks: dict[str, int] = {}
    renderer = resolve_renderer(params.runtime.renderer, device)
    for cost in costs:
        if set(cost.work) <= set(rates):
            continue
        try:
            with memory_named(f"{cost.stage} {cost.entry}"), use_renderer(renderer):
                found, peak = MEASURES[cost.stage](params, cost.entry, device)
        except UserError as fault:
            if "too little memory" not in str(fault):
                raise
            say(f"not measured: {fault}")
            continue
        if not found and cost.stage in ("stage1", "stage2", "orbit"):
            say(f"not measured: {cost.stage} {cost.entry} is too large for this CPU")
        rates |= found
        peaks |= {cost.stage: peak} if peak else {}
    return rates, peaks


def _prior(params: Params, entry: str, device: torch.device) -> Measured:
    from cad.prior.speed import measure_prior

    return _unets(measure_prior(params.resolve("prior", entry)[0], params.models, device))


def _refine(params: Params, entry: str, device: torch.device) -> Measured:
    from cad.prior.speed import measure_refine

    return _unets(measure_refine(params.resolve("refine", entry)[0], params.models, device))


def _unets(speeds: Any) -> Measured:
    return {name: each.rate for name, each in speeds.items()}, max(
        (each.peak for each in speeds.values()), default=None
    )


def _training(params: Params, entry: str, device: torch.device, stage: str) -> Measured:
    """A plain step and one with every regulariser, on random pictures; without compiling, which takes minutes.

    The regularisers count as often as the most frequent of them, so that the rate is a little low.
    """
    from cad.train.data import Reals
    from cad.train.distill import Distiller
    from cad.train.stage1 import Stage1
    from cad.train.stage2 import Branch3D, Stage2

    above = params.ancestors(stage, entry) | {stage: entry}
    settings = params.resolve(stage, entry)[0].model_copy(update={"compile": False})
    shape, judge = (params.resolve(section, above["stage1"])[0] for section in ("generator", "discriminator"))
    lifted = stage == "stage2" and settings.branch_3d
    if _too_large(params, above, device, lifted):
        return {}, None
    cameras = sphere_poses(settings.batch, seeded("speed")).cameras(params.camera.radius)
    side = shape.output_resolution
    pictures = torch.randint(256, (settings.batch, 1, 3, side, side), generator=seeded("speed"), dtype=torch.uint8)
    reals = Reals(pictures, cameras, pose_label(cameras, focal_length(params.camera.fov_deg)), 1.0)
    context = Context(0, "speed", device, Tracker(None, None))
    players = Distiller(stage, settings, shape, judge, params.camera, reals, context)
    job: Stage1 | Stage2
    if stage == "stage1":
        job = Stage1(players, settings, params.camera)
    else:
        branch = Branch3D(players, settings, Path(params.models.lpips)) if lifted else None
        job = Stage2(players, branch, settings, params.camera, 0)
    often = min(settings.r1_interval, settings.density_interval)
    _reset(device)
    job.step(0)  # warms up, with every regulariser
    whole = _seconds(lambda: job.step(0), device)
    plain = _seconds(lambda: job.step(1), device)
    return {stage: settings.batch / (plain + max(0.0, whole - plain) / often)}, _peak(device)


def _orbit(params: Params, entry: str, device: torch.device) -> Measured:
    """A batch of frames of each branch, after one."""
    from cad.evaluate.orbit import take, view_subject
    from cad.models.generator import Generator
    from cad.models.layers import initialise
    from cad.models.upsampler3d import PlaneUpsampler
    from cad.train.load import LoadedGenerator

    above = params.ancestors("orbit", entry)
    if _too_large(params, above, device, lifted=True):
        return {}, None
    settings, stage2 = params.resolve("orbit", entry)[0], params.resolve("stage2", above["stage2"])[0]
    shape = params.resolve("generator", above["stage1"])[0]
    generator, upsampler = Generator(shape), None
    if stage2.branch_3d:
        upsampler = PlaneUpsampler(stage2, shape.plane_channels, shape.w_dim, shape.activation_clamp)
    for network in filter(None, (generator, upsampler)):
        initialise(network, seeded("speed"))
        network.requires_grad_(False).eval().to(device)
    loaded = LoadedGenerator(generator, upsampler, shape, params.camera, device)
    poses = take(orbit_poses(settings.frames, 1.2, 0.0), range(min(settings.batch, settings.frames)))
    _reset(device)
    seconds = 0.0
    for branch in ("2d", "3d"):
        subject = loaded.subject(branch, loaded.w(0, settings.truncation))
        frames = partial(view_subject, loaded, subject, poses, settings, params.camera)
        frames()
        seconds += _seconds(frames, device)
    return {"orbit": 2 * len(poses.azimuth) / seconds}, _peak(device)


def _too_large(params: Params, above: dict[str, str], device: torch.device, lifted: bool) -> bool:
    if device.type == "cuda":
        return False
    return training_bytes(count_parameters(params, above["stage1"], above.get("stage2")), lifted) > CPU_LIMIT


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: torch.device) -> int | None:
    """Bytes; on a CPU none, for a process's peak is that of all that was measured before."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _none(params: Params, entry: str, device: torch.device) -> Measured:
    return {}, None


MEASURES: dict[str, Callable[[Params, str, torch.device], Measured]] = {
    "input": _none,
    "prior": _prior,
    "prune": _none,
    "refine": _refine,
    "stage1": lambda params, entry, device: _training(params, entry, device, "stage1"),
    "stage2": lambda params, entry, device: _training(params, entry, device, "stage2"),
    "orbit": _orbit,
    "evaluate": _none,
}
