"""Zero-1-to-3, the view-conditioned diffusion prior of Sec. 3.3, in the layout of its published diffusers conversions.

A folder (or hub id) holds vae/, unet/, image_encoder/, feature_extractor/, cc_projection/, scheduler/. Two of the
published conversions keep the projection in clip_camera_projection/ under other names; both are read.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from cad.errors import UserError
from cad.prior import ddim
from cad.prior.weights import load_network, load_plain, local_folder

POSE = 4  # numbers of a relative pose beside the image embedding


class CCProjection(ModelMixin, ConfigMixin):
    """The linear map from image embedding and relative pose to the UNet's cross-attention context.

    The defaults are the published size: the conversions' config.json does not always hold it.
    """

    @register_to_config
    def __init__(self, in_channel: int = 772, out_channel: int = 768):
        super().__init__()
        self.projection = nn.Linear(in_channel, out_channel)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_channel] to [..., out_channel]."""
        return self.projection(x)


class CLIPCameraProjection(ModelMixin, ConfigMixin):
    """The same map as two of the published conversions store it: other names, and sizes given by the embedding's."""

    @register_to_config
    def __init__(self, embedding_dim: int = 768, additional_embeddings: int = POSE):
        super().__init__()
        self.proj = nn.Linear(embedding_dim + additional_embeddings, embedding_dim)

    def plain(self) -> CCProjection:
        """The projection under the names that this project uses and writes."""
        projection = CCProjection(self.proj.in_features, self.proj.out_features)
        projection.projection = self.proj
        return projection.eval()


class Zero123:
    """The networks of Zero-1-to-3 and what is computed with them; `unet` and `cc_projection` are the trained ones."""

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        image_encoder: CLIPVisionModelWithProjection,
        feature_extractor: CLIPImageProcessor,
        cc_projection: CCProjection,
        scheduler: DDIMScheduler,
    ):
        self.vae = vae
        self.unet = unet
        self.image_encoder = image_encoder
        self.feature_extractor = feature_extractor
        self.cc_projection = cc_projection
        self.scheduler = scheduler
        self.precision = next((parameter.dtype for parameter in unet.parameters()), torch.float32)
        self.lent: torch.device | None = None  # where parts compute that otherwise stay in the CPU's memory

    @classmethod
    def load(cls, folder: Path | str, device: torch.device, dtype: torch.dtype) -> "Zero123":
        """Load a local folder or a hub id, frozen; raises UserError naming the part that is missing or broken.

        UNet and image encoder compute in `dtype`. The VAE stays in float32, for half precision rounds near-white to
        white, and so does the projection, for bfloat16 would turn a pose by up to 0.2 degrees; both are small.
        """
        whole = torch.float32
        unet = load_network(UNet2DConditionModel, folder, "unet", device, dtype)
        model = cls(
            vae=load_network(AutoencoderKL, folder, "vae", device, whole),
            unet=unet,
            image_encoder=load_network(CLIPVisionModelWithProjection, folder, "image_encoder", device, dtype),
            feature_extractor=load_plain(CLIPImageProcessor, folder, "feature_extractor", "preprocessor_config.json"),
            cc_projection=_load_projection(folder, device),
            scheduler=load_plain(DDIMScheduler, folder, "scheduler", "scheduler_config.json"),
        )
        model._check(folder)
        return model

    def _check(self, folder: Path | str) -> None:
        """Refuse parts that do not make a Zero-1-to-3, e.g. a folder of plain Stable Diffusion."""
        latent, unet, projection = self.vae.config.latent_channels, self.unet.config, self.cc_projection.config
        embedding = self.image_encoder.config.projection_dim
        for part, what, found, wanted in (
            ("unet", "in_channels", unet.in_channels, 2 * latent),
            ("unet", "out_channels", unet.out_channels, latent),
            ("cc_projection", "input", projection.in_channel, embedding + POSE),
            ("cc_projection", "output", projection.out_channel, unet.cross_attention_dim),
        ):
            if found != wanted:
                raise UserError(
                    f"{Path(folder) / part}: {what} is {found}, and {wanted} would fit the other parts: this is no "
                    "Zero-1-to-3; set models.zero123 to one (see `cad weights list`)"
                )

    def offload_idle(self, device: torch.device) -> None:
        """From now on keep UNet, VAE and image encoder in the CPU's memory, each on `device` only while it computes."""
        for part in (self.unet, self.vae, self.image_encoder):
            part.to("cpu")
        self.cc_projection.to(device)
        self.lent = device

    @contextmanager
    def _at_work(self, part: nn.Module) -> Iterator[None]:
        if self.lent is None:
            yield
            return
        part.to(self.lent)
        try:
            yield
        finally:
            part.to("cpu")

    def save(self, folder: Path | str) -> None:
        """Write the folder that `load` reads, with the model_index.json of the community pipeline."""
        folder = Path(folder)
        index: dict[str, object] = {"_class_name": "Zero1to3StableDiffusionPipeline"}
        for name in ("vae", "unet", "image_encoder", "feature_extractor", "cc_projection", "scheduler"):
            part = getattr(self, name)
            part.save_pretrained(folder / name)
            library = type(part).__module__.split(".")[0]
            index[name] = [library if library != "cad" else "pipeline_zero1to3", type(part).__name__]
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
    def condition(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The two conditions of one reference [B, 3, H, W] in [-1, 1]: embedding [B, D] and VAE latent [B, 4, h, w].

        The embedding is projected but not normalised, of the picture resized bicubically with align_corners and
        without antialiasing; the latent is the VAE's mode, *not* multiplied by the scaling factor (as published).
        """
        side = self.image_encoder.config.image_size
        small = nn.functional.interpolate(image.float(), size=(side, side), mode="bicubic", align_corners=True)
        mean, std = (
            small.new_tensor(statistic)[:, None, None]
            for statistic in (self.feature_extractor.image_mean, self.feature_extractor.image_std)
        )
        pixels = (((small + 1) / 2 - mean) / std).to(self.image_encoder.dtype)
        with self._at_work(self.image_encoder):
            embedding = self.image_encoder(pixels).image_embeds.float()
        with self._at_work(self.vae):
            return embedding, self.vae.encode(image.to(self.vae.dtype)).latent_dist.mode()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """What is diffused: the VAE's mode times its scaling factor, [B, 4, h, w] of images [B, 3, H, W] in [-1, 1]."""
        with self._at_work(self.vae):
            mode = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode()
        return mode.to(self.vae.dtype) * self.vae.config.scaling_factor  # also under autocast

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], float32, of scaled latents [B, 4, h, w]; never under autocast."""
        with ddim.full_precision(latents.device), self._at_work(self.vae):
            return self.vae.decode(latents / self.vae.config.scaling_factor).sample.float().clamp(-1, 1)

    def context(self, embedding: Tensor, relative_pose: Tensor) -> Tensor:
        """Cross-attention context [B, 1, C] of embeddings [B, D] and poses [B, 4] (`cad.camera.relative_pose`)."""
        joined = torch.cat([embedding, relative_pose.to(embedding)], dim=-1)
        return self.cc_projection(joined)[:, None]

    def denoise(self, latents: Tensor, t: Tensor | int, context: Tensor, concat_latent: Tensor) -> Tensor:
        """The UNet's prediction [B, 4, h, w] for noisy latents [B, 4, h, w] at step t beside the reference's latent."""
        joined = torch.cat([latents, concat_latent], dim=1)
        return self.unet(joined, t, encoder_hidden_states=context).sample.to(latents.dtype)  # also under autocast

    @torch.no_grad()
    def sample(
        self,
        embedding: Tensor,
        latent: Tensor,
        relative_pose: Tensor,
        noise: Tensor,
        step_noise: ddim.StepNoise | None,
        steps: int,
        guidance: float,
        eta: float,
    ) -> Tensor:
        """Views [B, 3, H, W] in [-1, 1] of one reference from relative poses [B, 4], by guided DDIM (Sec. 3.3).

        embedding: [1 or B, D], latent: [1 or B, 4, h, w] from `condition`; noise: [B, 4, h, w].
        The unconditional branch has a zero context and a zero reference latent. The walk is in the latents' precision,
        whatever the UNet's is.
        """
        count = len(relative_pose)
        context = self.context(embedding.expand(count, -1), relative_pose)
        contexts = self._narrow(torch.cat([torch.zeros_like(context), context]))
        reference = latent.expand(count, -1, -1, -1)
        references = self._narrow(torch.cat([torch.zeros_like(reference), reference]))

        def denoise(noisy: Tensor, time: int) -> Tensor:
            twice = self._narrow(torch.cat([noisy, noisy]))
            null, conditional = self.denoise(twice, time, contexts, references).to(noisy.dtype).chunk(2)
            return ddim.guide(conditional, null, guidance)

        times = ddim.time_steps(self.scheduler, steps, 1.0)
        with self._at_work(self.unet):
            latents = ddim.walk(denoise, self.scheduler, noise.to(latent), times, eta, step_noise)
        return self.decode(latents)

    def _narrow(self, values: Tensor) -> Tensor:
        """Into the UNet's precision if it is a half one; under autocast values stay as they are."""
        return values if self.precision == torch.float32 else values.to(self.precision)


def _load_projection(folder: Path | str, device: torch.device) -> CCProjection:
    """The projection of either layout, in float32; that of this project's own is asked for where neither is there."""
    other = "clip_camera_projection"
    root = local_folder(folder, "unet", "config.json")  # a hub id's snapshot holds what its model_index.json lists
    try:
        listed = json.loads((root / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        listed = {}
    if not (root / "cc_projection").is_dir() and ((root / other).is_dir() or other in listed):
        stored: CLIPCameraProjection = load_network(CLIPCameraProjection, folder, other, device, torch.float32)
        return stored.plain().requires_grad_(False)
    return load_network(CCProjection, folder, "cc_projection", device, torch.float32)


def draw_drops(
    count: int, embedding_only: float, both: float, concat_only: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Which of `count` examples lose their embedding and which their concatenated latent: two [count] bool masks.

    The three fractions are disjoint; Zero-1-to-3 trains with 0.05 each.
    """
    draw = torch.rand(count, generator=generator)
    drop_embedding = draw < embedding_only + both
    drop_concat = (draw >= embedding_only) & (draw < embedding_only + both + concat_only)
    return drop_embedding, drop_concat


def training_loss(
    model: Zero123,
    latents: Tensor,
    concat: Tensor,
    embedding: Tensor,
    pose: Tensor,
    t: Tensor,
    noise: Tensor,
    drop_embedding: Tensor,
    drop_concat: Tensor,
    importance: Tensor,
) -> Tensor:
    """Weighted mean squared error of the UNet's prediction, a scalar; gradients reach `unet` and `cc_projection`.

    latents: [B, 4, h, w] target view, already scaled (`encode`); concat: [B, 4, h, w] reference, unscaled, and
    embedding: [B, D] (`condition`); pose: [B, 4]; t: [B] int64; noise: [B, 4, h, w]; drops: [B] bool.
    A dropped embedding zeroes the whole context, after the projection: the null that `sample` uses.
    importance: [B, 1, h, w] weights of the latents' pixels, 1 in the mean.
    """
    context = model.context(embedding, pose).masked_fill(drop_embedding[:, None, None], 0)
    reference = concat.masked_fill(drop_concat[:, None, None, None], 0)
    noisy = ddim.add_noise(model.scheduler, latents, noise, t)
    predicted = model.denoise(noisy, t, context, reference)
    return ddim.weighted_error(predicted, ddim.target(model.scheduler, latents, noise, t), importance)
