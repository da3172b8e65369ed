"""A longer training of the autoencoder's decoder alone: its latents stay as they are, and so do the models on them."""

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


def train_decoder(
    settings: AutoencoderSettings, data: Dataset, seed: int, weights: Path, work: Path, report: Callable[[str], None]
) -> None:
    """Sharpen the decoder of weights/autoencoder on fixed latents by weighted L1 and LPIPS, and renew its copies."""
    model = AutoencoderKL.from_pretrained(weights / "autoencoder").float()
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    model.to(memory_format=torch.channels_last)
    distance = load_lpips(weights / "lpips" / "alexnet.safetensors", torch.device("cpu"))

    def loss(step: int) -> Tensor:
        stream = generator(seed, "decoder", step)
        count = settings.decoder.batch
        images = data.pick(
            torch.randint(len(data), (count,), generator=stream), torch.randint(data.views, (count,), generator=stream)
        )
        with torch.no_grad():
            latents = model.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
        output = model.decode(latents).sample.float()
        exact = reconstruction_loss(output, images, settings.foreground_weight)
        return exact + settings.perceptual_weight * distance(output, images).mean()

    fit(model, loss, settings.decoder, work, report)
    save_decoder(model, weights)


def save_decoder(model: AutoencoderKL, weights: Path) -> None:
    """Write the autoencoder in float16 to weights/autoencoder and over its copies."""
    model.to(memory_format=torch.contiguous_format)
    model.half().save_pretrained(weights / "autoencoder")
    for user in USERS:
        if (weights / user / "vae").is_dir():
            shutil.copytree(weights / "autoencoder", weights / user / "vae", dirs_exist_ok=True)
