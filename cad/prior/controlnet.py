"""The paper's first refiner (Sec. 3.3, App. C): a latent diffusion model under a ControlNet on the sample's depth."""

from collections.abc import Sequence

import torch
from diffusers import ControlNetModel
from torch import Tensor

from cad.config import ModelPaths
from cad.config.refine import ControlNetSettings
from cad.errors import UserError
from cad.prior.ddim import NoiseStreams, in_precision
from cad.prior.depth import DepthEstimator
from cad.prior.latent_diffusion import Control, LatentDiffusion
from cad.prior.pictures import resize
from cad.prior.weights import load_network


class ControlNetRefiner:
    """SDEdit that keeps the depth of its input, with the empty prompt as the unconditional branch."""

    def __init__(
        self,
        base: LatentDiffusion,
        controlnet: ControlNetModel,
        depth: DepthEstimator,
        prompts: Sequence[str],
        settings: ControlNetSettings,
        bf16: bool,
    ):
        self.base = base
        self.controlnet = controlnet
        self.depth = depth
        self.contexts = base.embed_each(["", *prompts])
        self.settings = settings
        self.bf16 = bf16

    @classmethod
    def load(
        cls,
        models: ModelPaths,
        prompts: Sequence[str],
        settings: ControlNetSettings,
        bf16: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "ControlNetRefiner":
        """Load the three models that `models` names; `prompts` are all that it will be given.

        Raises UserError naming the part that is missing or broken, or a ControlNet that was made for another model.
        """
        base = LatentDiffusion.load(str(models.refiner), device, dtype)
        controlnet = load_network(ControlNetModel, str(models.controlnet), "", device, dtype)
        _check_fit(controlnet, base, models)
        return cls(base, controlnet, DepthEstimator.load(str(models.depth), device), prompts, settings, bf16)

    def refine(self, images: Tensor, prompts: Sequence[str], streams: NoiseStreams) -> Tensor:
        """Deterministic DDIM (eta 0) from noise of `strength`; images are resized to the model's side and back."""
        side, own, chosen = images.shape[-1], self.base.resolution, self.settings
        context = torch.cat([self.contexts[prompt] for prompt in prompts])
        noise = streams.draw(self.base.latent_shape)
        control = controlled(self.controlnet, self.depth.estimate(images, own), chosen.conditioning_scale)
        with in_precision(images.device, self.bf16):
            refined = self.base.sdedit(
                resize(images, own), context, self.contexts[""], noise, None, chosen.strength, chosen.guidance,
                chosen.steps, control,
            )  # fmt: skip
        return resize(refined, side)


def controlled(controlnet: ControlNetModel, depth: Tensor, scale: float) -> Control:
    """The residuals by which depth maps [B, 3, H, H] in [0, 1] steer a UNet at every step, multiplied by `scale`."""

    def control(noisy: Tensor, time: int | Tensor, context: Tensor) -> dict[str, object]:
        down, middle = controlnet(
            noisy.to(controlnet.dtype),
            time,
            encoder_hidden_states=context.to(controlnet.dtype),
            controlnet_cond=depth.repeat(len(noisy) // len(depth), 1, 1, 1).to(controlnet.dtype),
            conditioning_scale=scale,
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    return control


def _check_fit(controlnet: ControlNetModel, base: LatentDiffusion, models: ModelPaths) -> None:
    """A ControlNet is a copy of its UNet's encoder: UserError where the two differ."""
    for key in ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block"):
        own, other = (_plain(network.config[key]) for network in (controlnet, base.unet))
        if own != other:
            raise UserError(
                f"{models.controlnet}: its {key} is {own}, that of models.refiner is {other}; "
                "set models.controlnet to a ControlNet of that model"
            )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
