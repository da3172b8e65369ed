"""Training of the small ControlNet: how the small refiner is steered by estimated depth."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from cad.prior import latent_diffusion
from cad.prior.controlnet import controlled
from cad.prior.depth import DepthEstimator
from cad.prior.latent_diffusion import LatentDiffusion
from cad.seeding import generator, seed_for
from cad.toyworld.dataset import Dataset
from cad.toyworld.diffusion import draw_captions, draw_timesteps, encode_views, importance
from cad.toyworld.fit import fit
from cad.toyworld.settings import ControlNetSettings

CPU = torch.device("cpu")


def build_controlnet(base: LatentDiffusion, settings: ControlNetSettings, seed: int) -> ControlNetModel:
    """A ControlNet that starts as the copy of the refiner's encoder, behind zero convolutions.

    Its picture encoder halves the side as often as the VAE does.
    """
    levels = len(base.vae.config.block_out_channels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ControlNetModel.from_unet(
            base.unet, conditioning_embedding_out_channels=tuple(settings.width * 2**k for k in range(levels))
        )


def train_controlnet(
    settings: ControlNetSettings,
    data: Dataset,
    seed: int,
    weights: Path,
    work: Path,
    out: Path,
    report: Callable[[str], None],
) -> None:
    """Train on views, captions and the depth that the trained estimator sees in them; write `out` in float16.

    The refiner itself stays as it is; the loss is its own.
    """
    base = LatentDiffusion.load(weights / "refiner", CPU, torch.float32)
    estimator = DepthEstimator.load(weights / "depth", CPU)
    controlnet = build_controlnet(base, settings, seed_for(seed, "controlnet"))
    latents = encode_views(base.vae, data, work.parent)
    scale, length = base.vae.config.scaling_factor, base.scheduler.config.num_train_timesteps

    def loss(step: int) -> Tensor:
        stream = generator(seed, "controlnet", step)
        count = settings.fit.batch
        subjects = torch.randint(len(data), (count,), generator=stream)
        views = torch.randint(data.views, (count,), generator=stream)
        texts = draw_captions(data, subjects, views, stream)
        t = draw_timesteps(count, settings, length, stream)
        clean = latents[subjects, views].float() * scale
        noise = torch.randn(clean.shape, generator=stream)
        weights = importance(data, subjects, views, clean.shape[-1], settings.foreground_weight)
        depth = estimator.estimate(data.pick(subjects, views), data.images.shape[2])
        control = controlled(controlnet, depth, 1.0)
        return latent_diffusion.training_loss(base, clean, base.embed(texts), t, noise, weights, control)

    fit(nn.ModuleDict({"controlnet": controlnet}), loss, settings.fit, work, report)
    controlnet.half().save_pretrained(out)
