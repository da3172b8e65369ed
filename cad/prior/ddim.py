"""Denoising diffusion: the training target, guided DDIM and DDPM walks, and noise that depends on no batch.

The scheduler (schedule, prediction type, time steps) is diffusers' DDIMScheduler or, for models that predict their
variance, DDPMScheduler, configured by the checkpoint.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

Denoiser = Callable[[Tensor, int], Tensor]  # (noisy [B, C, h, w], time step) -> what the network predicts, same shape
StepNoise = Callable[[int], Tensor]  # index of the DDIM step -> noise [B, C, h, w]; called in order, each step once


class NoiseStreams:
    """One generator per image of a batch, so that an image's noise is the same in every batch (DESIGN promise 1)."""

    def __init__(self, generators: Sequence[torch.Generator], device: torch.device, dtype: torch.dtype):
        self.generators = list(generators)
        self.device = device
        self.dtype = dtype

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next standard normal noise of every stream, [B, *shape], drawn on the CPU in float32."""
        draws = [torch.randn(shape, generator=stream) for stream in self.generators]
        return torch.stack(draws).to(self.device, self.dtype)


def in_precision(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    """A context in which networks compute in bfloat16, or as they are; the walk itself keeps its precision."""
    return _autocast(device, bf16)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context that suspends `in_precision`: between 0.996 and 1 bfloat16 has nothing, near-white would be white."""
    return _autocast(device, False)


def _autocast(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """Autocasting to bfloat16, or none; the meta device, on which models have shapes alone, knows no autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: unconditional + guidance * (conditional - unconditional)."""
    return unconditional + guidance * (conditional - unconditional)


def time_steps(scheduler: DDIMScheduler | DDPMScheduler, steps: int, strength: float) -> list[int]:
    """The noisiest-first time steps of the last `strength` (0 to 1) of a walk of `steps` steps.

    SDEdit starts at round(steps * strength) steps before the end [ours: diffusers truncates, so that 0.29 of 100
    gives 28]. Strength 1 is the whole walk, strength 0 an empty one.
    """
    scheduler.set_timesteps(steps)
    kept = min(round(steps * strength), steps)
    return [int(t) for t in scheduler.timesteps[steps - kept :]]


def walk(
    denoise: Denoiser,
    scheduler: DDIMScheduler,
    latents: Tensor,
    times: Sequence[int],
    eta: float,
    step_noise: StepNoise | None,
) -> Tensor:
    """Reverse denoising of `latents` [B, C, h, w] through `times` (from `time_steps`), by DDIM (paper's ref. [88]).

    eta 0 is deterministic, eta 1 as noisy as DDPM; eta above 0 needs `step_noise` (ValueError without it).
    """
    if eta > 0 and step_noise is None:
        raise ValueError("DDIM with eta above 0 needs step_noise: the scheduler would draw from the global generator")
    for index, time in enumerate(times):
        noise = step_noise(index) if step_noise is not None else None
        latents = scheduler.step(
            denoise(latents, time), time, latents, eta=eta, variance_noise=noise, return_dict=False
        )[0]
    return latents


def ancestral_walk(
    denoise: Denoiser, scheduler: DDPMScheduler, images: Tensor, times: Sequence[int], streams: NoiseStreams
) -> Tensor:
    """Reverse denoising of `images` [B, C, h, w] through `times` (from `time_steps`), by DDPM; noise from `streams`.

    `denoise` predicts [B, 2C, h, w], noise and variance, where the scheduler's variance is learned; thresholding is as
    the scheduler is configured.
    """
    for time in times:
        images = scheduler.step(
            denoise(images, time), time, images, generator=streams.generators, return_dict=False
        )[0]  # fmt: skip
    return images


def add_noise(scheduler: DDIMScheduler | DDPMScheduler, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """sqrt(abar_t) latents + sqrt(1 - abar_t) noise; times: [B] int64."""
    return scheduler.add_noise(latents, noise, times)


def weighted_error(predicted: Tensor, wanted: Tensor, importance: Tensor) -> Tensor:
    """Mean squared error [B, C, h, w], a scalar, with pixels weighted by `importance` [B, 1, h, w]."""
    return (importance * (predicted - wanted).square()).mean()


def target(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What the network should predict, [B, C, h, w]: the noise, or v = sqrt(abar) noise - sqrt(1 - abar) latents.

    Raises ValueError for any other prediction type in the scheduler's config.
    """
    kind = scheduler.config["prediction_type"]
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, times)
    raise ValueError(f"prediction_type {kind!r} has no training target here")
