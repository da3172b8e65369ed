"""The paper's third source of pictures (Sec. 4): text-to-image, by a folder in Stable Diffusion's layout."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cad.prior import ddim
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.pictures import to_picture
from cad.seeding import generator


@torch.no_grad()
def imagine(model: LatentDiffusion, text: str, seed: int, steps: int, guidance: float) -> NDArray[np.uint8]:
    """A picture, uint8 [R, R, 3], of `text`: pure noise, drawn from (seed, text) alone, denoised by DDIM at eta 0."""
    device = model.unet.device
    noise = torch.randn((1, *model.latent_shape), generator=generator(seed, "imagine", text)).to(device)
    times = ddim.time_steps(model.scheduler, steps, strength=1.0)
    noise = noise * model.scheduler.init_noise_sigma
    contexts = torch.cat([model.embed([""]), model.embed([text])])

    def denoise(noisy: Tensor, time: int) -> Tensor:
        predicted = model.unet(torch.cat([noisy, noisy]), time, encoder_hidden_states=contexts).sample
        null, conditional = predicted.to(noisy.dtype).chunk(2)
        return ddim.guide(conditional, null, guidance)

    picture: NDArray[np.uint8] = to_picture(model.decode(ddim.walk(denoise, model.scheduler, noise, times, 0.0, None)))
    return picture[0]
