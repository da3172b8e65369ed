"""Text-to-image with a Stable Diffusion folder of random weights: diffusers' own scheduler loop as the reference."""

import numpy as np
import pytest
import torch
from standins import write_stable_diffusion

from cad.inputs.imagine import imagine
from cad.prior.latent_diffusion import LatentDiffusion
from cad.seeding import generator


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LatentDiffusion:
    folder = write_stable_diffusion(tmp_path_factory.mktemp("weights") / "sd")
    return LatentDiffusion.load(folder, torch.device("cpu"), torch.float32)


@torch.no_grad()
def by_hand(model: LatentDiffusion, text: str, seed: int, steps: int, guidance: float) -> np.ndarray:
    """Two separate network calls per step and the update of DDIM (eta 0) written out."""
    latents = torch.randn((1, *model.latent_shape), generator=generator(seed, "imagine", text))
    kept = model.scheduler.alphas_cumprod
    model.scheduler.set_timesteps(steps)
    times = [int(t) for t in model.scheduler.timesteps]
    for t in times:
        null = model.unet(latents, t, encoder_hidden_states=model.embed([""])).sample
        told = model.unet(latents, t, encoder_hidden_states=model.embed([text])).sample
        noise = null + guidance * (told - null)
        before = t - 1000 // steps
        now, then = kept[t], kept[before] if before >= 0 else model.scheduler.final_alpha_cumprod
        clean = (latents - (1 - now) ** 0.5 * noise) / now**0.5
        latents = then**0.5 * clean + (1 - then) ** 0.5 * noise
    pixels = model.vae.decode(latents / model.vae.config.scaling_factor).sample[0].clamp(-1, 1)
    return ((pixels + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8)


def test_it_is_ddim_from_pure_noise_under_guidance(model):
    found = imagine(model, "a red toy", 3, 4, 2.5)
    assert (found.shape, found.dtype) == ((model.resolution, model.resolution, 3), np.uint8)
    expected = by_hand(model, "a red toy", 3, 4, 2.5)
    assert abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert expected.std() > 1, "the comparison would see a difference"


def test_the_seed_and_the_text_decide(model):
    first = imagine(model, "a red toy", 0, 2, 2.0)
    np.testing.assert_array_equal(first, imagine(model, "a red toy", 0, 2, 2.0))
    assert (first != imagine(model, "a red toy", 1, 2, 2.0)).any()
    assert (first != imagine(model, "a toy", 0, 2, 2.0)).any()
