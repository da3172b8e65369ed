"""Training of the small AutoencoderKL, from 64^2 pixels to 16 x 16 x 4, shared by both diffusion models."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from cad.seeding import generator, seed_for
from cad.toyworld.dataset import Dataset
from cad.toyworld.fit import fit
from cad.toyworld.settings import AutoencoderSettings

WHITE = 0.96  # in [-1, 1]: brighter in all three channels is background
LATENT_CHANNELS = 4


def build_autoencoder(settings: AutoencoderSettings, resolution: int, seed: int) -> AutoencoderKL:
    """An AutoencoderKL with fresh weights drawn from the seed."""
    levels = len(settings.channels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            sample_size=resolution,
            latent_channels=LATENT_CHANNELS,
            block_out_channels=tuple(settings.channels),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=1,
            norm_num_groups=8,
        )


def foreground(images: Tensor) -> Tensor:
    """Pixels that are not background, bool [B, 1, H, W] of images [B, 3, H, W] in [-1, 1]."""
    return (images < WHITE).any(1, keepdim=True)


def reconstruction_loss(output: Tensor, images: Tensor, weight: float, squared_weight: float) -> Tensor:
    """Mean absolute error, and `squared_weight` times the squared one, with foreground pixels weighted.

    On mostly white pictures a plain mean learns no colours; the square is for edges, where errors are large.
    """
    importance = torch.where(foreground(images), weight, 1.0)
    error = (output.float() - images).abs()
    return (importance * (error + squared_weight * error.square())).mean() / importance.mean()


def train_autoencoder(
    settings: AutoencoderSettings, data: Dataset, seed: int, work: Path, out: Path, report: Callable[[str], None]
) -> None:
    """Train, set `scaling_factor` to one over the latents' standard deviation, and write `out` in float16."""
    model = build_autoencoder(settings, data.images.shape[2], seed_for(seed, "autoencoder"))
    model.to(memory_format=torch.channels_last)  # a quarter faster on a CPU under bfloat16

    def loss(step: int) -> Tensor:
        stream = generator(seed, "autoencoder", step)
        count = settings.fit.batch
        images = data.pick(
            torch.randint(len(data), (count,), generator=stream), torch.randint(data.views, (count,), generator=stream)
        )
        posterior = model.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=stream)
        output = model.decode(posterior.mean + posterior.std * noise).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        exact = reconstruction_loss(output, images, settings.foreground_weight, settings.squared_weight)
        return exact + settings.kl_weight * divergence

    fit(model, loss, settings.fit, work, report)
    save_autoencoder(model, data, seed, out)


@torch.no_grad()
def save_autoencoder(model: AutoencoderKL, data: Dataset, seed: int, out: Path) -> None:
    """Measure the latents' scale on 512 training views and write the model in float16."""
    stream = generator(seed, "autoencoder-scale")
    subjects = torch.randint(len(data), (512,), generator=stream)
    views = torch.randint(data.views, (512,), generator=stream)
    latents = torch.cat(
        [
            model.encode(data.pick(s, v)).latent_dist.mode()
            for s, v in zip(subjects.split(64), views.split(64), strict=True)
        ]
    )
    model.to(memory_format=torch.contiguous_format)
    model.register_to_config(scaling_factor=1 / latents.std().item())
    model.half().save_pretrained(out)
