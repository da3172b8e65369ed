"""Training of the small Zero-1-to-3 and of the small text-guided refiner, on latents that are encoded once."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from cad.camera import relative_pose
from cad.errors import UserError
from cad.prior import latent_diffusion, zero123
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.zero123 import CCProjection, Zero123
from cad.seeding import generator, seed_for
from cad.toyworld.autoencoder import foreground
from cad.toyworld.clip import caption
from cad.toyworld.dataset import Dataset
from cad.toyworld.fit import fit, load_average, saved_step
from cad.toyworld.settings import ControlNetSettings, DiffusionSettings

Network = TypeVar("Network", bound=nn.Module)

DROP = 0.05  # share of examples without embedding, without both, without concatenated latent (FACTS: Zero-1-to-3)
DROP_PROMPT = 0.1  # share of prompts replaced by the empty one, as in Stable Diffusion


def build_unet(
    settings: DiffusionSettings, side: int, in_channels: int, out_channels: int, context: int, seed: int
) -> UNet2DConditionModel:
    """A UNet2DConditionModel with fresh weights drawn from the seed."""
    down = tuple("CrossAttnDownBlock2D" if on else "DownBlock2D" for on in settings.attention)
    up = tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(settings.attention))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=side,
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=tuple(settings.channels),
            down_block_types=down,
            up_block_types=up,
            layers_per_block=settings.layers,
            attention_head_dim=settings.heads,
            cross_attention_dim=context,
            norm_num_groups=16,
        )


def build_scheduler() -> DDIMScheduler:
    """The published schedule; v-prediction [ours], under which a small model learns colours sooner."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def frozen(network: Network) -> Network:
    """The network in evaluation mode, float32, without gradients."""
    return network.float().eval().requires_grad_(False)


def warm_start(network: nn.Module, folder: Path, work: Path, report: Callable[[str], None]) -> None:
    """Without work in progress, go on from weights of an earlier training in `folder`; delete them to start anew.

    Says so by `report`. Raises UserError for weights of another architecture.
    """
    path = folder / "diffusion_pytorch_model.safetensors"
    if saved_step(work) > 0 or not path.is_file():
        return
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except RuntimeError as fault:
        raise UserError(f"{path}: is of another architecture than the settings; delete {folder.parent}") from fault
    report(f"{work.name}: goes on from {folder}")


def encoder_digest(vae: AutoencoderKL) -> str:
    """SHA-256 of all that makes latents, so that those of another encoder, as before `sharpen`, are encoded anew."""
    checksum = hashlib.sha256()
    for part in (vae.encoder, vae.quant_conv):
        for value in part.state_dict().values():
            checksum.update(value.half().numpy().tobytes())
    return checksum.hexdigest()


def encode_views(vae: AutoencoderKL, data: Dataset, work: Path) -> Tensor:
    """Latent modes of every view, unscaled, float16 [I, V, 4, h, w]; kept in `work` under the encoder's digest."""
    path = work / f"latents-{encoder_digest(vae)[:16]}.safetensors"
    if not path.is_file():
        encoded = []
        with torch.no_grad():
            for start in range(0, len(data), 16):
                subjects = torch.arange(start, min(start + 16, len(data))).repeat_interleave(data.views)
                views = torch.arange(data.views).repeat(len(subjects) // data.views)
                mode = vae.encode(data.pick(subjects, views)).latent_dist.mode().half()
                encoded.append(mode.unflatten(0, (-1, data.views)))
        work.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({"latents": torch.cat(encoded)}, partial)
        partial.replace(path)
    return load_file(path)["latents"]


def importance(data: Dataset, subjects: Tensor, views: Tensor, side: int, weight: float) -> Tensor:
    """Weights [B, 1, side, side] of latent pixels, 1 in the mean: `weight` times more where a view shows its object.

    Most of a picture is white, which is soon learnt; the object's pixels would be a minority of the loss [ours].
    """
    shown = nn.functional.adaptive_max_pool2d(foreground(data.pick(subjects, views)).float(), side)
    weights = 1 + (weight - 1) * shown
    return weights / weights.mean()


def draw_timesteps(
    count: int, settings: DiffusionSettings | ControlNetSettings, length: int, stream: torch.Generator
) -> Tensor:
    """Timesteps [count], uniform over the schedule of `length` but for `low_noise_share` of them below `low_noise`.

    A refiner starts from half-noised pictures: what it never meets deserves few of its examples [ours].
    """
    low = torch.rand(count, generator=stream) < settings.low_noise_share
    return (torch.rand(count, generator=stream) * torch.where(low, settings.low_noise * length, length)).long()


def _embed_references(model: Zero123, data: Dataset) -> Tensor:
    """Image embeddings of every reference view, float32 [I, references, D]."""
    found = []
    for start in range(0, len(data), 32):
        subjects = torch.arange(start, min(start + 32, len(data))).repeat_interleave(data.references)
        views = torch.arange(data.references).repeat(len(subjects) // data.references)
        embedding, _ = model.condition(data.pick(subjects, views))
        found.append(embedding.unflatten(0, (-1, data.references)))
    return torch.cat(found)


def build_zero123(settings: DiffusionSettings, weights: Path, seed: int) -> Zero123:
    """A Zero-1-to-3 of the trained autoencoder and image tower in `weights`, its UNet and projection fresh."""
    vae = frozen(AutoencoderKL.from_pretrained(weights / "autoencoder"))
    encoder = frozen(CLIPVisionModelWithProjection.from_pretrained(weights / "clip"))
    width = encoder.config.projection_dim
    side = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    channels = vae.config.latent_channels
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "cc-projection"))
        projection = CCProjection(width + 4, width)
    return Zero123(
        vae=vae,
        unet=build_unet(settings, side, 2 * channels, channels, width, seed_for(seed, "zero123-unet")),
        image_encoder=encoder,
        feature_extractor=CLIPImageProcessor.from_pretrained(weights / "clip"),
        cc_projection=projection,
        scheduler=build_scheduler(),
    )


def train_zero123(
    settings: DiffusionSettings,
    data: Dataset,
    seed: int,
    weights: Path,
    work: Path,
    out: Path,
    report: Callable[[str], None],
) -> None:
    """Train on (reference near the front, any other view of the same instance); write `out` in float16."""
    model = build_zero123(settings, weights, seed)
    warm_start(model.unet, out / "unet", work, report)
    warm_start(model.cc_projection, out / "cc_projection", work, report)
    latents = encode_views(model.vae, data, work.parent)
    embeddings = _embed_references(model, data)
    scale = model.vae.config.scaling_factor

    def loss(step: int) -> Tensor:
        stream = generator(seed, "zero123", step)
        count = settings.fit.batch
        subjects = torch.randint(len(data), (count,), generator=stream)
        reference = torch.randint(data.references, (count,), generator=stream)
        # Any view but the reference itself; the other reference counts as a target near the front.
        target = (reference + 1 + torch.randint(data.views - 1, (count,), generator=stream)) % data.views
        poses = relative_pose(
            data.azimuth[subjects, target],
            data.polar[subjects, target],
            data.azimuth[subjects, reference],
            data.polar[subjects, reference],
        )
        t = draw_timesteps(count, settings, model.scheduler.config.num_train_timesteps, stream)
        clean = latents[subjects, target].float() * scale
        drops = zero123.draw_drops(count, DROP, DROP, DROP, stream)
        noise = torch.randn(clean.shape, generator=stream)
        concat = latents[subjects, reference].float()
        embedding = embeddings[subjects, reference]
        weights = importance(data, subjects, target, clean.shape[-1], settings.foreground_weight)
        return zero123.training_loss(model, clean, concat, embedding, poses.float(), t, noise, *drops, weights)

    fit(_trained(model), loss, settings.fit, work, report)
    save_zero123(model, out)


def _trained(model: Zero123) -> nn.ModuleDict:
    return nn.ModuleDict({"unet": model.unet, "cc_projection": model.cc_projection})


def save_zero123(model: Zero123, out: Path) -> None:
    """Write the published layout in float16."""
    for network in (model.vae, model.unet, model.image_encoder, model.cc_projection):
        network.half()
    model.save(out)


def export_zero123(settings: DiffusionSettings, seed: int, weights: Path, work: Path, out: Path) -> None:
    """Write the moving average of a training that may still be running."""
    model = build_zero123(settings, weights, seed)
    load_average(work, _trained(model))
    save_zero123(model, out)


def build_refiner(settings: DiffusionSettings, weights: Path, seed: int) -> LatentDiffusion:
    """A text-guided latent diffusion model of the trained autoencoder and text tower, its UNet fresh."""
    vae = frozen(AutoencoderKL.from_pretrained(weights / "autoencoder"))
    text = frozen(CLIPTextModel.from_pretrained(weights / "clip"))
    side = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    channels = vae.config.latent_channels
    unet = build_unet(settings, side, channels, channels, text.config.hidden_size, seed_for(seed, "refiner-unet"))
    return LatentDiffusion(vae, unet, text, CLIPTokenizer.from_pretrained(weights / "clip"), build_scheduler())


def draw_captions(data: Dataset, subjects: Tensor, views: Tensor, stream: torch.Generator) -> list[str]:
    """A caption of each of these views, from generic to specific, some of them empty: the null prompt."""
    draws = torch.rand(len(subjects), 3, generator=stream)
    # Generic captions more often than in CLIP's training, so that "a toy robot" yields robots of many colours.
    draws[:, 0] = 0.4 + 0.6 * draws[:, 0]
    return [
        ""
        if draw[2] < DROP_PROMPT
        else caption(data.instances[i], data.azimuth[i, v].item(), data.polar[i, v].item(), draw)
        for i, v, draw in zip(subjects.tolist(), views.tolist(), draws, strict=True)
    ]


def train_refiner(
    settings: DiffusionSettings,
    data: Dataset,
    seed: int,
    weights: Path,
    work: Path,
    out: Path,
    report: Callable[[str], None],
) -> None:
    """Train on views with captions from generic to specific and their directions; write `out` in float16."""
    model = build_refiner(settings, weights, seed)
    warm_start(model.unet, out / "unet", work, report)
    latents = encode_views(model.vae, data, work.parent)
    scale = model.vae.config.scaling_factor

    def loss(step: int) -> Tensor:
        stream = generator(seed, "refiner", step)
        count = settings.fit.batch
        subjects = torch.randint(len(data), (count,), generator=stream)
        views = torch.randint(data.views, (count,), generator=stream)
        texts = draw_captions(data, subjects, views, stream)
        t = draw_timesteps(count, settings, model.scheduler.config.num_train_timesteps, stream)
        clean = latents[subjects, views].float() * scale
        noise = torch.randn(clean.shape, generator=stream)
        weights = importance(data, subjects, views, clean.shape[-1], settings.foreground_weight)
        return latent_diffusion.training_loss(model, clean, model.embed(texts), t, noise, weights)

    fit(nn.ModuleDict({"unet": model.unet}), loss, settings.fit, work, report)
    save_refiner(model, out)


def save_refiner(model: LatentDiffusion, out: Path) -> None:
    """Write the Stable Diffusion layout in float16."""
    for network in (model.vae, model.unet, model.text_encoder):
        network.half()
    model.save(out)


def export_refiner(settings: DiffusionSettings, seed: int, weights: Path, work: Path, out: Path) -> None:
    """Write the moving average of a training that may still be running."""
    model = build_refiner(settings, weights, seed)
    load_average(work, nn.ModuleDict({"unet": model.unet}))
    save_refiner(model, out)
