"""The paper's second refiner (Sec. 3.3, App. C): DeepFloyd IF, which diffuses pixels in two stages under T5's prompts.

A folder (or hub id) of a stage holds unet/ and scheduler/; the first also text_encoder/ and tokenizer/, the second
also image_noising_scheduler/. What their safety checkers and watermarks hold is not loaded.
"""

import gc
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from cad.config import ModelPaths
from cad.config.refine import DeepFloydSettings
from cad.errors import UserError
from cad.prior import ddim
from cad.prior.pictures import resize
from cad.prior.weights import check_source, load_network, load_plain

TOKENS = 77  # of a prompt; T5 takes more, IF was trained with as many


class PixelDiffusion:
    """One stage: a UNet that predicts noise and variance of pixels, and its schedule."""

    def __init__(self, unet: UNet2DConditionModel, scheduler: DDPMScheduler):
        self.unet = unet
        self.scheduler = scheduler

    @classmethod
    def load(
        cls, folder: Path | str, channels: int, device: torch.device, dtype: torch.dtype
    ) -> "PixelDiffusion":  # fmt: skip
        """Load a local folder or a hub id, frozen; UserError if broken or if its UNet takes other than `channels`."""
        unet = load_network(UNet2DConditionModel, folder, "unet", device, dtype)
        found = (unet.config.in_channels, unet.config.out_channels)
        if found != (channels, 6):
            raise UserError(
                f"{Path(folder) / 'unet'}: takes {found[0]} channels and gives {found[1]}, not {channels} and 6; set "
                "models.deepfloyd_stage1 to an IF-I and models.deepfloyd_stage2 to an IF-II folder or id"
            )
        return cls(unet, load_plain(DDPMScheduler, folder, "scheduler", "scheduler_config.json"))

    @property
    def resolution(self) -> int:
        """Side of the square images that the stage makes, pixels."""
        return self.unet.config.sample_size

    @torch.no_grad()
    def sdedit(
        self,
        images: Tensor,
        context: Tensor,
        null_context: Tensor,
        noise: Tensor,
        streams: ddim.NoiseStreams,
        strength: float,
        guidance: float,
        steps: int,
        beside: Tensor | None,
        noise_level: int | None,
    ) -> Tensor:
        """Images [B, 3, h, h] in [-1, 1] noised to `strength` (0 to 1) and denoised by DDPM under the prompt.

        context: [B, L, D], null_context: [1 or B, L, D]; noise: [B, 3, h, h]. Super-resolution also takes the enlarged
        picture `beside` [B, 3, h, h] and the time step to which it was noised.
        """
        times = ddim.time_steps(self.scheduler, steps, strength)
        if not times:
            return images
        contexts = torch.cat([null_context.expand_as(context), context]).to(self.unet.dtype)
        count, channels = images.shape[:2]
        labels = None if noise_level is None else torch.full((2 * count,), noise_level, device=images.device)

        def denoise(noisy: Tensor, time: int) -> Tensor:
            joined = noisy if beside is None else torch.cat([noisy, beside], dim=1)
            joined = torch.cat([joined, joined]).to(self.unet.dtype)
            output = self.unet(joined, time, encoder_hidden_states=contexts, class_labels=labels).sample
            null, conditional = output.to(noisy.dtype).chunk(2)
            guided = ddim.guide(conditional[:, :channels], null[:, :channels], guidance)
            return torch.cat([guided, conditional[:, channels:]], dim=1)  # the variance is the prompted branch's

        start = torch.full((count,), times[0], dtype=torch.long, device=images.device)
        noisy = ddim.add_noise(self.scheduler, images, noise, start)
        return ddim.ancestral_walk(denoise, self.scheduler, noisy, times, streams).clamp(-1, 1)


class DeepFloydRefiner:
    """Image to image at 64 px, then super-resolution image to image, with the empty prompt as the null branch."""

    def __init__(
        self,
        base: PixelDiffusion,
        upscaler: PixelDiffusion,
        noising: DDPMScheduler,
        contexts: dict[str, Tensor],
        settings: DeepFloydSettings,
        bf16: bool,
    ):
        self.base = base
        self.upscaler = upscaler
        self.noising = noising
        self.contexts = contexts
        self.settings = settings
        self.bf16 = bf16

    @classmethod
    def load(
        cls,
        models: ModelPaths,
        prompts: Sequence[str],
        settings: DeepFloydSettings,
        bf16: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "DeepFloydRefiner":
        """Encode `prompts`, which are all that it will be given, free T5, and load the two stages that `models` names.

        Raises UserError naming the part that is missing or broken.
        """
        low, high = str(models.deepfloyd_stage1), str(models.deepfloyd_stage2)
        contexts = encode_prompts(low, ["", *prompts], device, dtype)
        return cls(
            base=PixelDiffusion.load(low, 3, device, dtype),
            upscaler=PixelDiffusion.load(high, 6, device, dtype),
            noising=load_plain(DDPMScheduler, high, "image_noising_scheduler", "scheduler_config.json"),
            contexts=contexts,
            settings=settings,
            bf16=bf16,
        )

    @torch.no_grad()
    def refine(self, images: Tensor, prompts: Sequence[str], streams: ddim.NoiseStreams) -> Tensor:
        """Ancestral DDPM in both stages; images are resized to each stage's side and at the end back."""
        low, high = self.settings.stage1, self.settings.stage2
        context, null = torch.cat([self.contexts[prompt] for prompt in prompts]), self.contexts[""]
        with ddim.in_precision(images.device, self.bf16):
            small = resize(images, self.base.resolution)
            noise = streams.draw(small.shape[1:])
            small = self.base.sdedit(
                small, context, null, noise, streams, low.strength, low.guidance, low.steps, None, None
            )  # fmt: skip
            large = resize(images, self.upscaler.resolution)
            noise = streams.draw(large.shape[1:])
            beside = self._enlarge(small, streams)
            refined = self.upscaler.sdedit(
                large, context, null, noise, streams, high.strength, high.guidance, high.steps, beside, high.noise_level
            )
        return resize(refined, images.shape[-1])

    def _enlarge(self, small: Tensor, streams: ddim.NoiseStreams) -> Tensor:
        """Stage 1's picture at stage 2's side, bilinear with align_corners, noised to `noise_level`, as published."""
        side = self.upscaler.resolution
        large = nn.functional.interpolate(small, size=(side, side), mode="bilinear", align_corners=True)
        level = torch.full((len(small),), self.settings.stage2.noise_level, dtype=torch.long, device=small.device)
        return ddim.add_noise(self.noising, large, streams.draw(large.shape[1:]), level)


def encode_prompts(
    folder: Path | str, prompts: Iterable[str], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """T5's last hidden states [1, 77, D] of distinct prompts, each encoded alone; the encoder is freed at the end.

    Prompts are lowered and stripped, which is what IF's cleaning of captions does to plain words; longer ones are cut.
    """
    tokenizer = _load_tokenizer(folder)
    wide = torch.bfloat16 if dtype == torch.float16 else dtype  # T5 was trained in bfloat16 and overflows float16
    encoder = load_network(T5EncoderModel, folder, "text_encoder", device, wide)
    contexts = {prompt: _encode(tokenizer, encoder, prompt) for prompt in dict.fromkeys(prompts)}
    del encoder  # T5-XXL is larger than both UNets
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return contexts


@torch.no_grad()
def _encode(tokenizer: T5Tokenizer, encoder: T5EncoderModel, prompt: str) -> Tensor:
    tokens = tokenizer(
        [prompt.lower().strip()], padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).to(encoder.device)
    return encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state


def _load_tokenizer(folder: Path | str) -> T5Tokenizer:
    """T5's tokenizer; UserError for the published folder, spiece.model alone, where sentencepiece is not installed."""
    check_source(folder, "tokenizer/tokenizer_config.json")
    place = Path(folder) / "tokenizer"
    if find_spec("sentencepiece") is None and not (place / "tokenizer.json").is_file():
        raise UserError(f"{place}: needs sentencepiece to be read; run `pip install sentencepiece`")
    return load_plain(T5Tokenizer, folder, "tokenizer", "tokenizer_config.json")
