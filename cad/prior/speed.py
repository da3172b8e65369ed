"""How fast this machine evaluates the diffusion models: a few evaluations of each UNet, for `cad plan --measure`."""

import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from cad.config import ModelPaths, PriorSettings, RefineSettings
from cad.config.kinds import is_plugin
from cad.memory import memory_named
from cad.prior.ddim import in_precision
from cad.prior.weights import load_network
from cad.seeding import generator

CALLS = 3  # timed; one before them warms up
PROMPT = 77  # tokens of a text condition; Zero-1-to-3's is one


class Speed(NamedTuple):
    """UNet evaluations of single images per second, and the most memory taken, bytes (on a CPU the process')."""

    rate: float
    peak: int


def measure_prior(settings: PriorSettings, models: ModelPaths, device: torch.device) -> dict[str, Speed]:
    """Zero-1-to-3's UNet at the sampling's batch, with and without condition at once; nothing of a plug-in."""
    if is_plugin(settings.kind):
        return {}
    dtype = getattr(torch, settings.precision)
    unet = load_network(UNet2DConditionModel, models.zero123, "unet", device, dtype)
    return {"zero123": _measure(unet, None, 2 * settings.batch, 1, settings.bf16, device)}


def measure_refine(settings: RefineSettings, models: ModelPaths, device: torch.device) -> dict[str, Speed]:
    """The refiner's UNets at its batch, a ControlNet beside its UNet; nothing where it is off or a plug-in's."""
    if not settings.enabled or is_plugin(settings.kind):
        return {}
    found = {}
    dtype = getattr(torch, settings.precision)
    names = ("deepfloyd_stage1", "deepfloyd_stage2") if settings.kind == "deepfloyd-if" else ("refiner",)
    for name in names:
        unet = load_network(UNet2DConditionModel, str(getattr(models, name)), "unet", device, dtype)
        beside = None
        if settings.kind == "controlnet-depth":
            beside = load_network(ControlNetModel, str(models.controlnet), "", device, dtype)
        found[name] = _measure(unet, beside, 2 * settings.batch, PROMPT, settings.bf16, device)
    return found


@torch.no_grad()
def _measure(unet: Any, controlnet: Any | None, batch: int, tokens: int, bf16: bool, device: torch.device) -> Speed:
    """Time calls on noise of the shapes that the pipeline feeds; loading does not count."""
    config, stream = unet.config, generator("speed")
    width = config.encoder_hid_dim or config.cross_attention_dim
    side = config.sample_size
    noisy = torch.randn(batch, config.in_channels, side, side, generator=stream).to(device, unet.dtype)
    context = torch.randn(batch, tokens, width, generator=stream).to(device, unet.dtype)
    labels = torch.zeros(batch, dtype=torch.long, device=device) if config.class_embed_type else None

    def call() -> None:
        beside = {}
        if controlnet is not None:
            # A ControlNet for latents sees its picture at eight times their side.
            factor = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
            picture = noisy.new_zeros(batch, controlnet.config.conditioning_channels, factor * side, factor * side)
            down, middle = controlnet(noisy, 1, context, picture, return_dict=False)
            beside = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        unet(noisy, 1, encoder_hidden_states=context, class_labels=labels, **beside)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with memory_named(f"{batch} images at once"), in_precision(device, bf16):
        seconds = _time(call, device)
    if device.type == "cuda":
        return Speed(batch / seconds, torch.cuda.max_memory_allocated())
    return Speed(batch / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _time(call: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call, the mean of `CALLS` after a first one."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / CALLS
