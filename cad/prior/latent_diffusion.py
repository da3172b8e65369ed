"""A text-guided latent diffusion model as refiner (Sec. 3.3), in the Stable Diffusion folder layout.

A folder (or hub id) holds vae/, unet/, text_encoder/, tokenizer/, scheduler/.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from cad.prior import ddim
from cad.prior.weights import load_network, load_plain

# (noisy latents, time step, contexts) -> what a ControlNet adds, as arguments of the UNet; all of one batch
Control = Callable[[Tensor, int | Tensor, Tensor], dict[str, object]]


class LatentDiffusion:
    """The networks of a latent diffusion model and SDEdit with them; `unet` is the trained one."""

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: DDIMScheduler,
    ):
        self.vae = vae
        self.unet = unet
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.scheduler = scheduler

    @classmethod
    def load(cls, folder: Path | str, device: torch.device, dtype: torch.dtype) -> "LatentDiffusion":
        """Load a local folder or a hub id, frozen; raises UserError naming the part that is missing or broken.

        The VAE is in float32 whatever `dtype`: in half precision near-white would be white.
        """
        return cls(
            vae=load_network(AutoencoderKL, folder, "vae", device, torch.float32),
            unet=load_network(UNet2DConditionModel, folder, "unet", device, dtype),
            text_encoder=load_network(CLIPTextModel, folder, "text_encoder", device, dtype),
            tokenizer=load_plain(CLIPTokenizer, folder, "tokenizer", "tokenizer_config.json"),
            scheduler=load_plain(DDIMScheduler, folder, "scheduler", "scheduler_config.json"),
        )

    def save(self, folder: Path | str) -> None:
        """Write the folder that `load` reads, with a model_index.json that diffusers' own pipelines read."""
        folder = Path(folder)
        index: dict[str, object] = {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
        }
        for name in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
            part = getattr(self, name)
            part.save_pretrained(folder / name)
            index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image's latent."""
        side = self.unet.config.sample_size
        return (self.unet.config.out_channels, side, side)

    @property
    def resolution(self) -> int:
        """Side of the square images that the model was made for, pixels."""
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Tensor:
        """The text encoder's last hidden states [B, L, D] of prompts, padded and cut to its longest input."""
        length = self.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        # No attention mask, as in Stable Diffusion: attention is causal and the padding is part of the context.
        return self.text_encoder(tokens.to(self.text_encoder.device)).last_hidden_state

    def embed_each(self, prompts: Iterable[str]) -> dict[str, Tensor]:
        """The contexts [1, L, D] of distinct prompts, each encoded alone, so that none depends on the others."""
        return {prompt: self.embed([prompt]) for prompt in dict.fromkeys(prompts)}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The VAE's mode times its scaling factor, [B, 4, h, w] of images [B, 3, H, W] in [-1, 1]."""
        mode = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode()
        return mode.to(self.vae.dtype) * self.vae.config.scaling_factor  # also under autocast

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], float32, of scaled latents [B, 4, h, w]; never under autocast."""
        with ddim.full_precision(latents.device):
            return self.vae.decode(latents / self.vae.config.scaling_factor).sample.float().clamp(-1, 1)

    @torch.no_grad()
    def sdedit(
        self,
        images: Tensor,
        context: Tensor,
        null_context: Tensor,
        noise: Tensor,
        step_noise: ddim.StepNoise | None,
        strength: float,
        guidance: float,
        steps: int,
        control: Control | None = None,
    ) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] noised to `strength` (0 to 1) and denoised under the prompt (Sec. 3.3).

        context: [B, L, D], null_context: [1 or B, L, D] from `embed`; noise: [B, 4, h, w]. Without `step_noise` DDIM is
        deterministic (eta 0, as in diffusers' image-to-image pipelines), with it ancestral (eta 1). `control` guides
        both branches.
        """
        latents = self.encode(images)
        times = ddim.time_steps(self.scheduler, steps, strength)
        if not times:
            return self.decode(latents)
        contexts = torch.cat([null_context.expand_as(context), context])

        def predict(noisy: Tensor, time: int, context: Tensor) -> Tensor:
            added = control(noisy, time, context) if control is not None else {}
            joined = noisy.to(self.unet.dtype)
            output = self.unet(joined, time, encoder_hidden_states=context.to(joined), **added).sample
            return output.to(noisy.dtype)  # also under autocast

        def denoise(noisy: Tensor, time: int) -> Tensor:
            if guidance == 1:  # the null prediction has no weight: half the work
                return predict(noisy, time, context)
            null, conditional = predict(torch.cat([noisy, noisy]), time, contexts).chunk(2)
            return ddim.guide(conditional, null, guidance)

        start = torch.full((len(latents),), times[0], dtype=torch.long, device=latents.device)
        noisy = ddim.add_noise(self.scheduler, latents, noise.to(latents), start)
        eta = 0.0 if step_noise is None else 1.0
        return self.decode(ddim.walk(denoise, self.scheduler, noisy, times, eta, step_noise))


def training_loss(
    model: LatentDiffusion,
    latents: Tensor,
    context: Tensor,
    t: Tensor,
    noise: Tensor,
    importance: Tensor,
    control: Control | None = None,
) -> Tensor:
    """Weighted mean squared error of the UNet's prediction, a scalar; gradients reach `unet` and through `control`.

    latents: [B, 4, h, w], already scaled (`encode`); context: [B, L, D] (`embed`; a dropped prompt is embed([""]), the
    null that `sdedit` is given); t: [B] int64; noise: [B, 4, h, w]; importance: [B, 1, h, w] weights of the latents'
    pixels, 1 in the mean.
    """
    noisy = ddim.add_noise(model.scheduler, latents, noise, t)
    added = control(noisy, t, context) if control is not None else {}
    predicted = model.unet(noisy, t, encoder_hidden_states=context, **added).sample
    return ddim.weighted_error(predicted, ddim.target(model.scheduler, latents, noise, t), importance)
