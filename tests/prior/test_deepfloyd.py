import math
import shutil
import weakref

import pytest
import standins
import torch
from diffusers import IFImg2ImgPipeline, IFImg2ImgSuperResolutionPipeline
from transformers import T5EncoderModel

from cad.config.refine import DeepFloydSettings
from cad.errors import UserError
from cad.prior import ddim, deepfloyd
from cad.prior.ddim import NoiseStreams
from cad.prior.deepfloyd import DeepFloydRefiner, PixelDiffusion, encode_prompts
from cad.seeding import generator

CPU = torch.device("cpu")
SETTINGS = DeepFloydSettings.model_validate(
    {
        "stage1": {"strength": 0.5, "guidance": 5.0, "steps": 8},
        "stage2": {"strength": 0.7, "guidance": 4.0, "steps": 10, "noise_level": 250},
    }
)
PROMPTS = ["A robot ", "a car", "a mug"]


def draw(name, *shape):
    return torch.randn(*shape, generator=generator("deepfloyd", name))


def streams(*names):
    return NoiseStreams([generator("stream", name) for name in names], CPU, torch.float32)


def load(models, dtype=torch.float32):
    return DeepFloydRefiner.load(models, PROMPTS, SETTINGS, False, CPU, dtype)


@pytest.fixture
def refiner(published_refiners):
    return load(published_refiners)


def abar(time):
    """Signal share of the cosine schedule after step `time` of 1000, by its formula (Nichol and Dhariwal, Eq. 17)."""

    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return f((time + 1) / 1000) / f(0)


def test_both_stages_are_the_published_pipelines(refiner, published_refiners):
    """diffusers' two pipelines one after the other, given the same generators: noise is drawn in the same order."""
    tokenizer = deepfloyd._load_tokenizer(published_refiners.deepfloyd_stage1)
    encoder = T5EncoderModel.from_pretrained(f"{published_refiners.deepfloyd_stage1}/text_encoder")
    shared = dict(
        tokenizer=tokenizer, text_encoder=encoder, safety_checker=None, feature_extractor=None, watermarker=None,
        requires_safety_checker=False,
    )  # fmt: skip
    base = IFImg2ImgPipeline(unet=refiner.base.unet, scheduler=refiner.base.scheduler, **shared)
    upscaler = IFImg2ImgSuperResolutionPipeline(
        unet=refiner.upscaler.unet, scheduler=refiner.upscaler.scheduler, image_noising_scheduler=refiner.noising,
        **shared,
    )  # fmt: skip
    for pipeline in (base, upscaler):
        pipeline.set_progress_bar_config(disable=True)
    images, prompts = draw("images", 2, 3, 16, 16).clamp(-1, 1), PROMPTS[:2]
    small = torch.nn.functional.interpolate(images, size=(8, 8), mode="bicubic", antialias=True).clamp(-1, 1)
    drawn = streams("a", "b").generators
    given = dict(prompt=prompts, generator=drawn, output_type="pt", clean_caption=False)
    small = base(image=small, strength=0.5, num_inference_steps=8, guidance_scale=5.0, **given).images
    expected = upscaler(
        image=small, original_image=images, strength=0.7, num_inference_steps=10, guidance_scale=4.0, noise_level=250,
        **given,
    ).images  # fmt: skip
    found = refiner.refine(images, prompts, streams("a", "b"))
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=0)
    assert (found - images).abs().mean() > 0.1


def test_the_walk_starts_from_the_noise_that_the_strength_asks_for(refiner):
    """80 steps lie 12 apart; strength 0.3 runs the last 24, and so starts at step 23 * 12 = 276."""
    seen = []
    handle = refiner.base.unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    image, noise = draw("image", 1, 3, 8, 8).clamp(-1, 1), draw("noise", 1, 3, 8, 8)
    context, null = refiner.contexts["a car"], refiner.contexts[""]
    refiner.base.sdedit(image, context, null, noise, streams("x"), 0.3, 10.0, 80, None, None)
    handle.remove()
    assert [args[1] for args in seen] == [12 * k for k in reversed(range(24))]
    signal = abar(276)
    assert signal == pytest.approx(0.8155, abs=1e-4)
    expected = math.sqrt(signal) * image + math.sqrt(1 - signal) * noise
    torch.testing.assert_close(seen[0][0], torch.cat([expected, expected]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("time", "variance", "largest"), [(500, -1.0, 0.4), (500, 0.5, 0.4), (250, 1.0, 3.0)])
def test_a_step_by_hand(time, variance, largest):
    """The posterior's mean of the thresholded picture, and a variance between its bounds, geometrically."""
    scheduler = standins.deepfloyd_scheduler(1)
    scheduler.set_timesteps(4)  # 250 apart
    noisy, noise = draw("noisy", 1, 3, 8, 8) * largest, draw("predicted", 1, 3, 8, 8)
    predicted = torch.cat([noise, torch.full_like(noise, variance)], dim=1)
    found = ddim.ancestral_walk(lambda image, t: predicted, scheduler, noisy, [time], streams("x"))
    now, before = abar(time), abar(time - 250)
    clean = (noisy - math.sqrt(1 - now) * noise) / math.sqrt(now)
    bound = min(max(torch.quantile(clean.abs().flatten(), 0.95).item(), 1.0), 1.5)
    clean = clean.clamp(-bound, bound) / bound
    beta = 1 - now / before
    mean = math.sqrt(before) * beta / (1 - now) * clean + math.sqrt(now / before) * (1 - before) / (1 - now) * noisy
    least, most = math.log(beta * (1 - before) / (1 - now)), math.log(beta)
    share = (variance + 1) / 2
    deviation = math.exp((share * most + (1 - share) * least) / 2)
    fresh = torch.randn(1, 3, 8, 8, generator=generator("stream", "x"))
    torch.testing.assert_close(found, mean + deviation * fresh, atol=2e-4, rtol=0)


def test_super_resolution_sees_stage_1_noised_to_its_level_beside_the_sample(refiner):
    seen = []
    refiner.upscaler.unet.register_forward_pre_hook(
        lambda module, args, given: seen.append((args[0], given["class_labels"])), with_kwargs=True
    )
    small = draw("small", 1, 3, 8, 8)
    refiner.base.sdedit = lambda *given: small
    images = draw("images", 1, 3, 16, 16).clamp(-1, 1)
    refiner.refine(images, ["a mug"], streams("x"))
    stream = generator("stream", "x")
    torch.randn(1, 3, 8, 8, generator=stream)  # stage 1's start
    started, beside = (torch.randn(1, 3, 16, 16, generator=stream) for _ in range(2))
    large = torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear", align_corners=True)
    first, labels = seen[0]
    expected = [
        math.sqrt(abar(600)) * images + math.sqrt(1 - abar(600)) * started,  # 7 of 10 steps, 100 apart
        math.sqrt(abar(250)) * large + math.sqrt(1 - abar(250)) * beside,
    ]
    torch.testing.assert_close(first, torch.cat([torch.cat(expected, 1)] * 2), atol=1e-4, rtol=0)
    assert labels.tolist() == [250, 250]


def test_guidance_extrapolates_the_noise_and_takes_the_prompted_variance(refiner):
    context, null = refiner.contexts["a car"], refiner.contexts[""]
    noisy = draw("noisy", 1, 3, 8, 8)
    given = []
    scheduler = refiner.base.scheduler
    original, scheduler.step = scheduler.step, lambda output, *args, **kwargs: (given.append(output), (noisy,))[1]
    refiner.base.sdedit(noisy, context, null, noisy, streams("x"), 0.125, 3.0, 8, None, None)
    scheduler.step = original
    start = torch.zeros(1, dtype=torch.long)
    at = ddim.add_noise(scheduler, noisy, noisy, start)
    without, prompted = (refiner.base.unet(at, 0, encoder_hidden_states=c).sample for c in (null, context))
    expected = torch.cat([3 * prompted[:, :3] - 2 * without[:, :3], prompted[:, 3:]], dim=1)
    torch.testing.assert_close(given[0], expected, atol=1e-4, rtol=1e-4)


def test_neither_batch_nor_order_changes_an_image(refiner):
    images = draw("images", 3, 3, 16, 16).clamp(-1, 1)
    whole = refiner.refine(images, PROMPTS, streams("a", "b", "c"))
    turned = refiner.refine(images.flip(0), PROMPTS[::-1], streams("c", "b", "a"))
    alone = refiner.refine(images[1:2], PROMPTS[1:2], streams("b"))
    torch.testing.assert_close(turned.flip(0), whole, atol=5e-4, rtol=0)
    torch.testing.assert_close(alone, whole[1:2], atol=5e-4, rtol=0)


def test_vanishing_strengths_return_the_sample(refiner):
    values = SETTINGS.model_dump()
    refiner.settings = DeepFloydSettings.model_validate({k: {**v, "strength": 0.01} for k, v in values.items()})
    images = draw("images", 1, 3, 16, 16).clamp(-1, 1)
    assert torch.equal(refiner.refine(images, ["a car"], streams("x")), images)


def test_prompts_are_encoded_once_lowered_padded_and_masked(published_refiners, monkeypatch):
    calls = []
    original = deepfloyd._encode
    monkeypatch.setattr(deepfloyd, "_encode", lambda *given: (calls.append(given[2]), original(*given))[1])
    folder = published_refiners.deepfloyd_stage1
    found = encode_prompts(folder, ["", "A robot ", "a robot", "", "A robot "], CPU, torch.float32)
    assert calls == ["", "A robot ", "a robot"]
    assert all(context.shape == (1, 77, 16) for context in found.values())
    assert torch.equal(found["A robot "], found["a robot"])
    encoder = T5EncoderModel.from_pretrained(f"{folder}/text_encoder")
    # One space and "a", space and "robot", the end; nothing attends to the 69 paddings.
    words = standins.LETTERS
    ids = [4 + words.index(letter) if letter in words else 3 for letter in " a robot"] + [1]
    bare = encoder(torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(found["a robot"][:, : len(ids)], bare, atol=1e-5, rtol=1e-5)


def test_t5_is_freed_before_the_unets_are_loaded(published_refiners, monkeypatch):
    alive, order = {}, []
    original = deepfloyd.load_network

    def watch(kind, *given):
        order.append((kind.__name__, [name for name, held in alive.items() if held() is not None]))
        network = original(kind, *given)
        alive[kind.__name__] = weakref.ref(network)
        return network

    monkeypatch.setattr(deepfloyd, "load_network", watch)
    load(published_refiners)
    assert [name for name, _ in order] == ["T5EncoderModel", "UNet2DConditionModel", "UNet2DConditionModel"]
    assert order[1][1] == []


def test_half_precision_moves_little_and_spares_t5_float16(published_refiners, refiner):
    half = load(published_refiners, torch.bfloat16)
    assert half.base.unet.dtype == half.upscaler.unet.dtype == torch.bfloat16
    images = draw("images", 1, 3, 16, 16).clamp(-1, 1)
    found, exact = (model.refine(images, ["a mug"], streams("x")) for model in (half, refiner))
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() < 0.4 * (exact - images).abs().mean()
    wide = encode_prompts(published_refiners.deepfloyd_stage1, ["a mug"], CPU, torch.float16)
    assert wide["a mug"].dtype == torch.bfloat16


def test_stages_in_each_other_s_place_are_named(published_refiners):
    with pytest.raises(
        UserError, match=r"unet: takes 6 channels and gives 6, not 3 and 6; set models\.deepfloyd_stage1"
    ):
        PixelDiffusion.load(published_refiners.deepfloyd_stage2, 3, CPU, torch.float32)


def published_tokenizer(published_refiners, tmp_path):
    """The first stage's folder as it is published: sentencepiece's own file instead of tokenizer.json."""
    from transformers.convert_slow_tokenizer import import_protobuf

    folder = tmp_path / "stage1"
    shutil.copytree(published_refiners.deepfloyd_stage1, folder)
    (folder / "tokenizer/tokenizer.json").unlink()
    model = import_protobuf().ModelProto()
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    for piece in ["<pad>", "</s>", "<unk>", "▁", *standins.LETTERS]:
        model.pieces.add(piece=piece, score=-2.0 if piece == "▁" else -3.0, type=kinds.get(piece, 1))
    model.trainer_spec.unk_id = 2
    (folder / "tokenizer/spiece.model").write_bytes(model.SerializeToString())
    return folder


def test_the_published_tokenizer_is_read_with_sentencepiece(published_refiners, tmp_path):
    pytest.importorskip("sentencepiece")
    folder = published_tokenizer(published_refiners, tmp_path)
    found = encode_prompts(folder, ["a robot"], CPU, torch.float32)
    expected = encode_prompts(published_refiners.deepfloyd_stage1, ["a robot"], CPU, torch.float32)
    assert torch.equal(found["a robot"], expected["a robot"])


def test_without_sentencepiece_the_published_tokenizer_says_what_to_install(published_refiners, tmp_path, monkeypatch):
    folder = published_tokenizer(published_refiners, tmp_path)
    monkeypatch.setattr(deepfloyd, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tokenizer: .*pip install sentencepiece"):
        encode_prompts(folder, ["a robot"], CPU, torch.float32)
