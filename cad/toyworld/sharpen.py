"""A longer training of the autoencoder whose latents hardly move, so that the models on them stay valid."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from cad.seeding import generator
from cad.toyworld.autoencoder import reconstruction_loss
from cad.toyworld.dataset import Dataset
from cad.toyworld.fit import fit
from cad.toyworld.settings import AutoencoderSettings
from cad.train.perceptual import load_lpips

USERS = ("zero123", "refiner")  # folders of weights/ that hold a copy of the autoencoder


def sharpen_autoencoder(
    settings: AutoencoderSettings, data: Dataset, seed: int, weights: Path, work: Path, report: Callable[[str], None]
) -> None:
    """Go on with weights/autoencoder by weighted errors and LPIPS, and renew it and its copies.

    `latent_weight` ties its latents to those of the weights that it starts from: Zero-1-to-3 and refiner were trained
    on them, and meet slightly better ones ([ours]: with a fixed encoder edges stay as blurred as it made them).
    """
    origin = _origin(weights, work)
    model = AutoencoderKL.from_pretrained(origin).float()
    first = AutoencoderKL.from_pretrained(origin).float().requires_grad_(False)
    for network in (model, first):
        network.to(memory_format=torch.channels_last)
    distance = load_lpips(weights / "lpips" / "alexnet.safetensors", torch.device("cpu"))
    scale = model.config.scaling_factor

    def loss(step: int) -> Tensor:
        stream = generator(seed, "sharpen", step)
        count = settings.sharpen.batch
        images = data.pick(
            torch.randint(len(data), (count,), generator=stream), torch.randint(data.views, (count,), generator=stream)
        )
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = first.encode(images).latent_dist.mode()
        latents = model.encode(images).latent_dist.mode()
        output = model.decode(latents).sample.float()
        drift = ((latents - wanted).float() * scale).square().mean()
        exact = reconstruction_loss(output, images, settings.foreground_weight, settings.squared_weight)
        with torch.autocast("cpu", enabled=False):  # its distances between near pictures are small differences
            perceived = distance(output, images).mean()
        return exact + settings.perceptual_weight * perceived + settings.latent_weight * drift

    fit(model, loss, settings.sharpen, work, report)
    save_sharpened(model, weights)


def _origin(weights: Path, work: Path) -> Path:
    """The weights that the training began from, copied to `work` when it begins, so that a resumed one has them."""
    origin = work / "origin"
    if not origin.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        partial = work / "origin.partial"
        shutil.copytree(weights / "autoencoder", partial, dirs_exist_ok=True)
        partial.rename(origin)
    return origin


def save_sharpened(model: AutoencoderKL, weights: Path) -> None:
    """Write the autoencoder in float16 to weights/autoencoder and in the place of its copies, each by renames."""
    model.to(memory_format=torch.contiguous_format)
    model.half()
    for place in (weights / "autoencoder", *(weights / user / "vae" for user in USERS)):
        partial, former = place.with_name(f".{place.name}"), place.with_name(f".{place.name}.old")
        if former.is_dir() and not place.is_dir():  # a kill between the two renames below
            former.rename(place)
        if not place.is_dir():
            continue
        for left in (partial, former):
            shutil.rmtree(left, ignore_errors=True)
        model.save_pretrained(partial)
        place.rename(former)
        partial.rename(place)
        shutil.rmtree(former)
