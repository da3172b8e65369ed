import shutil

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from cad.errors import UserError
from cad.prior.latent_diffusion import LatentDiffusion, training_loss
from cad.seeding import generator

CPU = torch.device("cpu")


def draw(name, *shape):
    return torch.randn(*shape, generator=generator("latent", name))


def test_prompts_are_padded_and_differ(refiner):
    found = refiner.embed(["a red robot, front view", "a red robot, back view", ""])
    assert found.shape == (3, 24, 16)
    assert not torch.allclose(found[0], found[1])
    torch.testing.assert_close(refiner.embed([""])[0], found[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_sdedit_is_the_published_pipeline(refiner, refiner_folder, guidance):
    """diffusers' own image-to-image pipeline, given the same noise and a VAE that is sampled at its mode."""
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(refiner_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    image, noise = draw("image", 1, 3, 16, 16).clamp(-1, 1), draw("noise", 1, 4, 8, 8)
    latents = refiner.encode(image)
    # A tensor with 4 channels is taken by the pipeline as latents already; its noise comes from the patched function.
    module = __import__(pipeline.__class__.__module__, fromlist=["randn_tensor"])
    original, module.randn_tensor = module.randn_tensor, lambda *args, **kwargs: noise
    try:
        expected = pipeline(
            "a robot", image=latents, strength=0.5, num_inference_steps=6, guidance_scale=guidance, output_type="pt"
        ).images
    finally:
        module.randn_tensor = original
    found = refiner.sdedit(image, refiner.embed(["a robot"]), refiner.embed([""]), noise, None, 0.5, guidance, 6)
    torch.testing.assert_close((found + 1) / 2, expected, atol=2e-4, rtol=0)


def test_vanishing_strength_is_the_autoencoder(refiner):
    image = draw("image", 2, 3, 16, 16).clamp(-1, 1)
    context = refiner.embed(["a robot", "a car"])
    found = refiner.sdedit(image, context, refiner.embed([""]), draw("n", 2, 4, 8, 8), None, 0.01, 4.0, 10)
    torch.testing.assert_close(found, refiner.decode(refiner.encode(image)))


def test_sdedit_does_not_depend_on_its_batch(refiner):
    image, noise = draw("image", 3, 3, 16, 16).clamp(-1, 1), draw("n", 3, 4, 8, 8)
    context, null = refiner.embed(["a robot", "a car", "a mug"]), refiner.embed([""])
    steps = draw("steps", 5, 3, 4, 8, 8)
    together = refiner.sdedit(image, context, null, noise, lambda k: steps[k], 0.6, 4.0, 5)
    alone = refiner.sdedit(image[2:], context[2:], null, noise[2:], lambda k: steps[k, 2:], 0.6, 4.0, 5)
    torch.testing.assert_close(together[2:], alone, atol=1e-4, rtol=1e-4)


def test_prompt_changes_the_image(refiner):
    image, noise, null = draw("image", 1, 3, 16, 16).clamp(-1, 1), draw("n", 1, 4, 8, 8), refiner.embed([""])
    red, blue = (
        refiner.sdedit(image, refiner.embed([prompt]), null, noise, None, 1.0, 7.0, 4)
        for prompt in ("a red one", "sky")
    )
    assert (red - blue).abs().max() > 1e-4


def test_training_loss_is_the_weighted_noise_error(refiner):
    latents, noise, t = draw("x", 2, 4, 8, 8), draw("n", 2, 4, 8, 8), torch.tensor([5, 800])
    context = refiner.embed(["a robot", ""])
    a = refiner.scheduler.alphas_cumprod[t][:, None, None, None]
    predicted = refiner.unet(a.sqrt() * latents + (1 - a).sqrt() * noise, t, encoder_hidden_states=context).sample
    weights = torch.ones(2, 1, 8, 8)
    weights[:, :, :4], weights[:, :, 4:] = 1.5, 0.5
    loss = training_loss(refiner, latents, context, t, noise, weights)
    error = (predicted - noise) ** 2
    expected = 0.75 * error[:, :, :4].mean() + 0.25 * error[:, :, 4:].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_missing_part_is_named(refiner_folder, tmp_path):
    folder = shutil.copytree(refiner_folder, tmp_path / "refiner")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError, match=r"tokenizer.*is missing; run `dvc pull"):
        LatentDiffusion.load(folder, CPU, torch.float32)
