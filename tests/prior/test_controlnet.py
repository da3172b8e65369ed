import json

import pytest
import torch
from diffusers import StableDiffusionControlNetImg2ImgPipeline

from cad.config.refine import ControlNetSettings
from cad.errors import UserError
from cad.prior.controlnet import ControlNetRefiner, controlled
from cad.prior.ddim import NoiseStreams
from cad.seeding import generator

CPU = torch.device("cpu")
SETTINGS = ControlNetSettings(strength=0.5, guidance=4.0, steps=6, conditioning_scale=0.8)
PROMPTS = ["a robot", "a car", "a mug"]


def draw(name, *shape):
    return torch.randn(*shape, generator=generator("controlnet", name))


def streams(*names):
    return NoiseStreams([generator("stream", name) for name in names], CPU, torch.float32)


def load(models, settings=SETTINGS, dtype=torch.float32):
    return ControlNetRefiner.load(models, PROMPTS, settings, False, CPU, dtype)


@pytest.fixture
def refiner(published_refiners):
    return load(published_refiners)


@pytest.mark.parametrize(("guidance", "scale"), [(4.0, 0.8), (1.0, 1.0)])
def test_it_is_the_published_pipeline(refiner, guidance, scale):
    """diffusers' own pipeline, given the same noise and depth and a VAE that is sampled at its mode."""
    base = refiner.base
    pipeline = StableDiffusionControlNetImg2ImgPipeline(
        vae=base.vae, text_encoder=base.text_encoder, tokenizer=base.tokenizer, unet=base.unet,
        controlnet=refiner.controlnet, scheduler=base.scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    image, noise = draw("image", 1, 3, 16, 16).clamp(-1, 1), draw("noise", 1, 4, 8, 8)
    depth = refiner.depth.estimate(image, 16)
    latents = base.encode(image)
    # A tensor with 4 channels is taken by the pipeline as latents already; its noise comes from the patched function.
    module = __import__(pipeline.__class__.__module__, fromlist=["randn_tensor"])
    original, module.randn_tensor = module.randn_tensor, lambda *args, **kwargs: noise
    try:
        expected = pipeline(
            "a robot", image=latents, control_image=depth, strength=0.5, num_inference_steps=6,
            guidance_scale=guidance, controlnet_conditioning_scale=scale, output_type="pt",
        ).images  # fmt: skip
    finally:
        module.randn_tensor = original
    control = controlled(refiner.controlnet, depth, scale)
    context, null = base.embed(["a robot"]), base.embed([""])
    found = base.sdedit(image, context, null, noise, None, 0.5, guidance, 6, control)
    torch.testing.assert_close((found + 1) / 2, expected, atol=2e-4, rtol=0)
    assert (found - base.sdedit(image, context, null, noise, None, 0.5, guidance, 6)).abs().max() > 1e-2


def test_refine_resizes_estimates_depth_and_steers(refiner):
    """By its parts: 24 px to the model's 16 and back, and the noise of the image's own stream."""
    image = draw("image", 1, 3, 24, 24).clamp(-1, 1)
    shrunk = torch.nn.functional.interpolate(image, size=(16, 16), mode="bicubic", antialias=True).clamp(-1, 1)
    noise = torch.randn(1, 4, 8, 8, generator=generator("stream", "x"))
    control = controlled(refiner.controlnet, refiner.depth.estimate(image, 16), 0.8)
    context, null = refiner.base.embed(["a mug"]), refiner.base.embed([""])
    small = refiner.base.sdedit(shrunk, context, null, noise, None, 0.5, 4.0, 6, control)
    expected = torch.nn.functional.interpolate(small, size=(24, 24), mode="bicubic", antialias=True).clamp(-1, 1)
    torch.testing.assert_close(refiner.refine(image, ["a mug"], streams("x")), expected)


def test_neither_batch_nor_order_changes_an_image(refiner):
    images = draw("images", 3, 3, 16, 16).clamp(-1, 1)
    whole = refiner.refine(images, PROMPTS, streams("a", "b", "c"))
    turned = refiner.refine(images.flip(0), PROMPTS[::-1], streams("c", "b", "a"))
    alone = refiner.refine(images[1:2], PROMPTS[1:2], streams("b"))
    torch.testing.assert_close(turned.flip(0), whole, atol=2e-4, rtol=0)
    torch.testing.assert_close(alone, whole[1:2], atol=2e-4, rtol=0)


def test_the_depth_steers_more_the_larger_its_scale(refiner):
    image = draw("image", 1, 3, 16, 16).clamp(-1, 1)
    redrawn = []
    for scale in (0.0, 0.1, 0.8):
        refiner.settings = SETTINGS.model_copy(update={"conditioning_scale": scale})
        redrawn.append(refiner.refine(image, ["a car"], streams("x")))
    assert 0 < (redrawn[1] - redrawn[0]).abs().mean() < (redrawn[2] - redrawn[0]).abs().mean()


def test_vanishing_strength_is_the_autoencoder(refiner):
    refiner.settings = SETTINGS.model_copy(update={"strength": 0.01})
    image = draw("image", 1, 3, 16, 16).clamp(-1, 1)
    expected = refiner.base.decode(refiner.base.encode(image))
    torch.testing.assert_close(refiner.refine(image, ["a car"], streams("x")), expected)


def test_half_precision_keeps_vae_and_depth_whole_and_moves_little(published_refiners, refiner):
    half = load(published_refiners, dtype=torch.bfloat16)
    types = [part.dtype for part in (half.base.unet, half.controlnet, half.base.vae, half.depth.network)]
    assert types == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    image = draw("image", 1, 3, 16, 16).clamp(-1, 1)
    found, exact = (model.refine(image, ["a mug"], streams("x")) for model in (half, refiner))
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() < 0.02
    assert (found - image).abs().mean() > 0.1


def test_a_controlnet_of_another_model_is_named(published_refiners, tmp_path):
    import standins

    folder = standins.write_controlnet(tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    network = standins.ControlNetModel.from_config({**config, "cross_attention_dim": 24})
    network.save_pretrained(folder)
    models = published_refiners.model_copy(update={"controlnet": str(folder)})
    with pytest.raises(UserError, match=r"its cross_attention_dim is 24, that of models\.refiner is 16"):
        load(models)


def test_a_missing_depth_estimator_is_named(published_refiners, tmp_path):
    with pytest.raises(UserError, match="no such folder of weights"):
        load(published_refiners.model_copy(update={"depth": str(tmp_path / "none")}))
