"""Zero-1-to-3 as published: full-size networks without their weights, and what is fed to them, computed by hand."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPImageProcessor

from cad.artifacts import PriorCache
from cad.config import PriorSettings
from cad.prior import ddim, sample
from cad.prior.zero123 import CCProjection, Zero123
from cad.prior.zero123_checkpoint import PUBLISHED, build, schedule
from cad.seeding import generator

CPU, META = torch.device("cpu"), torch.device("meta")
SETTINGS = PriorSettings(
    kind="zero123", settings=None,
    poses=3, samples=1, steps=2, guidance=3.0, eta=1.0, precision="float32", bf16=False, offload=False, batch=2,
    shard_poses=2,
)  # fmt: skip


def draw(name, *shape):
    return torch.randn(*shape, generator=generator("published", name))


@pytest.fixture(scope="module")
def published():
    """The networks of the published configurations on the meta device: shapes without memory."""
    return Zero123(**build(PUBLISHED), feature_extractor=CLIPImageProcessor(), scheduler=schedule())


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts(published):
    # Stable Diffusion 1's UNet has 859,520,964 ("DiffusionWrapper has 859.52 M params." as its own code prints); four
    # more input channels add 4 x 320 x 3 x 3.
    assert parameters(published.unet) == 859_520_964 + 4 * 320 * 9
    # Its AutoencoderKL has 83,653,863 (the published weights' 248 tensors, counted by users of diffusers).
    assert parameters(published.vae) == 83_653_863
    # CLIP ViT-L/14 has 427,616,513 (OpenAI's notebook prints it), of which its `visual` has 303,966,208.
    assert parameters(published.image_encoder) == 303_966_208
    assert parameters(published.cc_projection) == 772 * 768 + 768  # Linear(772 -> 768)


def test_full_size_networks_take_what_the_pipeline_feeds(published, monkeypatch):
    monkeypatch.setattr(ddim, "full_precision", lambda device: nullcontext())  # autocast knows no meta device
    seen = []
    hook = published.unet.register_forward_pre_hook(
        lambda module, given, named: seen.append((tuple(given[0].shape), tuple(named["encoder_hidden_states"].shape))),
        with_kwargs=True,
    )
    assert published.resolution == 256
    assert published.latent_shape == (4, 32, 32)
    embedding, latent = published.condition(torch.empty(1, 3, 256, 256, device=META))
    assert embedding.shape == (1, 768)
    assert latent.shape == (1, 4, 32, 32)
    views = published.sample(
        embedding, latent, torch.empty(2, 4, device=META), torch.empty(2, 4, 32, 32, device=META),
        lambda k: torch.empty(2, 4, 32, 32, device=META), 2, 3.0, 1.0,
    )  # fmt: skip
    hook.remove()
    assert views.shape == (2, 3, 256, 256)
    assert seen == [((4, 8, 32, 32), (4, 1, 768))] * 2  # null and conditional branches of two views, at two steps


def test_the_encoder_s_activation_is_openai_s(published):
    assert published.image_encoder.config.hidden_act == "quick_gelu"


def cubic(distance, a=-0.75):
    """Keys' kernel with the constant that torch takes."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resized(row_count, rows):
    """[rows, row_count] weights of bicubic interpolation with corners aligned; outside, the edge is repeated."""
    table = np.zeros((rows, row_count))
    for i in range(rows):
        at = i * (row_count - 1) / (rows - 1)
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            table[i, min(max(tap, 0), row_count - 1)] += cubic(at - tap)
    return table


def test_the_encoder_sees_a_bicubic_picture_with_aligned_corners(zero123, monkeypatch):
    image = draw("image", 1, 3, 16, 16).clamp(-1, 1)
    seen = []
    hook = zero123.image_encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    zero123.condition(image)
    hook.remove()
    table = resized(16, 8)
    small = np.einsum("ij,bcjk,lk->bcil", table, image.double().numpy(), table)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = np.array([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    np.testing.assert_allclose(seen[0].numpy(), (small / 2 + 0.5 - mean) / std, atol=2e-5)


def test_poses_reach_the_projection_with_the_camera_s_signs(camera, models, input_dir, tmp_path, context):
    """For each pose of the cache: polar from +Z minus 70 deg, sine and cosine of azimuth minus 180 deg, no radius."""
    seen = []
    hook = nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: seen.append(given[0]) if isinstance(module, CCProjection) else None
    )
    (tmp_path / "prior").mkdir()
    sample.sample_prior(SETTINGS, camera, models, input_dir, tmp_path / "prior", context)
    hook.remove()
    poses = PriorCache.open(tmp_path / "prior").poses
    azimuth, polar = poses.azimuth.numpy(), poses.polar.numpy()
    expected = [polar - math.radians(70), -np.sin(azimuth), -np.cos(azimuth), 0 * polar]  # sin(a - 180) = -sin a
    np.testing.assert_allclose(torch.cat(seen)[:, 12:].numpy(), np.stack(expected, 1), atol=1e-6)


def alphas():
    """The cumulative signal of 1000 betas whose square roots run evenly from that of 0.00085 to that of 0.012."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampling_is_ddim_s_equation_with_guidance(zero123, eta):
    """Four steps of Song et al.'s Eq. 12 and 16 in float64, the network alone taken from the model."""
    embedding, latent, pose = draw("e", 1, 12), draw("l", 1, 4, 8, 8), draw("p", 1, 4)
    noise, steps = draw("n", 1, 4, 8, 8), draw("s", 4, 1, 4, 8, 8)
    found = zero123.sample(embedding, latent, pose, noise, lambda k: steps[k], 4, 3.0, eta)
    weight, bias = zero123.cc_projection.projection.weight, zero123.cc_projection.projection.bias
    context = (torch.cat([embedding, pose], 1) @ weight.T + bias)[:, None]
    signal, x = alphas(), noise.double().numpy()
    for k, (time, before) in enumerate([(751, 501), (501, 251), (251, 1), (1, None)]):
        here, there = signal[time], signal[0] if before is None else signal[before]
        noisy = torch.tensor(x).float()
        with torch.no_grad():
            null = zero123.unet(torch.cat([noisy, 0 * latent], 1), time, 0 * context).sample
            conditional = zero123.unet(torch.cat([noisy, latent], 1), time, context).sample
        epsilon = (null + 3 * (conditional - null)).double().numpy()
        clean = (x - (1 - here) ** 0.5 * epsilon) / here**0.5
        sigma = eta * ((1 - there) / (1 - here) * (1 - here / there)) ** 0.5
        x = there**0.5 * clean + (1 - there - sigma**2) ** 0.5 * epsilon + sigma * steps[k].double().numpy()
    with torch.no_grad():
        image = zero123.vae.decode(torch.tensor(x / 0.5).float()).sample.clamp(-1, 1)
    torch.testing.assert_close(found, image, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_is_of_unet_and_encoder_alone_and_close(zero123, zero123_folder, precision):
    half = Zero123.load(zero123_folder, CPU, precision)
    kinds = {part: {p.dtype for p in getattr(half, part).parameters()} for part in ("unet", "image_encoder", "vae")}
    assert kinds == {"unet": {precision}, "image_encoder": {precision}, "vae": {torch.float32}}
    assert half.cc_projection.projection.weight.dtype == torch.float32
    image, pose, noise = draw("image", 1, 3, 16, 16).clamp(-1, 1), draw("p", 2, 4), draw("n", 2, 4, 8, 8)
    views = []
    for model in (zero123, half):
        embedding, latent = model.condition(image)
        assert embedding.dtype == latent.dtype == torch.float32
        views.append(model.sample(embedding, latent, pose, noise, None, 3, 3.0, 0.0))
    assert views[1].dtype == torch.float32
    assert (views[0] - views[1]).abs().max() < (0.01 if precision == torch.float16 else 0.1)


def test_half_precision_and_bf16_exclude_each_other():
    with pytest.raises(ValueError, match="set bf16 to false"):
        PriorSettings(**SETTINGS.model_dump() | {"precision": "float16", "bf16": True})


def test_idle_parts_are_off_the_device_and_nothing_changes(zero123, zero123_folder, monkeypatch):
    """Moves between devices are noted while a part computes: one goes, works and comes back before the next."""
    model = Zero123.load(zero123_folder, CPU, torch.float32)
    moves = []
    for part in ("unet", "vae", "image_encoder"):
        network, plain = getattr(model, part), getattr(model, part).to

        def moved(place, part=part, plain=plain):
            moves.append((part, "idle" if place == "cpu" else "lent"))
            return plain(place)

        monkeypatch.setattr(network, "to", moved)
    model.offload_idle(CPU)
    assert {state for _, state in moves} == {"idle"}
    moves.clear()
    image, pose, noise = draw("image", 1, 3, 16, 16).clamp(-1, 1), draw("p", 2, 4), draw("n", 2, 4, 8, 8)
    embedding, latent = model.condition(image)
    views = model.sample(embedding, latent, pose, noise, None, 2, 3.0, 0.0)
    order = ("image_encoder", "vae", "unet", "vae")
    assert moves == [(part, state) for part in order for state in ("lent", "idle")]
    assert torch.equal(views, zero123.sample(*zero123.condition(image), pose, noise, None, 2, 3.0, 0.0))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_offloaded_sampling_on_a_gpu_gives_the_same_bits(zero123_folder, precision):
    device, dtype = torch.device("cuda"), getattr(torch, precision)
    image, pose, noise = draw("image", 1, 3, 16, 16).clamp(-1, 1), draw("p", 2, 4), draw("n", 2, 4, 8, 8)
    views = []
    for offload in (False, True):
        model = Zero123.load(zero123_folder, CPU if offload else device, dtype)
        if offload:
            model.offload_idle(device)
        given = [part.to(device) for part in (pose, noise)]
        views.append(model.sample(*model.condition(image.to(device)), *given, None, 3, 3.0, 0.0).cpu())
    for part in (model.unet, model.vae, model.image_encoder):
        assert {parameter.device.type for parameter in part.parameters()} == {"cpu"}
    assert torch.equal(*views)


def test_steps_are_the_original_s():
    """Fifty steps of a thousand: 981, 961, ... 1, as the original counts them."""
    assert ddim.time_steps(schedule(), 50, 1.0) == list(range(981, 0, -20))
